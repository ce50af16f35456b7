//! Requests and answers as programs of others count them, each with its own server behind the
//! tunnel: redis-benchmark with redis-server, wrk with nginx.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use qmux_harness::{Launch, Program, ports};
use tempfile::TempDir;

use super::meter::{Metered, Role};
use super::place::Place;
use super::write;

/// How much longer than its measurement a program may take, for its connections and answers that
/// come late.
const OVERHEAD_LIMIT: Duration = Duration::from_secs(30);

/// What nginx answers: 64 bytes, as many as redis-server.
const ANSWER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A program behind the tunnel, on the far side.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) program: Program,
    // What it may write to, until it has ended.
    directory: Option<TempDir>,
}

impl Server {
    /// Starts a server on an address of the far side. `port` is for a namespace of its own, where
    /// nothing else listens. What it is ready by differs from one to another.
    pub(super) fn start(
        place: &Place,
        port: u16,
        launch: impl FnOnce(SocketAddr) -> Result<Launch>,
    ) -> Result<Self> {
        let address = match &place.far_namespace {
            None => ports::free(place.service_ip)?,
            Some(_) => SocketAddr::new(place.service_ip, port),
        };
        let program = launch(address)?.at(place.far()).start()?;
        Ok(Self::of(program, address))
    }

    pub(crate) fn of(program: Program, address: SocketAddr) -> Self {
        Self {
            address,
            program,
            directory: None,
        }
    }

