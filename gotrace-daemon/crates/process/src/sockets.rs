//! The sockets of a network namespace, as `/proc/PID/net` lists them: addresses, state, bytes not read and not sent.
//!
//! Input: the tables of a process's own namespace, and the inodes that are wanted. Output: what each is. At most
//! [`MAX_LINES`] lines of each table are read, and it is said when there were more. Names of unix sockets are chosen by
//! whoever binds them and may hold the end of a line: where two lines claim an inode, neither is believed.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io::{BufRead as _, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use super::{FileKind, OpenFile, target::open_again};

/// Lines of one table that are read.
const MAX_LINES: usize = 100_000;
/// Bytes of one table that are read: lines have about 150.
const MAX_BYTES: u64 = 256 * MAX_LINES as u64;
/// `__SO_ACCEPTCON` of the kernel's `include/linux/net.h`.
const LISTENS: u32 = 1 << 16;

/// Those that were wanted, by inode.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    pub found: HashMap<u64, OpenFile>,
    /// Whether a table had more lines than are read.
    pub cut: bool,
}

/// A line of a table of TCP or UDP.
struct Inet {
    inode: u64,
    port: u16,
    file: OpenFile,
}

impl Sockets {
    /// Reads the tables of the process with this `/proc` directory.
    pub fn read(directory: &OwnedFd, wanted: &HashSet<u64>) -> Self {
        Self::of(wanted, |name| open_again(directory, &format!("net/{name}")).ok())
    }

    /// Reads tables by their names.
    fn of<R: Read>(wanted: &HashSet<u64>, table: impl Fn(&str) -> Option<R>) -> Self {
        let mut this = Self::default();
        let mut listening = HashSet::new();
        let mut ports = Vec::new();
        for (name, kind) in
            [("tcp", FileKind::Tcp), ("tcp6", FileKind::Tcp), ("udp", FileKind::Udp), ("udp6", FileKind::Udp)]
        {
            this.cut |= lines(table(name), |line| {
                let Some(Inet { inode, port, file }) = inet(kind, line) else { return };
                if file.is_listening() {
                    listening.insert(port);
                }
                if wanted.contains(&inode) {
                    if kind == FileKind::Tcp {
                        ports.push((inode, port));
                    }
                    this.found.insert(inode, file);
                }
            });
        }
        for (inode, port) in ports {
            if let Some(file) = this.found.get_mut(&inode).filter(|f| !f.is_listening()) {
                file.accepted = Some(listening.contains(&port));
            }
        }
        let mut twice = HashSet::new();
        this.cut |= lines(table("unix"), |line| {
            let Some((inode, file)) = unix(line).filter(|(inode, _)| wanted.contains(inode)) else { return };
            match this.found.entry(inode) {
                // The kernel makes up its lines itself.
                Entry::Occupied(known) if known.get().kind != FileKind::Unix => {}
                Entry::Occupied(_) => {
                    twice.insert(inode);
                }
                Entry::Vacant(new) => {
                    new.insert(file);
                }
            }
        });
        this.found.retain(|inode, _| !twice.contains(inode));
        this
    }
}

/// Tells each line of a table but its heading; whether there were more than are read.
fn lines(table: Option<impl Read>, mut tell: impl FnMut(&str)) -> bool {
    let Some(table) = table else { return false };
    let mut table = BufReader::with_capacity(1 << 16, table.take(MAX_BYTES));
    let mut line = Vec::new();
    for n in 0..=MAX_LINES {
        line.clear();
        // What ends without its last line end is a line that was cut.
        if !table.read_until(b'\n', &mut line).is_ok_and(|_| line.ends_with(b"\n")) {
            return table.get_ref().limit() == 0;
        }
        if n > 0 {
            tell(&String::from_utf8_lossy(&line));
        }
    }
    line.clear();
    table.read_until(b'\n', &mut line).is_ok_and(|n| n > 0)
}

/// A line of `tcp`, `tcp6`, `udp` or `udp6` (the kernel's `net/ipv4/tcp_ipv4.c`, `get_tcp4_sock`).
fn inet(kind: FileKind, line: &str) -> Option<Inet> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, peer) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let (unsent, unread) = fields.next()?.split_once(':')?;
    let inode = fields.nth(4)?.parse().ok()?;
    let state = if kind == FileKind::Tcp { tcp_state(state) } else { (state == 1).then_some("established") };
    let bytes = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| state != Some("listen"));
    let file = OpenFile {
        local: Some(local.to_string().into()),
        peer: (peer.port() != 0).then(|| peer.to_string().into()),
        state,
        unread_bytes: bytes(unread),
        unsent_bytes: bytes(unsent),
        ..OpenFile::new(kind)
    };
    Some(Inet { inode, port: local.port(), file })
}

/// `0100007F:1F90`: words as the kernel has them in memory, in hexadecimal digits.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |n: usize| Some(u32::from_str_radix(host.get(8 * n..8 * n + 8)?, 16).ok()?.to_ne_bytes());
    let host = match host.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (n, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(n)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(host, port))
}

/// A line of `unix` (the kernel's `net/unix/af_unix.c`, `unix_seq_show`).
fn unix(line: &str) -> Option<(u64, OpenFile)> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
    let (_, state, number) = (fields.next()?, fields.next()?, fields.next()?);
    let state = match u8::from_str_radix(state, 16).ok()? {
        _ if flags & LISTENS != 0 => Some("listen"),
        1 => Some("unconnected"),
        2 => Some("connecting"),
        3 => Some("connected"),
        4 => Some("disconnecting"),
        _ => None,
    };
    // Behind the number a space and the name, in which there may be more of them.
    let name = line.trim_end_matches('\n').split_once(&format!(" {number} ")).map(|(_, name)| name);
    let name = name.filter(|n| !n.is_empty());
    let file = OpenFile {
        local: name.map(Into::into),
        state,
        accepted: (state == Some("connected")).then_some(name.is_some()),
        ..OpenFile::new(FileKind::Unix)
    };
    Some((number.parse().ok()?, file))
}

