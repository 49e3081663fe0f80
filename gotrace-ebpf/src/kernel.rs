//! Reading the kernel's own structures.

use aya_ebpf::helpers::generated;

/// A member of a structure; 0 where it cannot be read.
#[inline(always)]
pub fn read<T: Copy + Default>(structure: u64, offset: u64) -> T {
    let mut value = T::default();
    let address = structure.wrapping_add(offset);
    // SAFETY: the destination is ours and as long as stated, and what could not be read is filled with 0; the helper
    // checks the source.
    unsafe {
        let to = (&raw mut value).cast();
        generated::bpf_probe_read_kernel(to, size_of::<T>() as u32, address as *const _);
    }
    value
}

/// What a member points to.
#[inline(always)]
pub fn follow(structure: u64, offset: u64) -> u64 {
    read(structure, offset)
}
