//! Whom a process's goroutines wait for over the network: the ends of connections that the process itself opened, the first
//! [`MAX_PEERS`] of them by address and port, for good, and all others together.
//!
//! Those that others opened to it are clients, of which there are any number, with a port for each connection: they are
//! not told apart. A connection is one of theirs where its port here is one on which the process was seen to wait for
//! connections, or where only their port is one that Linux gives to those who ask for none ([`EPHEMERAL`]).

use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::decode::Socket;

/// Peers of one process that are told apart.
pub(crate) const MAX_PEERS: usize = 32;
/// Ports on which a process waits for connections that are kept.
const MAX_LISTENING: usize = 64;
/// The first of the ports that Linux gives to those who ask for none (`ip_local_port_range`, unless it is set).
const EPHEMERAL: u16 = 32_768;

/// Number of a peer: its place among those that are told apart, or [`Self::OTHER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PeerNumber(u8);

impl PeerNumber {
    /// One for which there was no room.
    pub const OTHER: Self = Self(u8::MAX);
}

/// The peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peers {
    known: Vec<SocketAddr>,
    listening: Vec<u16>,
}

impl Peers {
    /// Whom a goroutine waited for that waited for this socket; `None` where that is a client, or nobody.
    pub fn number(&mut self, socket: &Socket) -> Option<PeerNumber> {
        let Socket { peer, local_port, listens } = socket;
        if *listens && !self.listening.contains(local_port) && self.listening.len() < MAX_LISTENING {
            self.listening.push(*local_port);
        }
        let peer = (*peer)?;
        let is_client = peer.port() >= EPHEMERAL && *local_port < EPHEMERAL;
        if is_client || self.listening.contains(local_port) {
            return None;
        }
        if let Some(known) = self.known.iter().position(|known| *known == peer) {
            return Some(PeerNumber(u8::try_from(known).unwrap_or(u8::MAX)));
        }
        if self.known.len() >= MAX_PEERS {
            return Some(PeerNumber::OTHER);
        }
        self.known.push(peer);
        Some(PeerNumber(u8::try_from(self.known.len() - 1).unwrap_or(u8::MAX)))
    }

    /// Address and port; `None` of those that are not told apart.
    pub fn get(&self, number: PeerNumber) -> Option<SocketAddr> {
        self.known.get(usize::from(number.0)).copied()
    }

    /// Takes no more than there is room for.
    pub fn truncate(&mut self) {
        self.known.truncate(MAX_PEERS);
        self.listening.truncate(MAX_LISTENING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(peer: &str, local_port: u16) -> Socket {
        Socket { peer: Some(peer.parse().expect("an address")), local_port, listens: false }
    }

    #[test]
    fn connections_of_its_own_are_told_apart_and_clients_are_not() {
        let mut peers = Peers::default();
        let database = peers.number(&socket("10.0.3.7:5432", 50_000)).expect("a peer");
        assert_eq!(peers.number(&socket("10.0.3.7:5432", 50_001)), Some(database));
        let other = peers.number(&socket("[fd00::1]:6379", 50_000)).expect("a peer");
        assert_ne!(other, database);
        assert_eq!(peers.get(database), Some("10.0.3.7:5432".parse().expect("an address")));
        // A client, by its port.
        assert_eq!(peers.number(&socket("10.0.9.9:40000", 8080)), None);
        // Where both have such a port, and it is seen that this one is listened on.
        let unknown = socket("10.0.9.9:40000", 45_000);
        assert!(peers.number(&unknown).is_some());
        assert_eq!(peers.number(&Socket { peer: None, local_port: 45_000, listens: true }), None);
        assert_eq!(peers.number(&unknown), None);
    }

    #[test]
    fn the_first_few_are_told_apart() {
        let mut peers = Peers::default();
        let mut number = |n: usize| peers.number(&socket(&format!("10.0.0.{n}:80"), 50_000));
        let all: Vec<_> = (0..MAX_PEERS + 3).map(&mut number).collect();
        assert!(all[..MAX_PEERS].iter().all(|n| *n != Some(PeerNumber::OTHER)));
        assert!(all[MAX_PEERS..].iter().all(|n| *n == Some(PeerNumber::OTHER)));
        assert_eq!(number(3), all[3]);
        assert_eq!(peers.get(PeerNumber::OTHER), None);
    }
}
