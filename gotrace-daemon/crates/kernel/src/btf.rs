//! Where a member of one of the kernel's structures is, from the description of its types that the running kernel holds
//! (`/sys/kernel/btf/vmlinux`; format: the kernel's `Documentation/bpf/btf.rst`).
//!
//! aya reads it too, but tells no offsets; compilers of C have the loader do that, the one for Rust does not.

use std::{fs, io, sync::Arc};

use gotrace_common::{QuotaLayout, SocketLayout};
use gotrace_process::again;

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Structures within structures without a name that are looked through.
const MAX_DEPTH: u32 = 8;

/// Why it is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum BtfError {
    #[error("cannot read {PATH} (a kernel built with CONFIG_DEBUG_INFO_BTF has it): {0}")]
    Read(Arc<io::Error>),
    #[error("{PATH} is not understood")]
    Format,
    #[error("{PATH} has no {0}.{1}")]
    Missing(&'static str, &'static str),
}

/// Where things are in `task_struct`, in bytes from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Task {
    /// `pid`
    pub pid: u64,
    /// `se.sum_exec_runtime`
    pub runtime: u64,
    /// What tells whether its CPU quota is used up; all 0 where nothing does.
    pub quota: QuotaLayout,
}

/// The description of the running kernel's types.
pub(super) struct Kernel(Vec<u8>);

impl Kernel {
    /// Reads it; some megabytes.
    ///
    /// # Errors
    /// Where the kernel has none that may be read.
    pub(super) fn read() -> Result<Self, BtfError> {
        again(PATH, || fs::read(PATH)).map(Self).map_err(|error| BtfError::Read(Arc::new(error)))
    }

    fn types(&self) -> Result<Types<'_>, BtfError> {
        Types::parse(&self.0).ok_or(BtfError::Format)
    }

    /// # Errors
    /// Where it is not understood, or has no such members.
    pub(super) fn task(&self) -> Result<Task, BtfError> {
        let types = self.types()?;
        let offset = |structure, member| {
            let found = types.member_offset(structure, member).map(u64::from);
            found.ok_or(BtfError::Missing(structure, member))
        };
        let runtime = offset("task_struct", "se")? + offset("sched_entity", "sum_exec_runtime")?;
        let quota = types.quota().unwrap_or_default();
        Ok(Task { pid: offset("task_struct", "pid")?, runtime, quota })
    }

    /// Where sockets keep what they are connected to.
    ///
    /// # Errors
    /// As [`Self::task`].
    pub(super) fn sockets(&self) -> Result<SocketLayout, BtfError> {
        let types = self.types()?;
        let offset = |structure, member| {
            types.member_offset(structure, member).ok_or(BtfError::Missing(structure, member))
        };
        let common = |member| offset("sock_common", member);
        Ok(SocketLayout {
            task_files: offset("task_struct", "files")?,
            files_table: offset("files_struct", "fdt")?,
            table_length: offset("fdtable", "max_fds")?,
            table_files: offset("fdtable", "fd")?,
            file_inode: offset("file", "f_inode")?,
            inode_mode: offset("inode", "i_mode")?,
            file_private: offset("file", "private_data")?,
            socket_sock: offset("socket", "sk")?,
            family: common("skc_family")?,
            state: common("skc_state")?,
            port: common("skc_dport")?,
            local_port: common("skc_num")?,
            address: common("skc_daddr")?,
            address6: common("skc_v6_daddr").unwrap_or(0),
        })
    }
}

