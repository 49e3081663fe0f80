//! What a process's descriptors and system calls lead to: sockets with their peers, pipes, files, child processes, and
//! who holds a file lock.
//!
//! Input: `/proc/PID`: links in `fd`, `fdinfo`, the tables in `net` of the process's own network namespace, `task`, and
//! the kernel's `/proc/locks`. No descriptor is opened or duplicated and no file of the process touched, which may be on
//! a file system that never answers. What is not known is `None`. Texts are bounded, and to be escaped where they are
//! shown.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::fs::{CWD, readlinkat};

use super::{
    RawCall, SystemCall,
    file_locks::{FileId, holder},
    passing::again,
    sockets::Sockets,
    system_calls::Awaited,
    target::{open_again, read_beginning},
};

/// Bytes of a small file of `/proc` that are read.
const SMALL: u64 = 1 << 16;
/// Bytes of the kernel's table of file locks and of a list of mounts that are read.
const LARGE: u64 = 4 << 20;
/// Threads and children whose numbers in the process's own PID namespace are looked up.
const MAX_TASKS: usize = 1 << 14;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A TCP socket.
    Tcp,
    /// A UDP socket.
    Udp,
    /// A unix socket.
    Unix,
    /// A pipe or FIFO without a name.
    Pipe,
    /// A file, device or FIFO with a path.
    File,
    /// An eventfd.
    Eventfd,
    /// A process.
    Pidfd,
    /// Anything else.
    #[default]
    Other,
}

impl FileKind {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
            Self::Pipe => "pipe",
            Self::File => "file",
            Self::Eventfd => "eventfd",
            Self::Pidfd => "pidfd",
            Self::Other => "other",
        }
    }
}

/// A process, by its number in gotrace's PID namespace and the kernel's name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedProcess {
    /// Its number.
    pub pid: u32,
    /// Its name, at most 15 bytes; `None` when it is gone.
    pub name: Option<Box<str>>,
}

impl NamedProcess {
    fn of(pid: u32) -> Self {
        let name = small(CWD, &format!("/proc/{pid}/comm"), SMALL);
        Self { pid, name: name.map(|n| n.trim_end_matches('\n').into()) }
    }
}

/// An open file description, as Linux calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenFile {
    /// What it is.
    pub kind: FileKind,
    /// A socket's own address (`10.0.0.2:41000`, the path of a unix socket).
    pub local: Option<Box<str>>,
    /// The address at its other end.
    pub peer: Option<Box<str>>,
    /// A socket's state (`established`, `listen`; of a unix socket `connected`).
    pub state: Option<&'static str>,
    /// Bytes that arrived and were not read.
    pub unread_bytes: Option<u64>,
    /// Bytes that the peer has not acknowledged.
    pub unsent_bytes: Option<u64>,
    /// A file's path, as its own mount namespace has it.
    pub path: Option<Box<str>>,
    /// The process that a pidfd is of.
    pub process: Option<NamedProcess>,
    /// Whether a socket's connection was opened by its peer; `None` where there is none, or that is not known.
    pub accepted: Option<bool>,
}

impl OpenFile {
    pub(super) fn new(kind: FileKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// A file with a path.
    #[must_use]
    pub fn with_path(path: &str) -> Self {
        Self { path: Some(path.into()), ..Self::new(FileKind::File) }
    }

    /// Whether connections come to it.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.state == Some("listen")
    }
}

/// Descriptors of one process that were looked up.
#[derive(Debug, Default)]
pub struct Described {
    /// By number; those that are closed are missing.
    pub files: HashMap<u32, OpenFile>,
    /// Whether there are so many sockets that some were not looked for.
    pub sockets_cut: bool,
}

/// A look at one process's `/proc` directory.
#[derive(Clone, Debug)]
pub struct OpenFiles {
    pid: u32,
    directory: Arc<OwnedFd>,
    /// How deep its PID namespace lies in gotrace's; 0 for the same.
    depth: usize,
}

impl OpenFiles {
    pub(super) fn new(pid: u32, directory: Arc<OwnedFd>, depth: usize) -> Self {
        Self { pid, directory, depth }
    }

