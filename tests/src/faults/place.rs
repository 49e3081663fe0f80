//! Places: from where gotrace calls the kernel.
//!
//! Input: the executable, and of a stopped thread its registers and stack. Output: the call and the innermost functions
//! of gotrace's own that led to it, by name, with the offset in the first of them, which tells two calls of a function
//! apart. Where no function is gotrace's own, as on a thread of a runtime's, those of the crates that it uses. The
//! stack is unwound by the executable's `.eh_frame`.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, Unwinder as _, UnwinderNative,
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use sha2::{Digest as _, Sha256};
use syscalls::Sysno;

use super::registers::Registers;

/// Functions within which no call is made to fail, and why: names of the C library's, beginnings of the standard
/// library's.
pub const OUTSIDE: [(&[&str], &str); 3] = [
    (
        &[
            "malloc",
            "__libc_malloc",
            "_int_malloc",
            "sysmalloc",
            "sysmalloc_mmap",
            "calloc",
            "__libc_calloc",
            "realloc",
            "__libc_realloc",
            "_int_realloc",
            "_int_memalign",
            "_mid_memalign",
            "posix_memalign",
            "__posix_memalign",
            "aligned_alloc",
            "free",
            "__libc_free",
            "_int_free",
            "cfree",
            "systrim",
            "heap_trim",
            "new_heap",
            "alloc_new_heap",
            "grow_heap",
            "arena_get2",
            "ptmalloc_init",
            "munmap_chunk",
            "mremap_chunk",
            "tcache_init",
            "_int_free_merge_chunk",
            "_int_free_maybe_consolidate",
        ],
        "the allocator: the standard library aborts when there is no memory",
    ),
    (
        &["std::sys::pal::unix::stack_overflow", "std::sys::pal::unix::thread::min_stack_size"],
        "the standard library's guard against stack overflow panics by itself, before a thread begins",
    ),
    (
        &["__libc_start_main", "__libc_start_main_impl", "_start"],
        "the C library's start of a process, where nothing of gotrace's has been called yet",
    ),
];

/// Crates whose functions name no place.
const BETWEEN: [&str; 9] =
    ["std", "core", "alloc", "rustix", "libc", "linux_raw_sys", "hashbrown", "backtrace", "__rustc"];
/// How many functions make a place.
const DEPTH: usize = 6;
/// How many frames are looked at.
const MOST_FRAMES: usize = 96;
/// How much of a stack is read at a time.
const STACK: usize = 32 << 10;

/// A place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The number of the call.
    pub call: u32,
    /// The call and the functions that led to it, innermost first.
    pub text: String,
}

impl Place {
    /// A short name of it.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(&Sha256::digest(&self.text)[..6])
    }
}

/// Names a call.
#[must_use]
pub fn call_name(number: u32) -> String {
    Sysno::new(number as usize).map_or_else(|| format!("system call {number}"), |call| call.name().to_owned())
}

/// An executable that is run.
pub struct Image {
    path: PathBuf,
    /// Address, size and name, in order.
    symbols: Vec<(u64, u64, &'static str)>,
    unwinder: UnwinderNative<&'static [u8], MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
    base: u64,
    known: HashMap<(u32, Vec<u64>), Option<Place>>,
}

impl Image {
    /// Reads what is needed of an executable that runs as this process.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn new(path: &Path, pid: i32) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        // There is one executable in the life of a supervisor.
        let file = object::File::parse(&*bytes.leak()).context("an ELF file")?;
        let mut symbols: Vec<(u64, u64, &str)> = file
            .symbols()
            .filter(|s| s.kind() == SymbolKind::Text && s.is_definition())
            .filter_map(|s| Some((s.address(), s.size(), s.name().ok()?)))
            .collect();
        symbols.sort_by_key(|s| s.0);
        symbols.dedup_by_key(|s| s.0);
        anyhow::ensure!(!symbols.is_empty(), "{} has no symbols", path.display());
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("the process is gone")?;
        let number = |text: &str| u64::from_str_radix(text, 16).context("/proc/PID/maps");
        let mut ranges = Vec::new();
        for line in maps.lines().filter(|l| l.ends_with(&*path.to_string_lossy())) {
            let (from, to) =
                line.split(' ').next().and_then(|r| r.split_once('-')).context("/proc/PID/maps")?;
            ranges.push(number(from)?..number(to)?);
        }
        let first = ranges.first().context("the executable is not mapped")?.start;
        let whole = first..ranges.last().context("mapped")?.end;
        let base = if file.kind() == object::ObjectKind::Dynamic { first } else { 0 };
        let section = |name: &str| {
            let section = file.section_by_name(name);
            let range = section.as_ref().map(|s| s.address()..s.address() + s.size());
            (range, section.and_then(|s| s.data().ok()))
        };
        let (text_svma, text): (Option<Range<u64>>, _) = section(".text");
        let (eh_frame_svma, eh_frame) = section(".eh_frame");
        let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr");
        let info = ExplicitModuleSectionInfo {
            text_svma,
            text,
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..Default::default()
        };
        let mut unwinder = UnwinderNative::new();
        unwinder.add_module(Module::new(path.display().to_string(), whole, base, info));
        let path = path.to_owned();
        Ok(Self { path, symbols, unwinder, cache: CacheNative::new(), base, known: HashMap::new() })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place at which a thread is; `None` within what is left out.
    pub fn place(&mut self, thread: i32, registers: &Registers) -> Option<Place> {
        let call = u32::try_from(registers.call()).unwrap_or(u32::MAX);
        let addresses = self.addresses(thread, registers);
        if let Some(known) = self.known.get(&(call, addresses.clone())) {
            return known.clone();
        }
        let place = self.named(call, &addresses);
        self.known.insert((call, addresses), place.clone());
        place
    }