/// The types.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each begins; the first has number 1.
    begin: Vec<u32>,
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        let header = word(bytes, 4)? as usize;
        let part = |n: usize| -> Option<&'a [u8]> {
            let begin = header.checked_add(word(bytes, n)? as usize)?;
            bytes.get(begin..begin.checked_add(word(bytes, n + 4)? as usize)?)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let (mut begin, mut at) = (Vec::new(), 0);
        while at < types.len() {
            begin.push(u32::try_from(at).ok()?);
            let info = word(types, at + 4)?;
            let count = (info & 0xffff) as usize;
            at += 12
                + match info >> 24 & 31 {
                    // An integer, a variable, a tag of a declaration.
                    1 | 14 | 17 => 4,
                    // An array.
                    3 => 12,
                    // Structures, sections, enumerations of 64 bits.
                    STRUCT | UNION | 15 | 19 => 12 * count,
                    // Enumerations, parameters of functions.
                    6 | 13 => 8 * count,
                    // Pointers, names, qualifiers, functions, floating-point numbers.
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return None,
                };
        }
        (magic == MAGIC).then_some(Self { types, strings, begin })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        let found = self.begin.iter().find(|&&at| {
            let (name, info) = (word(self.types, at as usize), word(self.types, at as usize + 4));
            info.is_some_and(|info| info >> 24 & 31 == STRUCT)
                && name.is_some_and(|name| self.is_named(name, structure))
        })?;
        self.within(*found as usize, member, MAX_DEPTH).filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
    }

    /// `None` in kernels that have no CPU quotas (`CONFIG_CFS_BANDWIDTH`), or keep that elsewhere.
    fn quota(&self) -> Option<QuotaLayout> {
        if let Some(marked) = self.member_offset("task_struct", "throttled") {
            return Some(QuotaLayout { marked, ..QuotaLayout::NONE });
        }
        let state = ["__state", "state"].into_iter().find_map(|m| self.member_offset("task_struct", m))?;
        let times = ["throttled_clock_self_time", "throttled_clock_pelt_time", "throttled_clock_task_time"];
        Some(QuotaLayout {
            marked: 0,
            state,
            queue: self.member_offset("task_struct", "se")? + self.member_offset("sched_entity", "cfs_rq")?,
            throttle_count: self.member_offset("cfs_rq", "throttle_count")?,
            throttled_time: times.into_iter().find_map(|member| self.member_offset("cfs_rq", member))?,
        })
    }

    /// The offset in bits of a member of the structure that begins there.
    fn within(&self, at: usize, wanted: &str, depth: u32) -> Option<u32> {
        let info = word(self.types, at + 4)?;
        if !matches!(info >> 24 & 31, STRUCT | UNION) {
            return None;
        }
        (0..(info & 0xffff) as usize).find_map(|n| {
            let at = at + 12 + 12 * n;
            let (name, number, offset) =
                (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            // In structures with bit fields the upper bits are the field's width.
            let offset = if info >> 31 == 0 { offset } else { offset & 0x00ff_ffff };
            if self.is_named(name, wanted) {
                return Some(offset);
            }
            if !self.is_named(name, "") {
                return None;
            }
            let inner = *self.begin.get((number as usize).checked_sub(1)?)?;
            Some(offset + self.within(inner as usize, wanted, depth.checked_sub(1)?)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a:3; struct { long b; struct { int c; }; }; }`, an enumeration before it.
    fn example() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0x\0";
        let structure = |count: u32, flag: u32| flag << 31 | STRUCT << 24 | count;
        let types: Vec<u32> = [
            &[1, 1 << 24, 4, 32][..],
            &[0, 6 << 24 | 2, 4, 17, 0, 17, 1],
            &[0, structure(1, 0), 4, 15, 1, 0],
            &[0, structure(2, 0), 16, 13, 1, 0, 0, 3, 64],
            &[5, structure(2, 1), 24, 11, 1, 3 << 24, 0, 4, 64],
        ]
        .concat();
        let lengths = [24, 0, 4 * types.len(), 4 * types.len(), strings.len()];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        bytes.extend(lengths.iter().flat_map(|n| u32::try_from(*n).expect("small").to_ne_bytes()));
        bytes.extend(types.iter().flat_map(|n| n.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_within_structures_without_a_name() {
        let bytes = example();
        let types = Types::parse(&bytes).expect("parses");
        assert_eq!(types.begin.len(), 5);
        assert_eq!(types.member_offset("outer", "a"), Some(0));
        assert_eq!(types.member_offset("outer", "b"), Some(8));
        assert_eq!(types.member_offset("outer", "c"), Some(16));
        assert_eq!(types.member_offset("outer", "x"), None);
        assert_eq!(types.member_offset("oute", "a"), None);
    }

    #[test]
    fn what_is_cut_off_is_not_known() {
        let bytes = example();
        for length in 0..bytes.len() {
            let found = Types::parse(&bytes[..length]).and_then(|types| types.member_offset("outer", "c"));
            assert_eq!(found, None, "{length} bytes");
        }
    }

    #[test]
    fn the_running_kernel_tells() {
        match Kernel::read().and_then(|kernel| Ok((kernel.task()?, kernel.sockets()?))) {
            Ok((Task { pid, runtime, .. }, sockets)) => {
                assert!(pid > 0 && runtime > 0 && pid.max(runtime) < 1 << 16, "{pid}, {runtime}");
                assert!(sockets.task_files > 0 && sockets.socket_sock > 0, "{sockets:?}");
                // `skc_daddr` is the first of all.
                assert!(sockets.address == 0 && sockets.family > 0 && sockets.port > 0, "{sockets:?}");
            }
            Err(BtfError::Read(error)) => crate::not_tested(error),
            Err(error) => panic!("{error}"),
        }
    }
}
