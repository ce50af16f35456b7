//! wrk, which asks a web server as fast as it answers.

use std::net::SocketAddr;
use std::time::Duration;

use super::BenchError;
use super::requests::{Measured, OVERHEAD_LIMIT, microseconds};
use qmux_harness::Launch;

/// An answer that takes longer has failed.
const TIMEOUT: &str = "10s";

/// wrk's command line: one thread, so many connections, for whole seconds.
pub fn launch(visit: SocketAddr, connections: usize, seconds: u64, closes: bool) -> Launch {
    let launch = Launch::new("wrk", "wrk")
        .args(["--threads", "1", "--latency", "--timeout", TIMEOUT])
        .args(["--connections".to_owned(), connections.to_string()])
        .args(["--duration".to_owned(), format!("{seconds}s")]);
    let launch = if closes {
        launch.args(["--header", "Connection: close"])
    } else {
        launch
    };
    launch.args([format!("http://{visit}/")])
}

/// Runs it.
pub fn run(
    visit: SocketAddr,
    connections: usize,
    seconds: u64,
    closes: bool,
) -> Result<Measured, BenchError> {
    let launch = launch(visit, connections, seconds, closes);
    let ended = launch.run(Duration::from_secs(seconds) + OVERHEAD_LIMIT)?;
    if !ended.succeeded {
        return Err(ended.into_error(&launch.name));
    }
    match parse(&ended.output) {
        Some(measured) if measured.requests > 0.0 => Ok(measured),
        _ => Err(BenchError::Output {
            what: launch.name,
            problem: format!("no requests in {:?}", ended.output),
        }),
    }
}

fn parse(output: &str) -> Option<Measured> {
    let lines = || output.lines().map(str::trim);
    let value = |name: &str| lines().find_map(|line| line.strip_prefix(name));
    let number = |name| value(name).and_then(|it: &str| it.trim().parse::<f64>().ok());
    let time = |name| value(name).and_then(|it| microseconds(it.trim()));
    // "connect 0, read 0, write 0, timeout 0", and only if there are any.
    let errors = value("Socket errors:").unwrap_or_default();
    let errors = errors
        .split([' ', ','])
        .filter_map(|it| it.parse::<f64>().ok());
    let refused = number("Non-2xx or 3xx responses:").unwrap_or_default();
    let total = lines().find_map(|line| {
        let (requests, rest) = line.split_once(" requests in ")?;
        rest.ends_with("read")
            .then(|| requests.parse::<f64>().ok())?
    });
    Some(Measured {
        requests: total?,
        per_second: number("Requests/sec:")?,
        p50_us: time("50%")?,
        p99_us: time("99%")?,
        failed: errors.sum::<f64>() + refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
Running 1s test @ http://127.0.0.1:27392/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     7.42ms    5.56ms  25.85ms   74.88%
    Req/Sec     5.59k     2.91k   12.04k    80.00%
  Latency Distribution
     50%  410.00us
     75%   11.26ms
     90%   16.69ms
     99%   22.46ms
  5793 requests in 1.06s, 1.14MB read
Requests/sec:   5465.69
Transfer/sec:      1.08MB
";

    #[test]
    fn what_wrk_prints_is_understood() {
        let measured = parse(OUTPUT).expect("a measurement");
        let wanted = Measured {
            requests: 5_793.0,
            per_second: 5_465.69,
            p50_us: 410.0,
            p99_us: 22_460.0,
            failed: 0.0,
        };
        assert_eq!(measured, wanted);
    }

    #[test]
    fn errors_and_refusals_are_failures() {
        let errors = "  Socket errors: connect 1, read 20, write 0, timeout 300\n  \
                      Non-2xx or 3xx responses: 4000\n";
        let measured = parse(&OUTPUT.replace("Requests/sec", &format!("{errors}Requests/sec")));
        assert_eq!(measured.expect("a measurement").failed, 4_321.0);
        assert_eq!(parse("unable to connect to 127.0.0.1:1"), None);
    }

    #[test]
    fn a_connection_per_request_is_asked_for() {
        let visit = ([127, 0, 0, 1], 80).into();
        let line = |closes| launch(visit, 64, 2, closes).command_line();
        assert!(line(true).contains("--header Connection: close"));
        assert!(!line(false).contains("close"));
    }
}