/// The kernel's `include/net/tcp_states.h`.
const fn tcp_state(state: u8) -> Option<&'static str> {
    Some(match state {
        1 => "established",
        2 => "syn_sent",
        3 | 12 => "syn_recv",
        4 => "fin_wait1",
        5 => "fin_wait2",
        6 => "time_wait",
        7 => "close",
        8 => "close_wait",
        9 => "last_ack",
        10 => "listen",
        11 => "closing",
        _ => return None,
    })
}

/// For the fuzzer: a table, of each kind.
pub(crate) fn fuzz(table: &str) {
    lines(Some(table.as_bytes()), |line| {
        let _ = (inet(FileKind::Tcp, line), inet(FileKind::Udp, line), unix(line));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0
   1: 0200000A:A028 0703000A:1538 01 003A2000:00000000 01:00000014 00000000  1000        0 12 2 0000000000000000 20 4 30 10 -1
   2: 0100007F:1F90 0100007F:C350 08 00000000:0000000C 00:00000000 00000000     0        0 13 1 0000000000000000 20 4 0 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000200000A:0050 0000000000000000FFFF00000703000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 21 1 0000000000000000 20 4 30 10 -1
   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0000000000000000 100 0 0 10 0
";
    const UDP: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  123: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 31 2 0000000000000000 0
  124: 0200000A:8000 08080808:0035 01 00000000:00000200 00:00000000 00000000   101        0 32 2 0000000000000000 0
";
    const UNIX: &str = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01    41 /run/a b.sock
0000000000000000: 00000003 00000000 00000000 0001 03    42
0000000000000000: 00000003 00000000 00000000 0001 03    43 /run/a b.sock
0000000000000000: 00000003 00000000 00000000 0001 03    44 @x
0000000000000000: 00000003 00000000 00000000 0001 03    44 @forged
0000000000000000: 00000003 00000000 00000000 0001 03    12 @forged
";

    fn all(table: impl Fn(&str) -> Option<String>) -> Sockets {
        Sockets::of(&(10..50).collect(), |name| table(name).map(std::io::Cursor::new))
    }

    fn example() -> Sockets {
        all(|name| {
            let text = match name {
                "tcp" => TCP,
                "tcp6" => TCP6,
                "udp" => UDP,
                "unix" => UNIX,
                _ => return None,
            };
            Some(text.to_owned())
        })
    }

    #[test]
    fn tables_say_who_is_at_the_other_end() {
        let sockets = example();
        assert!(!sockets.cut);
        let told: Vec<(u64, String)> = {
            let text = |f: &OpenFile| {
                let or = |t: &Option<Box<str>>| t.as_deref().unwrap_or("-").to_owned();
                let bytes = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
                format!(
                    "{} {} {} {} {} {} {:?}",
                    f.kind.name(),
                    or(&f.local),
                    or(&f.peer),
                    f.state.unwrap_or("-"),
                    bytes(f.unread_bytes),
                    bytes(f.unsent_bytes),
                    f.accepted
                )
            };
            let mut all: Vec<_> = sockets.found.iter().map(|(inode, f)| (*inode, text(f))).collect();
            all.sort();
            all
        };
        let expected = [
            (11, "tcp 127.0.0.1:8080 - listen - - None"),
            (12, "tcp 10.0.0.2:41000 10.0.3.7:5432 established 0 3809280 Some(false)"),
            (13, "tcp 127.0.0.1:8080 127.0.0.1:50000 close_wait 12 0 Some(true)"),
            (21, "tcp 10.0.0.2:80 10.0.3.7:54321 established 0 0 Some(true)"),
            (22, "tcp [2001:db8::1]:80 - listen - - None"),
            (31, "udp 127.0.0.53:53 - - 0 0 None"),
            (32, "udp 10.0.0.2:32768 8.8.8.8:53 established 512 0 None"),
            (41, "unix /run/a b.sock - listen - - None"),
            (42, "unix - - connected - - Some(false)"),
            (43, "unix /run/a b.sock - connected - - Some(true)"),
        ];
        assert_eq!(told, expected.map(|(inode, text)| (inode, text.to_owned())));
    }

    #[test]
    fn what_is_no_table_says_nothing() {
        for text in
            ["", "heading", "heading\n\n: :\n", "h\n 0: 1:2 3:4 1 0:0\n", "h\n0: é:é é:é é é é é é é é é\n"]
        {
            assert!(all(|_| Some(text.to_owned())).found.is_empty(), "{text:?}");
        }
        for cut in 0..TCP.len() {
            let sockets = all(|name| (name == "tcp").then(|| TCP[..cut].to_owned()));
            assert!(sockets.found.len() <= 3 && !sockets.cut);
        }
    }

    #[test]
    fn long_tables_are_cut_and_said_to_be() {
        let line = TCP.lines().nth(2).expect("a line").replace(" 12 ", " 99 ");
        let mut text = TCP.to_owned();
        for _ in 0..MAX_LINES - 3 {
            text += &line;
            text.push('\n');
        }
        let of = |text: &str| all(|name| (name == "tcp").then(|| text.to_owned()));
        assert!(!of(&text).cut);
        assert!(of(&(text + &line + "\n")).cut);
        assert!(of(&format!("h\n{}", "x".repeat(2 * MAX_BYTES as usize))).cut);
    }
}
