//! Who holds the file lock that a process waits for, as `/proc/locks` tells (the kernel's `fs/locks.c`, `lock_get_status`).
//!
//! A line is a lock that is held; lines with an arrow behind it, with the same number, are those that wait for it. Input:
//! that text, the process, and the file by the device and inode that the kernel's own tables give it, so that the file
//! is not touched. Output: the holder; `None` where it is not told, or of the process's waits for that file not all are
//! for the same.

/// A file, as `/proc/locks` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
}

impl FileId {
    /// Of a descriptor, by its `/proc/PID/fdinfo/N` (since Linux 5.14 with the inode) and `/proc/PID/mountinfo`.
    pub fn of(fdinfo: &str, mountinfo: &str) -> Option<Self> {
        let field = |name: &str| fdinfo.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let (mount, inode) = (field("mnt_id:")?, field("ino:")?.parse().ok()?);
        let mut fields = mountinfo.lines().map(str::split_whitespace);
        let mut line = fields.find_map(|mut l| (l.next() == Some(mount)).then_some(l))?;
        let (major, minor) = line.nth(1)?.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()?, inode })
    }
}

/// A line.
struct Line<'a> {
    number: &'a str,
    waits: bool,
    pid: i64,
    file: FileId,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let mut fields = line.split_whitespace();
    let number = fields.next()?.strip_suffix(':')?;
    let mut rest = fields.peekable();
    let waits = rest.next_if_eq(&"->").is_some();
    // Kind, mode, access.
    let pid = rest.nth(3)?.parse().ok()?;
    let mut file = rest.next()?.split(':');
    let mut hex = || u32::from_str_radix(file.next()?, 16).ok();
    let (major, minor) = (hex()?, hex()?);
    Some(Line { number, waits, pid, file: FileId { major, minor, inode: file.next()?.parse().ok()? } })
}

/// The process that holds the lock of a file that another one waits for.
pub(super) fn holder(locks: &str, waiter: u32, file: FileId) -> Option<u32> {
    let mut held: Option<Line<'_>> = None;
    let mut holder = None;
    for line in locks.lines().filter_map(parse) {
        if !line.waits {
            held = Some(line);
            continue;
        }
        if line.pid != i64::from(waiter) || line.file != file {
            continue;
        }
        let by = held.as_ref().filter(|h| h.number == line.number).map(|h| h.pid)?;
        if holder.is_some_and(|known| known != by) {
            return None;
        }
        holder = Some(by);
    }
    // -1: of an open file description, which several processes may have.
    u32::try_from(holder?).ok().filter(|&pid| pid != 0)
}

/// For the fuzzer: a descriptor's text, the mounts behind a byte 0, and the locks.
pub(crate) fn fuzz(text: &str) {
    let (info, mounts) = text.split_once('\0').unwrap_or((text, text));
    let file = FileId::of(info, mounts).unwrap_or(FileId { major: 0, minor: 0, inode: 1 });
    let _ = holder(text, 1, file);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 723 00:14:16845 0 EOF
2: FLOCK  ADVISORY  WRITE 4711 fd:0a:396528 0 EOF
2: -> FLOCK  ADVISORY  WRITE 99 fd:0a:396528 0 EOF
2:  -> FLOCK  ADVISORY  READ 98 fd:0a:396528 0 EOF
3: OFDLCK ADVISORY  READ  -1 00:06:1028 0 EOF
3: -> OFDLCK ADVISORY  WRITE  99 00:06:1028 0 EOF
4: POSIX  ADVISORY  WRITE 5 00:07:7 0 9
4: -> POSIX  ADVISORY  WRITE 99 00:07:7 0 9
5: POSIX  ADVISORY  WRITE 6 00:07:7 10 19
5: -> POSIX  ADVISORY  WRITE 99 00:07:7 10 19
";

    const fn file(major: u32, minor: u32, inode: u64) -> FileId {
        FileId { major, minor, inode }
    }

    #[test]
    fn the_line_before_says_who_holds_it() {
        for (waiter, of, expected) in [
            (99, file(0xfd, 0x0a, 396_528), Some(4711)),
            (98, file(0xfd, 0x0a, 396_528), Some(4711)),
            (97, file(0xfd, 0x0a, 396_528), None),
            (99, file(0xfd, 0x0b, 396_528), None),
            // Of an open file description.
            (99, file(0, 6, 1028), None),
            // Two waits of one process, for different holders.
            (99, file(0, 7, 7), None),
        ] {
            assert_eq!(holder(LOCKS, waiter, of), expected, "{waiter} {of:?}");
        }
        for hostile in ["", ":", "1: -> FLOCK A W 99 fd:0a:396528 0 EOF", "1:\n2: -> \n3: a b c d e f"] {
            assert_eq!(holder(hostile, 99, file(0xfd, 0x0a, 396_528)), None, "{hostile}");
        }
    }

    #[test]
    fn a_file_is_told_without_touching_it() {
        let fdinfo = "pos:\t0\nflags:\t0100002\nmnt_id:\t29\nino:\t396528\n";
        let mountinfo = "\
21 28 0:20 / /proc rw - proc proc rw
29 1 253:10 / / rw,relatime shared:1 - ext4 /dev/vda rw
";
        assert_eq!(FileId::of(fdinfo, mountinfo), Some(file(253, 10, 396_528)));
        assert_eq!(FileId::of("pos:\t0\nmnt_id:\t29\n", mountinfo), None);
        assert_eq!(FileId::of(fdinfo, ""), None);
    }
}