    /// What descriptors are. Reads the tables of sockets once, if there are any among them.
    #[must_use]
    pub fn describe(&self, descriptors: &BTreeSet<u32>) -> Described {
        let mut files = HashMap::new();
        let mut sockets: HashMap<u32, u64> = HashMap::new();
        for &number in descriptors {
            let name = format!("fd/{number}");
            let link = again(&name, || Ok(readlinkat(&*self.directory, &name, Vec::new())?));
            let Ok(link) = link else { continue };
            let link = String::from_utf8_lossy(link.as_bytes());
            let mut file = of_link(&link);
            if let Some(inode) = inode(&link, "socket") {
                sockets.insert(number, inode);
            }
            if file.kind == FileKind::Pidfd {
                let text = self.text(&format!("fdinfo/{number}"), SMALL).unwrap_or_default();
                let pid = text.lines().find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok());
                file.process = pid.filter(|&p: &u32| p > 0).map(NamedProcess::of);
            }
            files.insert(number, file);
        }
        let mut sockets_cut = false;
        if !sockets.is_empty() {
            let wanted: HashSet<u64> = sockets.values().copied().collect();
            let tables = Sockets::read(&self.directory, &wanted);
            let missing = sockets.values().any(|inode| !tables.found.contains_key(inode));
            sockets_cut = tables.cut && missing;
            for (number, inode) in sockets {
                if let Some(socket) = tables.found.get(&inode) {
                    files.insert(number, socket.clone());
                }
            }
        }
        Described { files, sockets_cut }
    }

    /// The threads' numbers in `/proc`, by their numbers in the process's own PID namespace; `None` where these are the
    /// same.
    #[must_use]
    pub fn threads(&self) -> Option<HashMap<u32, u32>> {
        if self.depth == 0 {
            return None;
        }
        let directory = open_again(&*self.directory, "task");
        let entries =
            directory.and_then(|d| Ok(rustix::fs::Dir::read_from(d)?)).into_iter().flatten().flatten();
        let numbers = entries.filter_map(|e| e.file_name().to_str().ok()?.parse().ok()).take(MAX_TASKS);
        let own = |thread: u32| {
            let status = self.text(&format!("task/{thread}/status"), SMALL)?;
            Some((number_at(&status, self.depth)?, thread))
        };
        Some(numbers.filter_map(own).collect())
    }

    /// The system call that a thread is in, by its number in `/proc`; `None` when it runs.
    #[must_use]
    pub fn raw_call(&self, thread: u32) -> Option<RawCall> {
        RawCall::parse(&self.text(&format!("task/{thread}/syscall"), SMALL)?)
    }

    /// The descriptor that a call is about.
    #[must_use]
    pub fn descriptor_of(&self, call: &RawCall) -> Option<u32> {
        call.named().descriptor
    }

    /// What a call waits for. `files`: what its descriptor is.
    #[must_use]
    pub fn explain(&self, call: &RawCall, files: &HashMap<u32, OpenFile>) -> SystemCall {
        let mut named = call.named();
        named.file = named.descriptor.and_then(|fd| files.get(&fd)).cloned();
        if call.may_wait_for_lock() {
            named.held_by = named.descriptor.and_then(|fd| self.lock_holder(fd)).map(NamedProcess::of);
        }
        named.child = match call.awaited() {
            Some(Awaited::Child(pid)) => self.child(pid).map(NamedProcess::of),
            Some(Awaited::Descriptor(_)) => named.file.as_ref().and_then(|f| f.process.clone()),
            None => None,
        };
        named
    }

    fn lock_holder(&self, descriptor: u32) -> Option<u32> {
        let fdinfo = self.text(&format!("fdinfo/{descriptor}"), SMALL)?;
        let file = FileId::of(&fdinfo, &self.text("mountinfo", LARGE)?)?;
        holder(&small(CWD, "/proc/locks", LARGE)?, self.pid, file)
    }

    /// A child's number in gotrace's PID namespace.
    fn child(&self, pid: u32) -> Option<u32> {
        if self.depth == 0 {
            return Some(pid);
        }
        let threads = self.threads()?;
        let children = threads.values().filter_map(|t| self.text(&format!("task/{t}/children"), SMALL));
        let all: Vec<u32> =
            children.flat_map(|c| c.split(' ').filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect();
        all.into_iter().take(MAX_TASKS).find(|child| {
            let status = small(CWD, &format!("/proc/{child}/status"), SMALL);
            status.and_then(|s| number_at(&s, self.depth)) == Some(pid)
        })
    }

    fn text(&self, name: &str, most: u64) -> Option<String> {
        small(&*self.directory, name, most)
    }
}

