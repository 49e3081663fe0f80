//! What a goroutine waited for that waited for a socket.

use core::net::{IpAddr, SocketAddr};

use super::part;

/// See [`gotrace_common::Peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The other end; `None` where there is none, as of one that waits for connections.
    pub peer: Option<SocketAddr>,
    /// This end's port.
    pub local_port: u16,
    /// Whether it waits for connections.
    pub listens: bool,
}

impl Socket {
    /// From a [`gotrace_common::Peer`].
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        const TCP_LISTEN: u8 = 10;
        let [family, port, local_port] = [0, 2, 4].map(|offset| part::<2>(bytes, offset));
        let [state] = part::<1>(bytes, 6);
        let address = match u16::from_ne_bytes(family) {
            AF_INET => IpAddr::from(part::<4>(bytes, 8)),
            // Programs that take both versions see the older one's addresses within the newer one's.
            AF_INET6 => IpAddr::from(part::<16>(bytes, 8)).to_canonical(),
            _ => return None,
        };
        let port = u16::from_be_bytes(port);
        let listens = state == TCP_LISTEN;
        let has_peer = !listens && port != 0 && !address.is_unspecified();
        Some(Self {
            peer: has_peer.then(|| SocketAddr::new(address, port)),
            local_port: u16::from_ne_bytes(local_port),
            listens,
        })
    }
}

#[cfg(test)]
mod tests {
    use gotrace_common::{WaitHead, WaitPeerRecord, kind};

    use super::super::{Event, decode};

    #[test]
    fn what_a_goroutine_waited_for_is_told_with_its_peer() {
        let decoded = |family: u16, port: u16, state: u8, address: &[u8]| {
            let mut bytes = vec![0; size_of::<WaitPeerRecord>()];
            (bytes[0], bytes[2]) = (kind::WAIT_PEER, 1);
            let peer = &mut bytes[size_of::<WaitHead>()..];
            peer[..2].copy_from_slice(&family.to_ne_bytes());
            peer[2..4].copy_from_slice(&port.to_be_bytes());
            peer[4..6].copy_from_slice(&443_u16.to_ne_bytes());
            peer[6] = state;
            peer[8..8 + address.len()].copy_from_slice(address);
            peer[24..32].copy_from_slice(&77_u64.to_ne_bytes());
            let Ok(Event::Wait(wait)) = decode(&bytes) else { panic!("a wait") };
            assert_eq!(wait.frames.iter().collect::<Vec<_>>(), [77]);
            wait.socket.map(|s| (s.peer.map(|peer| peer.to_string()), s.local_port, s.listens))
        };
        let mapped = [&[0; 10][..], &[255, 255, 10, 0, 3, 7]].concat();
        let sixth = [&[0xfd][..], &[0; 14], &[1]].concat();
        let told = |peer: &str| Some((Some(peer.to_owned()), 443, false));
        assert_eq!(decoded(2, 5432, 1, &[10, 0, 3, 7]), told("10.0.3.7:5432"));
        assert_eq!(decoded(10, 5432, 1, &mapped), told("10.0.3.7:5432"));
        assert_eq!(decoded(10, 80, 1, &sixth), told("[fd00::1]:80"));
        assert_eq!(decoded(2, 0, 10, &[0; 4]), Some((None, 443, true)));
        assert_eq!(decoded(2, 0, 7, &[0; 4]), Some((None, 443, false)));
        assert_eq!(decoded(1, 80, 1, &[10, 0, 3, 7]), None);
    }
}
