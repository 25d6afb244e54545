//! Free loopback ports for servers.
//!
//! Not the port that `bind(0)` gives: that one lies in the range from which the kernel also takes the
//! source ports of outgoing connections. A client that keeps dialling a dead server there ends up
//! connected to itself sooner or later (TCP's simultaneous open), and a restarted server finds its port
//! taken. Below 32768 neither Linux nor macOS hands out source ports.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

const RANGE: std::ops::Range<u16> = 10_240..32_768;

/// A port that nobody listens on. Somebody may take it before the caller does, so callers retry.
pub(crate) fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(0_u8);
        let offset = random % u64::from(RANGE.end - RANGE.start);
        let port = RANGE.start + u16::try_from(offset).expect("less than the range");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
