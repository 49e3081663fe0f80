//! File systems that need not answer: a user process or another machine serves them (FUSE, NFS, …), and whoever asks such
//! a server waits for it, without end and whatever signal comes.
//!
//! Input: the number of a mount or of a device. Output: what lies there, as mount tables have it, which the kernel itself
//! answers for. Errors: none; what no table has is not known.

use std::{
    cell::OnceCell,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::target::{read_own, read_text};

/// Major and minor number of a device.
pub type Device = (u32, u32);

/// What a file lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// The kernel answers for it, with the disks of this machine.
    Local,
    /// The same, of several layers.
    Overlay,
    /// A user process or another machine does, or does for a layer.
    Served(String),
}

/// Mount tables in which a mount may be found: the process's, gotrace's, the host's. Each is read when it is needed.
pub(super) struct Mounts<'a> {
    /// `/proc/PID`.
    directory: Option<&'a OwnedFd>,
    tables: [OnceCell<String>; 3],
}

impl<'a> Mounts<'a> {
    /// Of a process; without one, of gotrace and the host.
    pub fn of(directory: Option<&'a OwnedFd>) -> Self {
        Self { directory, tables: Default::default() }
    }

    /// What the mount with this number is; `None` where that is not known.
    pub fn mount(&self, id: u64) -> Option<FileSystem> {
        self.find(0, &id.to_string())
    }

    /// What lies on this device; `None` where that is not known.
    pub fn device(&self, device: Device) -> Option<FileSystem> {
        self.find(2, &format!("{}:{}", device.0, device.1))
    }

    fn table(&self, n: usize) -> &str {
        self.tables[n].get_or_init(|| match n {
            0 => self.directory.and_then(|of| read_text(of, "mountinfo")).unwrap_or_default(),
            1 => read_own("/proc/self/mountinfo"),
            _ => read_own("/proc/1/mountinfo"),
        })
    }

    /// By the line that has this in a column.
    fn find(&self, column: usize, value: &str) -> Option<FileSystem> {
        let has = |line: &&str| line.split(' ').nth(column) == Some(value);
        let line = (0..3).find_map(|n| self.table(n).lines().find(has))?;
        Some(match type_of(line) {
            kind if is_served_type(line) => FileSystem::Served(kind.to_owned()),
            "overlay" if has_served_layer(line, &[0, 1, 2].map(|n| self.table(n))) => FileSystem::Served(
                "an overlay with a layer that a user process or another machine serves".into(),
            ),
            "overlay" => FileSystem::Overlay,
            _ => FileSystem::Local,
        })
    }
}

/// What the type of a file system, as statfs(2) tells it, means.
pub(super) fn by_magic(magic: u64) -> FileSystem {
    match SERVED.iter().find(|(number, _)| *number == magic) {
        Some((_, name)) => FileSystem::Served((*name).to_owned()),
        None if magic == OVERLAY => FileSystem::Overlay,
        None => FileSystem::Local,
    }
}

/// Magic numbers of file systems that a user process or another machine serves (include/uapi/linux/magic.h and the
/// file systems' own sources).
const SERVED: [(u64, &str); 13] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
];
/// The same, by the names that mount tables have for them.
const SERVED_TYPES: [&str; 14] = [
    "fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "coda", "lustre",
    "gfs2", "ocfs2",
];
const OVERLAY: u64 = 0x794c_7630;

/// Whether a layer of the overlay that this line of a mount table is of is served, by what mount tables say of layers.
fn has_served_layer(line: &str, tables: &[&str]) -> bool {
    layers(line).into_iter().any(|layer| {
        let served = |table: &&str| {
            let holds = |at: &str| {
                let at = PathBuf::from(unescape(at));
                if layer.is_absolute() { layer.starts_with(&at).then(|| at.as_os_str().len()) } else { None }
            };
            // The mount that a layer lies on is the one with the longest path, the last of those alike.
            let lies_on = table
                .lines()
                .filter_map(|line| Some((holds(line.split(' ').nth(4)?)?, line)))
                .max_by_key(|(length, _)| *length);
            // A layer that is named relative to a directory of its container engine's: by the end of its path.
            let by_end = || {
                table.lines().any(|line| {
                    is_served_type(line)
                        && line.split(' ').nth(4).is_some_and(|at| Path::new(at).ends_with(&layer))
                })
            };
            match lies_on {
                Some((_, line)) => is_served_type(line),
                None => !layer.is_absolute() && by_end(),
            }
        };
        tables.iter().any(served)
    })
}