    /// The addresses of its frames in the file, innermost first.
    fn addresses(&mut self, thread: i32, registers: &Registers) -> Vec<u64> {
        let (pc, sp, registers) = registers.place();
        let mut stack = vec![0; STACK];
        let read = read_memory(thread, sp, &mut stack).unwrap_or_default();
        stack.truncate(read);
        let mut read_stack = |address: u64| {
            let at = address.checked_sub(sp).and_then(|at| usize::try_from(at).ok());
            let mut value = [0; 8];
            match at.and_then(|at| stack.get(at..at + 8)) {
                Some(bytes) => value.copy_from_slice(bytes),
                None if read_memory(thread, address, &mut value).ok() == Some(8) => {}
                None => return Err(()),
            }
            Ok(u64::from_ne_bytes(value))
        };
        let mut frames = self.unwinder.iter_frames(pc, registers, &mut self.cache, &mut read_stack);
        let mut addresses = Vec::new();
        while let Ok(Some(frame)) = frames.next()
            && addresses.len() < MOST_FRAMES
        {
            addresses.push(frame.address_for_lookup().wrapping_sub(self.base));
        }
        addresses
    }

    /// The function that an address is in, as it is called in the source, and the offset in it.
    fn function(&self, address: u64) -> Option<(String, u64)> {
        let at = self.symbols.partition_point(|s| s.0 <= address).checked_sub(1)?;
        let (start, size, name) = &self.symbols[at];
        let offset = address - start;
        (*size == 0 || offset < *size).then(|| (format!("{:#}", rustc_demangle::demangle(name)), offset))
    }

    fn named(&self, call: u32, addresses: &[u64]) -> Option<Place> {
        let functions: Vec<(String, u64)> = addresses.iter().filter_map(|a| self.function(*a)).collect();
        let is_own = |name: &str| crate_of(name).starts_with("gotrace");
        let innermost = functions.iter().position(|(name, _)| is_own(name));
        for (at, (name, _)) in functions.iter().enumerate() {
            let outside = OUTSIDE.iter().any(|(names, _)| {
                names.iter().any(|n| if n.contains("::") { name.starts_with(n) } else { name == n })
            });
            // What gotrace calls is not the start of the process that called gotrace.
            if outside && innermost.is_none_or(|own| at < own) {
                return None;
            }
        }
        let used = |name: &str| name.contains("::") && !BETWEEN.contains(&crate_of(name));
        let chosen: Vec<&(String, u64)> = match innermost {
            Some(_) => functions.iter().filter(|(name, _)| is_own(name)).take(DEPTH).collect(),
            None if functions.iter().any(|(name, _)| used(name)) => {
                functions.iter().filter(|(name, _)| used(name)).take(DEPTH).collect()
            }
            None => functions.iter().take(DEPTH).collect(),
        };
        let mut text = call_name(call);
        for (at, (name, offset)) in chosen.into_iter().enumerate() {
            let _ = if at == 0 { write!(text, " at {name}+{offset:#x}") } else { write!(text, " < {name}") };
        }
        Some(Place { call, text })
    }
}

/// The crate that a function belongs to; empty for one of C.
fn crate_of(function: &str) -> &str {
    let function = function.trim_start_matches(['<', '&', '*', '(', '[']);
    let function = ["mut ", "const ", "dyn "].iter().fold(function, |f, p| f.strip_prefix(p).unwrap_or(f));
    function.split_once("::").map_or("", |(first, _)| first)
}

/// Reads memory of a process; how many bytes.
fn read_memory(thread: i32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // By pages: a vector that ends beyond the mapping is read as far as whole elements of it lie within.
    let mut remote = Vec::new();
    let end = address + buffer.len() as u64;
    let mut from = address;
    while from < end {
        let to = end.min((from | 0xfff) + 1);
        remote.push(libc::iovec {
            iov_base: std::ptr::without_provenance_mut(usize::try_from(from).map_err(io::Error::other)?),
            iov_len: usize::try_from(to - from).map_err(io::Error::other)?,
        });
        from = to;
    }
    // SAFETY: the local vector is the buffer; the remote ones are another process's, which the kernel checks.
    let read = unsafe {
        libc::process_vm_readv(thread, &raw const local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