/// What a link in `/proc/PID/fd` says: a path, or what has none.
fn of_link(link: &str) -> OpenFile {
    match link {
        "anon_inode:[eventfd]" => OpenFile::new(FileKind::Eventfd),
        _ if link.starts_with('/') => OpenFile::with_path(link),
        _ if inode(link, "pipe").is_some() => OpenFile::new(FileKind::Pipe),
        _ if link == "anon_inode:[pidfd]" || inode(link, "pidfd").is_some() => OpenFile::new(FileKind::Pidfd),
        _ => OpenFile::default(),
    }
}

/// The number of `socket:[12345]`.
fn inode(link: &str, kind: &str) -> Option<u64> {
    link.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// The number of a thread or process in the PID namespace so many levels below gotrace's.
fn number_at(status: &str, depth: usize) -> Option<u32> {
    status.lines().find_map(|l| l.strip_prefix("NSpid:"))?.split_whitespace().nth(depth)?.parse().ok()
}

/// For the fuzzer: a link of `/proc/PID/fd`, and a thread's status.
pub(crate) fn fuzz(text: &str) {
    let _ = (of_link(text), number_at(text, 1));
}

/// The beginning of a file of `/proc`.
fn small(directory: impl std::os::fd::AsFd, name: &str, most: u64) -> Option<String> {
    let bytes = read_beginning(directory, name, most).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd as _,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::Target;

    #[test]
    fn links_say_what_a_descriptor_is() {
        for (link, kind) in [
            ("pipe:[41]", FileKind::Pipe),
            ("pidfd:[41]", FileKind::Pidfd),
            ("anon_inode:[pidfd]", FileKind::Pidfd),
            ("anon_inode:[eventfd]", FileKind::Eventfd),
            ("anon_inode:[eventpoll]", FileKind::Other),
            ("socket:[x]", FileKind::Other),
            ("/dev/null", FileKind::File),
            ("/tmp/pipe:[41] (deleted)", FileKind::File),
            ("", FileKind::Other),
        ] {
            assert_eq!(of_link(link).kind, kind, "{link}");
        }
        assert_eq!(inode("socket:[4711]", "socket"), Some(4711));
        let status = "Name:\tx\nNSpid:\t4711\t12\t1\n";
        assert_eq!([0, 1, 2, 3].map(|d| number_at(status, d)), [Some(4711), Some(12), Some(1), None]);
    }

    #[test]
    fn own_descriptors_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connects");
        let (accepted, _) = listener.accept().expect("accepts");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let numbers = [listener.as_raw_fd(), client.as_raw_fd(), accepted.as_raw_fd(), file.as_raw_fd()]
            .map(|n| u32::try_from(n).expect("open"));
        let target = Target::open(std::process::id()).expect("this process lives");
        let described = target.open_files().describe(&numbers.into_iter().chain([1 << 20]).collect());
        let of = |n: usize| described.files.get(&numbers[n]).expect("open");
        assert!(!described.sockets_cut && described.files.len() == 4);
        assert!(of(0).is_listening() && of(0).peer.is_none());
        assert_eq!(of(1).peer.as_deref(), Some(&*address.to_string()));
        assert_eq!((of(1).state, of(1).accepted), (Some("established"), Some(false)));
        assert_eq!((of(2).local.as_deref(), of(2).accepted), (Some(&*address.to_string()), Some(true)));
        assert_eq!(of(3).path.as_deref(), file.path().to_str());
    }

    #[test]
    fn a_process_in_a_call_tells_what_it_waits_for() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
        let open = || Target::open(child.id()).expect("it lives").open_files();
        // Until it has come to read its input.
        let read = loop {
            let raw = open().raw_call(child.id()).filter(|c| c.named().name == Some("read"));
            if let Some(raw) = raw.filter(|c| c.named().descriptor == Some(0)) {
                break raw;
            }
            std::thread::yield_now();
        };
        let files = open().describe(&[0].into()).files;
        let call = open().explain(&read, &files);
        assert_eq!(call.file.map(|f| f.kind), Some(FileKind::Pipe));
        assert_eq!((call.held_by, call.child), (None, None));
        assert_eq!(NamedProcess::of(child.id()).name.as_deref(), Some("cat"));
        child.kill().expect("can be ended");
        child.wait().expect("ends");
        assert_eq!(NamedProcess::of(child.id()).name, None);
    }
}