/// Whether a line of a mount table is of a file system that is served: what stands behind the ` - `.
fn is_served_type(line: &str) -> bool {
    let kind = type_of(line);
    SERVED_TYPES.contains(&kind) || kind.starts_with("fuse.")
}

fn type_of(line: &str) -> &str {
    line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default()
}

/// The directories that an overlay is made of, as its line in a mount table has them.
fn layers(line: &str) -> Vec<PathBuf> {
    let options = line.split_once(" - ").and_then(|(_, rest)| rest.splitn(3, ' ').nth(2)).unwrap_or_default();
    let mut layers = Vec::new();
    for option in options.split(',') {
        let Some((name, value)) = option.split_once('=') else { continue };
        if matches!(name, "lowerdir" | "upperdir" | "lowerdir+" | "datadir+") {
            // Colons part layers; one within a name stands behind a backslash, itself escaped in the table.
            layers.extend(
                value
                    .replace("\\134:", "\u{1}")
                    .split(':')
                    .filter(|l| !l.is_empty())
                    .map(|l| PathBuf::from(unescape(&l.replace('\u{1}', ":")))),
            );
        }
    }
    layers
}

/// A name as mount tables write it: space, tab, newline and backslash as three octal digits.
pub(super) fn unescape(name: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(name.to_owned(), |name, (escape, character)| name.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(tables: [String; 3]) -> Mounts<'static> {
        Mounts { directory: None, tables: tables.map(OnceCell::from) }
    }

    #[test]
    fn layers_are_read_as_the_kernel_writes_them() {
        let line =
            "54 29 0:49 / /m rw - overlay overlay rw,lowerdir=/a\\040b:l/X:/c\\134:d,upperdir=/u,workdir=/w";
        let expected = ["/a b", "l/X", "/c:d", "/u"].map(PathBuf::from);
        assert_eq!(layers(line), expected);
        assert!(is_served_type("1 2 0:3 / /x rw - fuse.bindfs bindfs rw"));
        assert!(!is_served_type(line));
        let host = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / /c:d rw - fuse.sshfs b rw\n".to_owned();
        let local = host.replace("fuse.sshfs", "xfs");
        let with = |host| tables([line.to_owned(), String::new(), host]).mount(54);
        assert!(matches!(with(host), Some(FileSystem::Served(_))), "a layer lies on what is served");
        assert_eq!(with(local), Some(FileSystem::Overlay));
    }

    #[test]
    fn what_lies_on_a_device_is_found_in_any_table() {
        let line = |device: &str, kind: &str| format!("36 35 {device} / /m rw - {kind} source rw\n");
        let its =
            [line("98:0", "ext4"), line("0:40", "fuse.sshfs"), line("0:41", "nfs4"), line("0:42", "tmpfs")];
        let mounts = tables([its.concat(), String::new(), line("0:43", "virtiofs")]);
        let served = [(98, 0), (0, 40), (0, 41), (0, 42), (0, 43), (0, 44)]
            .map(|d| mounts.device(d).map(|found| found != FileSystem::Local));
        assert_eq!(served, [Some(false), Some(true), Some(true), Some(false), Some(true), None]);
        assert_eq!(by_magic(0x6573_5546), FileSystem::Served("FUSE".into()));
        assert_eq!((by_magic(0xef53), by_magic(OVERLAY)), (FileSystem::Local, FileSystem::Overlay));
    }
}
