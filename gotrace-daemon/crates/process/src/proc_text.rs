//! What `/proc/PID` says of a process, parsed. Much of it is chosen by whoever runs the process: its name, the paths of
//! what it maps, how many mappings there are and how long their lines.
//!
//! Invariants: no input panics; no more is kept than a bound, whatever the text. Input: bytes of `stat` and `status`, a
//! reader of `maps`. Output: [`Stat`], [`Status`], [`MapLine`]s; `None`, or an error, where the text is not what the
//! kernel writes or has no end.

use std::{
    ffi::OsString,
    io::{self, BufRead as _, BufReader, Read},
    ops::Range,
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};

/// Bytes of a memory map that are read at most, and of one of its lines that are kept.
const MAX_MAP_BYTES: u64 = 64 << 20;
const MAX_MAP_LINE: usize = 1 << 15;

/// `/proc/PID/stat`, as far as it is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The name, which may hold any byte.
    pub comm: String,
    pub state: char,
    /// `PF_…` of the kernel's `include/linux/sched.h`.
    pub flags: u32,
    /// User and system time, in clock ticks.
    pub utime: u64,
    pub stime: u64,
    /// Start, in clock ticks since boot.
    pub start_ticks: u64,
    /// Where the stack begins, and where arguments and environment lie; 0 without permission.
    pub stack_start: u64,
    pub arguments: Range<u64>,
    pub environment: Range<u64>,
}

/// `PF_EXITING` of the kernel's `include/linux/sched.h`.
const PF_EXITING: u32 = 0x4;

impl Stat {
    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Whether it has ended, or has begun to.
    pub fn is_ending(&self) -> bool {
        self.has_ended() || self.flags & PF_EXITING != 0
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (name_start, name_end) =
            (bytes.iter().position(|&b| b == b'(')?, bytes.iter().rposition(|&b| b == b')')?);
        let comm = String::from_utf8_lossy(bytes.get(name_start + 1..name_end)?).into_owned();
        let rest = std::str::from_utf8(bytes.get(name_end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(64).collect();
        // By their numbers in proc(5). Some older kernels have fewer.
        let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
        let number = |n| field(n).and_then(|text| text.parse::<u64>().ok());
        let or_zero = |n| number(n).unwrap_or(0);
        Some(Self {
            comm,
            state: field(3)?.chars().next()?,
            flags: u32::try_from(number(9)?).ok()?,
            utime: number(14)?,
            stime: number(15)?,
            start_ticks: number(22)?,
            stack_start: or_zero(28),
            arguments: or_zero(48)..or_zero(49),
            environment: or_zero(50)..or_zero(51),
        })
    }
}

/// `/proc/PID/status`, as far as it is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Thread group: the process that a thread belongs to.
    pub tgid: u32,
    /// Effective user.
    pub euid: u32,
    /// Threads; 0 where the kernel does not tell.
    pub threads: usize,
    /// Who traces it; 0 for nobody.
    pub tracer: u32,
    /// Whether the thread has a SIGKILL pending.
    pub is_killed: bool,
    /// Its pid in each namespace, the reader's first; `None` where the kernel does not tell.
    pub namespace_pids: Option<Vec<u32>>,
}

impl Status {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        // The kernel escapes newlines in the name, the first line.
        let text = String::from_utf8_lossy(bytes);
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let numbers = |name: &str| -> Option<Vec<u32>> {
            value(name)?.split_ascii_whitespace().map(|n| n.parse().ok()).collect()
        };
        Some(Self {
            tgid: *numbers("Tgid")?.first()?,
            euid: *numbers("Uid")?.get(1)?,
            threads: numbers("Threads").and_then(|n| n.first().copied()).unwrap_or(0) as usize,
            tracer: *numbers("TracerPid")?.first()?,
            is_killed: value("SigPnd")
                .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
                .is_some_and(|set| set & (1 << (libc::SIGKILL - 1)) != 0),
            namespace_pids: numbers("NSpid").filter(|pids| !pids.is_empty()),
        })
    }
}

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapLine<'a> {
    pub range: Range<u64>,
    pub executable: bool,
    /// Offset in the file of what is at the beginning.
    pub offset: u64,
    /// Major and minor number of the device that the file lies on.
    pub device: (u32, u32),
    /// 0 where there is no file.
    pub inode: u64,
    /// The path, or what stands there instead; newlines are written as `\012`. Cut off where it is very long.
    pub path: &'a [u8],
}

impl<'a> MapLine<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let mut next = || {
            let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after.strip_prefix(b" ").unwrap_or(after);
            std::str::from_utf8(word).ok()
        };
        let (start, end) = next()?.split_once('-')?;
        let range = hex(start)?..hex(end)?;
        if range.end < range.start {
            return None;
        }
        let permissions = next()?;
        let offset = hex(next()?)?;
        let (major, minor) = next()?.split_once(':')?;
        let inode = next()?.parse().ok()?;
        let spaces = rest.iter().take_while(|&&b| b == b' ').count();
        Some(Self {
            range,
            executable: permissions.as_bytes().get(2) == Some(&b'x'),
            offset,
            device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode,
            path: rest.get(spaces..).unwrap_or_default(),
        })
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// The kernel appends ` (deleted)` to the path of a file that has no name any more.
pub(crate) fn split_deleted(link: &[u8]) -> (PathBuf, bool) {
    match link.strip_suffix(b" (deleted)") {
        Some(path) => (OsString::from_vec(path.to_vec()).into(), true),
        None => (OsString::from_vec(link.to_vec()).into(), false),
    }
}

/// The map writes a newline in a name as `\012`, the link does not.
pub(crate) fn escape_newlines(name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for &b in name {
        if b == b'\n' {
            escaped.extend_from_slice(b"\\012");
        } else {
            escaped.push(b);
        }
    }
    escaped
}

