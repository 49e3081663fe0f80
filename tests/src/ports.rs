//! Ports for programs that must be told theirs: from a range that the kernel gives nobody who asks for any port, so that
//! none is taken between the look and the program's start.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context, Result};

/// Below `net.ipv4.ip_local_port_range` as Linux has it, and above what services use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// So many ports of 127.0.0.1 that nobody listens on; none is given twice by this process.
///
/// # Errors
/// Where all are taken.
pub fn free<const N: usize>() -> Result<[u16; N]> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes beside this one begin elsewhere.
    let begin = u16::try_from(std::process::id().wrapping_mul(64) % u32::from(COUNT))?;
    let mut ports = [0; N];
    for port in &mut ports {
        *port = (0..COUNT)
            .map(|_| FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .context("no port of 127.0.0.1 is free")?;
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_nor_one_that_is_taken() {
        let [first, second] = free().expect("two");
        let taken = TcpListener::bind(("127.0.0.1", second + 1)).expect("the next one is free");
        let [third] = free().expect("another");
        assert!(first != second && third != second && third != first);
        assert_ne!(third, taken.local_addr().expect("bound").port());
    }
}
