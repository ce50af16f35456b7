//! redis-server behind the tunnel, redis-benchmark before it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::BenchError;
use super::requests::{Measured, OVERHEAD_LIMIT};
use qmux_harness::Launch;

/// Bytes of the value that is asked for.
const VALUE_BYTES: &str = "64";

/// A server that keeps everything in memory.
pub(super) fn server(address: SocketAddr, directory: &Path) -> Result<Launch, BenchError> {
    Ok(Launch::new("redis-server", "redis-server")
        .args(["--port".to_owned(), address.port().to_string()])
        .args(["--bind".to_owned(), address.ip().to_string()])
        .args(["--protected-mode", "no", "--save", "", "--appendonly", "no"])
        .args(["--dir".to_owned(), directory.display().to_string()]))
}

/// redis-benchmark knows no duration: so many requests, over so many connections.
fn benchmark(visit: SocketAddr, test: &str, connections: usize, requests: u64) -> Launch {
    Launch::new("redis-benchmark", "redis-benchmark")
        .args(["-h".to_owned(), visit.ip().to_string()])
        .args(["-p".to_owned(), visit.port().to_string()])
        .args(["-t", test, "-d", VALUE_BYTES, "--csv"])
        .args(["-c".to_owned(), connections.to_string()])
        .args(["-n".to_owned(), requests.to_string()])
}

/// Writes the value that will be asked for.
pub fn set(visit: SocketAddr) -> Result<(), BenchError> {
    measure(benchmark(visit, "set", 1, 1), 1, OVERHEAD_LIMIT).map(|_| ())
}

/// The command line of [`get`].
pub fn command_line(visit: SocketAddr, connections: usize, requests: u64) -> String {
    benchmark(visit, "get", connections, requests).command_line()
}

/// Asks for it so many times.
pub fn get(
    visit: SocketAddr,
    connections: usize,
    requests: u64,
    expected: Duration,
) -> Result<Measured, BenchError> {
    // At a fifth of the rate it is still measured rather than given up.
    let limit = expected * 5 + OVERHEAD_LIMIT;
    measure(
        benchmark(visit, "get", connections, requests),
        requests,
        limit,
    )
}

fn measure(launch: Launch, requests: u64, limit: Duration) -> Result<Measured, BenchError> {
    let ended = launch.run(limit)?;
    if !ended.succeeded {
        return Err(ended.into_error(&launch.name));
    }
    parse(&ended.output, requests).ok_or_else(|| BenchError::Output {
        what: launch.name,
        problem: format!(
            "no rps, p50_latency_ms and p99_latency_ms, which 7.0 and later write, in {:?}",
            ended.output
        ),
    })
}

/// A line of names, then one of values, all in quotes.
fn parse(output: &str, requests: u64) -> Option<Measured> {
    let mut lines = output.lines().filter(|line| line.starts_with('"'));
    let cells = |line: &str| -> Vec<String> {
        line.split(',')
            .map(|cell| cell.trim().trim_matches('"').to_owned())
            .collect()
    };
    let (names, values) = (cells(lines.next()?), cells(lines.next()?));
    let of = |name: &str| -> Option<f64> {
        let column = names.iter().position(|it| it == name)?;
        values.get(column)?.parse().ok()
    };
    let requests = requests as f64;
    Some(Measured {
        requests,
        per_second: of("rps")?,
        p50_us: of("p50_latency_ms")? * 1e3,
        p99_us: of("p99_latency_ms")? * 1e3,
        // It ends with an error at the first one.
        failed: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_names() {
        let output = "\"test\",\"rps\",\"avg_latency_ms\",\"p50_latency_ms\",\"p99_latency_ms\"\n\
                      \"GET\",\"19157.09\",\"2.510\",\"1.007\",\"14.535\"\n";
        let measured = parse(output, 20_000).expect("a measurement");
        assert_eq!(
            (measured.requests, measured.per_second),
            (20_000.0, 19_157.09)
        );
        let times = [measured.p50_us.round(), measured.p99_us.round()];
        assert_eq!(times, [1_007.0, 14_535.0]);
    }

    #[test]
    fn an_older_redis_benchmark_is_not_understood() {
        assert_eq!(parse("\"GET\",\"19157.09\"\n", 1), None);
        assert_eq!(parse("Could not connect to Redis\n", 1), None);
    }
}
