//! Executions as the kernel's process connector tells them: a netlink socket, where tracepoints cannot be
//! had. Wants the initial network, user and PID namespaces, and CAP_NET_ADMIN before Linux 6.6; the kernel
//! refuses some of that by saying nothing, so its answer is waited for.
//!
//! Facts: linux/connector.h, linux/cn_proc.h. Refuses to guess: a message that is not laid out as those say
//! is passed over. What the kernel drops because nobody reads is noticed (ENOBUFS) and reported as such.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const NETLINK_CONNECTOR: libc::c_int = 11;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
/// The answer to a subscription.
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_EXEC: u32 = 2;
/// How long the answer may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`, `struct cn_msg`, and `struct proc_event` up to its union.
const NETLINK_HEADER: usize = 16;
const CONNECTOR_HEADER: usize = 20;
const EVENT_HEADER: usize = 16;

/// The socket.
#[derive(Debug)]
pub struct Connector {
    socket: OwnedFd,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This process executed a program.
    Executed(u32),
    /// The answer to this process's subscription: 0, or an error's number.
    Answered(i32),
    /// Something else.
    Other,
    /// Notices were lost.
    Lost,
}

impl Connector {
    /// Asks the kernel to be told.
    ///
    /// # Errors
    /// What the kernel says: no permission, no process connector, another PID namespace.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, NETLINK_CONNECTOR)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid address.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = u16::try_from(libc::AF_NETLINK).unwrap_or(16);
        address.nl_groups = CN_IDX_PROC;
        let length = u32::try_from(size_of::<libc::sockaddr_nl>()).unwrap_or(12);
        // SAFETY: the address is as long as stated.
        if unsafe { libc::bind(fd, (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let request = subscription();
        // SAFETY: the buffer is as long as stated.
        if unsafe { libc::send(fd, request.as_ptr().cast(), request.len(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let this = Self { socket };
        this.await_answer()?;
        Ok(this)
    }

    /// Waits for the kernel's word that it will tell.
    fn await_answer(&self) -> io::Result<()> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => {
                    return Err(io::Error::other(
                        "no answer from the kernel: not available in this namespace",
                    ));
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.next()? {
                Notice::Answered(0) => return Ok(()),
                Notice::Answered(error) => return Err(io::Error::from_raw_os_error(error)),
                _ => {}
            }
        }
    }

    /// Waits for the next notice. Blocks the thread.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn next(&self) -> io::Result<Notice> {
        let mut buffer = [0u8; 1024];
        // SAFETY: the buffer is as long as stated.
        let length =
            unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        match usize::try_from(length) {
            Ok(length) => Ok(parse(buffer.get(..length).unwrap_or_default())),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ENOBUFS) => Ok(Notice::Lost),
                    Some(libc::EINTR) => Ok(Notice::Other),
                    _ => Err(error),
                }
            }
        }
    }
}

fn subscription() -> Vec<u8> {
    let mut request = Vec::new();
    let total = NETLINK_HEADER + CONNECTOR_HEADER + 4;
    // nlmsghdr: len, type, flags, seq, pid
    request.extend(u32::try_from(total).unwrap_or(40).to_ne_bytes());
    request.extend(NLMSG_DONE.to_ne_bytes());
    request.extend(0u16.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(std::process::id().to_ne_bytes());
    // cn_msg: idx, val, seq, ack, len, flags
    for word in [CN_IDX_PROC, CN_VAL_PROC, 0, std::process::id()] {
        request.extend(word.to_ne_bytes());
    }
    request.extend(4u16.to_ne_bytes());
    request.extend(0u16.to_ne_bytes());
    request.extend(PROC_CN_MCAST_LISTEN.to_ne_bytes());
    request
}

fn parse(message: &[u8]) -> Notice {
    let word = |at: usize| message.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let event = NETLINK_HEADER + CONNECTOR_HEADER;
    let head = (word(NETLINK_HEADER), word(NETLINK_HEADER + 4), word(event));
    // cn_msg.ack is one more than that of the subscription.
    if let (Some(CN_IDX_PROC), Some(CN_VAL_PROC), Some(PROC_EVENT_NONE)) = head {
        let own = word(NETLINK_HEADER + 12) == std::process::id().checked_add(1);
        return match word(event + EVENT_HEADER) {
            Some(error) if own => Notice::Answered(error.cast_signed()),
            _ => Notice::Other,
        };
    }
    // process_pid, process_tgid
    match (head, word(event + EVENT_HEADER + 4)) {
        ((Some(CN_IDX_PROC), Some(CN_VAL_PROC), Some(PROC_EVENT_EXEC)), Some(process)) => {
            Notice::Executed(process)
        }
        _ => Notice::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_read_and_nothing_else_is_taken_for_one() {
        let mut message = vec![0; NETLINK_HEADER];
        for word in [CN_IDX_PROC, CN_VAL_PROC, 0, 0, 40, PROC_EVENT_EXEC, 0, 0, 0, 77, 76] {
            message.extend(word.to_ne_bytes());
        }
        assert_eq!(parse(&message), Notice::Executed(76));
        for length in 0..message.len() {
            assert_eq!(parse(&message[..length]), Notice::Other, "{length}");
        }
        message[NETLINK_HEADER + CONNECTOR_HEADER] = 1;
        assert_eq!(parse(&message), Notice::Other);
    }

    #[test]
    fn live_an_execution_is_told() {
        let connector = match Connector::open() {
            Err(error) if !rustix::process::geteuid().is_root() => {
                crate::not_tested(&error);
                return;
            }
            connector => connector.expect("a kernel with the process connector"),
        };
        let mut child = std::process::Command::new("true").spawn().expect("true starts");
        child.wait().expect("true ends");
        while connector.next().expect("readable") != Notice::Executed(child.id()) {}
    }
}
