//! Requests and answers as programs of others count them: redis-benchmark and wrk, each with its
//! own server behind the tunnel.

use std::time::Duration;

use super::place::Place;
use super::server::Server;
use super::{BenchError, nginx, redis};

/// How much longer than its measurement a program may take, for its connections and answers that
/// come late.
pub(super) const OVERHEAD_LIMIT: Duration = Duration::from_secs(30);

/// What a program has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests that were answered.
    pub requests: f64,
    /// The same per second.
    pub per_second: f64,
    /// The time that half of them took at most, in µs.
    pub p50_us: f64,
    /// The time that 99 of 100 took at most, in µs.
    pub p99_us: f64,
    /// Requests and connections that failed.
    pub failed: f64,
}

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// redis-benchmark asks redis-server for one key.
    RedisGet,
    /// wrk asks nginx for 64 bytes, over connections that stay.
    KeepAlive,
    /// The same, with a connection for each request.
    Close,
}

impl Requests {
    /// All kinds, with their names.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::RedisGet, "redis GET"),
        (Self::KeepAlive, "http keep-alive"),
        (Self::Close, "http close"),
    ];

    /// The programs that it needs.
    pub fn programs(self) -> [&'static str; 2] {
        match self {
            Self::RedisGet => ["redis-server", "redis-benchmark"],
            Self::KeepAlive | Self::Close => ["nginx", "wrk"],
        }
    }
}

/// Starts the server for this kind, with a directory of its own, and waits until it listens.
pub fn server(kind: Requests, place: &Place) -> Result<Server, BenchError> {
    let directory = tempfile::TempDir::with_prefix("qmux-bench-server-")
        .map_err(BenchError::io("a temporary directory"))?;
    let mut server = Server::start(place, 8_080, |address| match kind {
        Requests::RedisGet => redis::server(address, directory.path()),
        Requests::KeepAlive | Requests::Close => nginx::server(address, directory.path()),
    })?;
    server.program.wait_for_listener(server.address)?;
    server.directory = Some(directory);
    Ok(server)
}

/// A number with its unit (`us`, `ms`, `s`, `m`), in µs.
pub(super) fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];
    units
        .into_iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(microseconds("410.00us"), Some(410.0));
        assert_eq!(microseconds("1.97ms"), Some(1_970.0));
        assert_eq!(microseconds("1.50s"), Some(1_500_000.0));
        assert_eq!(microseconds("2.00m"), Some(120_000_000.0));
        assert_eq!(microseconds("fast"), None);
    }
}