    pub(crate) fn process(&self) -> Metered {
        Metered::of(Role::Load, &self.program)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Requests and connections that failed.
    pub(crate) failed: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requests {
    /// redis-benchmark asks redis-server for one key.
    RedisGet,
    /// wrk asks nginx for 64 bytes, over connections that stay.
    KeepAlive,
    /// The same, with a connection for each request.
    Close,
}

/// A program that asks, and how long it may take.
pub(crate) struct Load {
    pub(crate) launch: Launch,
    limit: Duration,
    /// The number of requests that redis-benchmark was told to send; `None` for wrk, which counts
    /// its own.
    requests: Option<u64>,
}

impl Requests {
    pub(crate) const ALL: [(Self, &'static str); 3] = [
        (Self::RedisGet, "redis GET"),
        (Self::KeepAlive, "http keep-alive"),
        (Self::Close, "http close"),
    ];

    pub(crate) fn programs(self) -> [&'static str; 2] {
        match self {
            Self::RedisGet => ["redis-server", "redis-benchmark"],
            Self::KeepAlive | Self::Close => ["nginx", "wrk"],
        }
    }

    /// Starts its server, with a directory of its own, and waits until it listens.
    pub(crate) fn server(self, place: &Place) -> Result<Server> {
        let directory = TempDir::with_prefix("qmux-bench-server-");
        let directory = directory.context("a temporary directory")?;
        let mut server = Server::start(place, 8_080, |address| match self {
            Self::RedisGet => Ok(redis_server(address, directory.path())),
            Self::KeepAlive | Self::Close => nginx(address, directory.path()),
        })?;
        server.program.wait_for_listener(server.address)?;
        server.directory = Some(directory);
        Ok(server)
    }

    /// The load of `requests` over `connections`. They should take about `seconds` with
    /// redis-benchmark, which knows no duration; the other programs send requests for `seconds`.
    pub(crate) fn load(
        self,
        visit: SocketAddr,
        connections: usize,
        requests: u64,
        seconds: u64,
    ) -> Load {
        match self {
            Self::RedisGet => redis_benchmark(visit, "get", connections, requests, seconds),
            Self::KeepAlive => wrk(visit, connections, seconds, false),
            Self::Close => wrk(visit, connections, seconds, true),
        }
    }
}

/// Writes the value that redis-benchmark will ask for.
pub(crate) fn set(visit: SocketAddr) -> Result<Measured> {
    redis_benchmark(visit, "set", 1, 1, 0).run()
}

/// A server that keeps everything in memory.
fn redis_server(address: SocketAddr, directory: &Path) -> Launch {
    let (ip, port) = (address.ip(), address.port());
    Launch::new("redis-server", "redis-server")
        .words(&format!("--port {port} --bind {ip} --protected-mode no"))
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .args([directory])
}

/// A server that writes no log and ends no connection by itself, with one process: a second one
/// would outlive the first if that is killed.
fn nginx(address: SocketAddr, directory: &Path) -> Result<Launch> {
    let (file, dir) = (directory.join("nginx.conf"), directory.display());
    let config = format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
         \x20 client_body_temp_path {dir}/t1;\n  proxy_temp_path {dir}/t2;\n\
         \x20 fastcgi_temp_path {dir}/t3;\n  uwsgi_temp_path {dir}/t4;\n  scgi_temp_path {dir}/t5;\n\
         \x20 server {{\n    listen {address} backlog=4096;\n\
         \x20   location / {{ return 200 \"{ANSWER}\"; }}\n  }}\n}}\n"
    );
    write(&file, &config)?;
    let launch = Launch::new("nginx", "nginx").words("-e stderr -p");
    Ok(launch.args([directory, "-c".as_ref(), &file]))
}

fn redis_benchmark(
    visit: SocketAddr,
    test: &str,
    connections: usize,
    requests: u64,
    seconds: u64,
) -> Load {
    let (ip, port, bytes) = (visit.ip(), visit.port(), ANSWER.len());
    let words =
        format!("-h {ip} -p {port} -t {test} -d {bytes} --csv -c {connections} -n {requests}");
    Load {
        launch: Launch::new("redis-benchmark", "redis-benchmark").words(&words),
        // At a fifth of the rate it is still measured rather than given up.
        limit: Duration::from_secs(5 * seconds) + OVERHEAD_LIMIT,
        requests: Some(requests),
    }
}

/// One thread, this many connections, for whole seconds; an answer that takes longer than 10 s has
/// failed.
fn wrk(visit: SocketAddr, connections: usize, seconds: u64, closes: bool) -> Load {
    let mut launch = Launch::new("wrk", "wrk").words(&format!(
        "--threads 1 --latency --timeout 10s --connections {connections} --duration {seconds}s"
    ));
    if closes {
        launch = launch.args(["--header", "Connection: close"]);
    }
    Load {
        launch: launch.args([format!("http://{visit}/")]),
        limit: Duration::from_secs(seconds) + OVERHEAD_LIMIT,
        requests: None,
    }
}

impl Load {
    pub(crate) fn run(&self) -> Result<Measured> {
        let output = self.launch.succeed(self.limit)?;
        let (measured, wanted) = match self.requests {
            Some(requests) => (
                of_redis_benchmark(&output, requests),
                "rps, p50_latency_ms and p99_latency_ms, which 7.0 and later write,",
            ),
            None => (of_wrk(&output), "requests"),
        };
        let measured = measured.filter(|it| it.requests > 0.0);
        measured.ok_or_else(|| anyhow!("{}: no {wanted} in {output:?}", self.launch.name))
    }
}

/// A line of names, then one of values, all in quotes.
fn of_redis_benchmark(output: &str, requests: u64) -> Option<Measured> {
    let mut lines = output.lines().filter(|line| line.starts_with('"'));
    let (names, values) = (lines.next()?.split(','), lines.next()?.split(','));
    let cells: Vec<(&str, &str)> = names
        .zip(values)
        .map(|(name, value)| {
            (
                name.trim().trim_matches('"'),
                value.trim().trim_matches('"'),
            )
        })
        .collect();
    let of = |name: &str| -> Option<f64> {
        let (_, value) = cells.iter().find(|(it, _)| *it == name)?;
        value.parse().ok()
    };
    Some(Measured {
        requests: requests as f64,
        per_second: of("rps")?,
        p50_us: of("p50_latency_ms")? * 1e3,
        p99_us: of("p99_latency_ms")? * 1e3,
        // It ends with an error at the first one.
        failed: 0.0,
    })
}

fn of_wrk(output: &str) -> Option<Measured> {
    let lines = || output.lines().map(str::trim);
    let value = |name: &str| lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    let number = |name| value(name).and_then(|it| it.parse::<f64>().ok());
    let time = |name| value(name).and_then(microseconds);
    // "connect 0, read 0, write 0, timeout 0", and only if there are any.
    let errors = value("Socket errors:").unwrap_or_default();
    let errors = errors
        .split([' ', ','])
        .filter_map(|it| it.parse::<f64>().ok());
    let refused = number("Non-2xx or 3xx responses:").unwrap_or_default();
    let total = lines().find_map(|line| {
        let (requests, rest) = line.split_once(" requests in ")?;
        requests.parse().ok().filter(|_| rest.ends_with("read"))
    });
    Some(Measured {
        requests: total?,
        per_second: number("Requests/sec:")?,
        p50_us: time("50%")?,
        p99_us: time("99%")?,
        failed: errors.sum::<f64>() + refused,
    })
}

/// A number with its unit, in µs.
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];
    units
        .into_iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_gives_the_answer_whose_size_reports_claim() {
        let directory = tempfile::tempdir().expect("a directory");
        nginx(([127, 0, 0, 1], 8_080).into(), directory.path()).expect("a config");
        let config = std::fs::read_to_string(directory.path().join("nginx.conf")).expect("one");
        assert!(config.contains("listen 127.0.0.1:8080 backlog"), "{config}");
        assert!(config.contains(ANSWER) && ANSWER.len() == 64, "{config}");
    }

    #[test]
    fn redis_benchmarks_columns_are_found_by_their_names_which_older_ones_lack() {
        let output = "\"test\",\"rps\",\"avg_latency_ms\",\"p50_latency_ms\",\"p99_latency_ms\"\n\
                      \"GET\",\"19157.09\",\"2.510\",\"1.007\",\"14.535\"\n";
        let it = of_redis_benchmark(output, 20_000).expect("a measurement");
        assert_eq!((it.requests, it.per_second), (20_000.0, 19_157.09));
        assert_eq!([it.p50_us.round(), it.p99_us.round()], [1_007.0, 14_535.0]);
        for wrong in ["\"GET\",\"19157.09\"\n", "Could not connect to Redis\n"] {
            assert_eq!(of_redis_benchmark(wrong, 1), None);
        }
    }

    const WRK: &str = "\
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
    fn what_wrk_prints_is_understood_with_errors_and_refusals_as_failures() {
        let wanted = Measured {
            requests: 5_793.0,
            per_second: 5_465.69,
            p50_us: 410.0,
            p99_us: 22_460.0,
            failed: 0.0,
        };
        assert_eq!(of_wrk(WRK), Some(wanted));
        let errors = "  Socket errors: connect 1, read 20, write 0, timeout 300\n  \
                      Non-2xx or 3xx responses: 4000\n";
        let measured = of_wrk(&WRK.replace("Requests/sec", &format!("{errors}Requests/sec")));
        assert_eq!(measured.expect("a measurement").failed, 4_321.0);
        assert_eq!(of_wrk("unable to connect to 127.0.0.1:1"), None);
        let times = ["1.50s", "2.00m", "fast"].map(microseconds);
        assert_eq!(times, [Some(1_500_000.0), Some(120_000_000.0), None]);
    }

    #[test]
    fn a_connection_per_request_is_asked_for() {
        let visit = ([127, 0, 0, 1], 80).into();
        let line = |kind: Requests| kind.load(visit, 64, 0, 2).launch.command_line();
        assert!(line(Requests::Close).contains("--header Connection: close"));
        assert!(!line(Requests::KeepAlive).contains("close"));
    }
}