/// Calls `f` with each line of a memory map, lowest address first. Lines that are not understood are left out.
///
/// # Errors
/// What reading answers; and where the map is longer than 64 MiB.
pub(crate) fn read_maps(reader: impl Read, mut f: impl FnMut(&MapLine<'_>)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, reader.take(MAX_MAP_BYTES));
    let mut line: Vec<u8> = Vec::new();
    let mut total: u64 = 0;
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            break;
        }
        let end = buffer.iter().position(|&b| b == b'\n');
        let piece = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = MAX_MAP_LINE.saturating_sub(line.len());
        line.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        let consumed = piece.len() + usize::from(end.is_some());
        if end.is_some() {
            if let Some(line) = MapLine::parse(&line) {
                f(&line);
            }
            line.clear();
        }
        reader.consume(consumed);
        total = total.saturating_add(consumed as u64);
    }
    if total >= MAX_MAP_BYTES {
        return Err(io::Error::other(format!("it is longer than {} MiB", MAX_MAP_BYTES >> 20)));
    }
    Ok(())
}

/// Where in gotrace's own file an address of its code is; `None` where its memory map does not show it.
#[must_use]
pub fn own_file_offset(address: u64) -> Option<u64> {
    let mut found = None;
    read_maps(std::fs::File::open("/proc/self/maps").ok()?, |line| {
        if line.executable && line.range.contains(&address) {
            found = Some(address - line.range.start + line.offset);
        }
    })
    .ok()?;
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &[u8]) -> Vec<(Range<u64>, bool, Vec<u8>)> {
        let mut lines = Vec::new();
        read_maps(text, |line| lines.push((line.range.clone(), line.executable, line.path.to_vec())))
            .expect("not endless");
        lines
    }

    #[test]
    fn maps_are_read_whatever_the_paths() {
        let text = b"00400000-00500000 r-xp 00001000 103:02 77                 /a b\\012c (deleted)\n\
            7f0000000000-7f0000001000 rw-s 00000000 00:01 5 /SYSVnot a number\n\
            7f0000001000-7f0000002000 rw-s 00000000 00:01 6 /SYSV\n\
            nonsense\n\
            7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n\
            7f0000003000-7f0000004000 rw-p 00000000 00:00 0 \n";
        let found = lines(text);
        let paths: Vec<&[u8]> = found.iter().map(|(.., path)| path.as_slice()).collect();
        let expected: [&[u8]; 6] =
            [b"/a b\\012c (deleted)", b"/SYSVnot a number", b"/SYSV", b"[stack]", b"[vsyscall]", b""];
        assert_eq!(paths, expected);
        assert_eq!(found.first().map(|f| (f.0.clone(), f.1)), Some((0x40_0000..0x50_0000, true)));
    }

    #[test]
    fn a_line_without_end_is_not_kept_and_an_endless_map_is_refused() {
        let mut text = b"1000-2000 r--p 0 0:1 1 /".to_vec();
        text.resize(3 << 20, b'x');
        text.extend_from_slice(b"\n2000-3000 r--p 0 0:1 1 /y\n");
        let found = lines(&text);
        assert_eq!(found.iter().map(|f| f.0.start).collect::<Vec<_>>(), [0x1000, 0x2000]);
        assert!(found[0].2.len() <= MAX_MAP_LINE);
        let endless = io::repeat(b'x');
        assert!(read_maps(endless, |_| {}).is_err());
    }

    #[test]
    fn a_name_may_hold_anything() {
        let text =
            b"42 (a) R 1 (b\xff\n) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9000 0 0 0 1 1 4096";
        let stat = Stat::parse(text).expect("the last bracket ends the name");
        assert_eq!(stat.comm, "a) R 1 (b\u{fffd}\n");
        assert_eq!(
            (stat.state, stat.flags, stat.utime, stat.stime, stat.start_ticks),
            ('S', 4_194_560, 5, 6, 9000)
        );
        assert_eq!((stat.stack_start, stat.arguments), (4096, 0..0));
    }

    #[test]
    fn this_process_is_read() {
        let read = |name: &str| std::fs::read(format!("/proc/self/{name}")).expect("readable");
        let stat = Stat::parse(&read("stat")).expect("as the kernel writes it");
        assert!(stat.stack_start > 0 && stat.arguments.end > stat.arguments.start);
        let status = Status::parse(&read("status")).expect("as the kernel writes it");
        assert_eq!(status.tgid, std::process::id());
        assert_eq!(own_file_offset(8), None);
        assert!(own_file_offset(this_process_is_read as fn() as usize as u64).is_some());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (Stat::parse(&text), Status::parse(&text), lines(&text));
        }

        #[test]
        fn nothing_panics_that_looks_like_it(text in "[0-9a-f]{0,20}[- ][0-9a-f]{0,20} ?[rwxp-]{0,5} ?[0-9a-f:]{0,9} ?[0-9a-f:(]{0,9} [ )]{0,3}[0-9]{0,30} ?/?(SYSV)?.{0,20}\n?") {
            let _ = (Stat::parse(text.as_bytes()), Status::parse(text.as_bytes()), lines(text.as_bytes()));
        }

        #[test]
        fn a_mapping_is_found_whatever_its_path(path in "[^\n\u{0}]{0,300}") {
            let text = format!("1000-2000 r-xp 00000000 08:01 1234    /{path}\n");
            let found = lines(text.as_bytes());
            prop_assert_eq!(found.len(), 1);
            let expected = format!("/{path}").into_bytes();
            prop_assert_eq!(&found[0].2, &expected);
        }
    }
}
