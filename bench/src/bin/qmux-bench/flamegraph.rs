//! `qmux-bench profile` and `qmux-bench flamegraph`: where a tunnel's time goes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use qmux_bench::harness::BenchError;
use qmux_bench::harness::admin::Scrape;
use qmux_bench::harness::machine::Machine;
use qmux_bench::harness::meter::{Meter, Metered, Role};
use qmux_bench::harness::tunnel::{Placement, Setup, Tunnel};
use qmux_bench::load::bulk::{Bulk, Way};
use qmux_bench::load::service::Service;
use qmux_bench::load::udp_source::{Stream, UdpSource};
use qmux_bench::report::flamegraph::Stacks;
use qmux_bench::report::stages::{self, Profile, Traffic};
use qmux_harness::Launch;

use crate::background::One;
use crate::discard::BURST;

/// What to draw a flamegraph of.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The output of `perf script`
    #[arg(long, value_name = "FILE")]
    perf_script: PathBuf,
    /// Where the flamegraph goes
    #[arg(long, value_name = "FILE")]
    svg: PathBuf,
}

/// What to profile.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProfileArgs {
    /// The load
    scenario: Scenario,
    /// Which process
    side: Side,
    /// How long, in seconds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    #[command(flatten)]
    one: One,
    /// Cores of each side
    #[arg(long, value_name = "N", default_value_t = 1)]
    cores: usize,
    /// What lies between the sides
    #[arg(long, value_name = "PATH", default_value = "loopback")]
    path: crate::path::Path,
    /// Bytes of UDP payloads
    #[arg(long, value_name = "BYTES", default_value_t = 1_150)]
    udp_size: usize,
    /// Gbit/s that UDP offers
    #[arg(long, value_name = "RATE", default_value_t = 1.0)]
    udp_gbit: f64,
    /// How perf finds the callers: fp for builds with frame pointers, dwarf for others, which takes
    /// minutes more
    #[arg(long, value_name = "fp|dwarf", default_value = "fp", value_parser = ["fp", "dwarf"])]
    call_graph: String,
    /// Group the stacks by stages of a byte's way: CPU seconds per GB, ns per packet, the sum
    /// beside what was measured
    #[arg(long)]
    stages: bool,
    /// Where the flamegraph, the symbols and the stacks go
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// One TCP connection, from the visitor to the service
    Tcp,
    /// One TCP connection, from the service to the visitor
    TcpReverse,
    /// One UDP flow, from the visitor to the service
    Udp,
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// The tunnel's server
    Server,
    /// The tunnel's client
    Client,
}

impl Side {
    fn role(self) -> Role {
        match self {
            Self::Server => Role::Server,
            Self::Client => Role::Client,
        }
    }
}

/// Before recording, so that the load runs as it does later on.
const WARM_UP: Duration = Duration::from_secs(1);

/// Samples per second: not in step with anything that happens every millisecond.
const FREQUENCY: &str = "997";

/// How many symbols are listed.
const SYMBOLS: usize = 25;

/// How long perf may take to start recording.
const PERF_START: Duration = Duration::from_millis(400);

/// How much longer than recording perf may take, and how long it may take to print what it has.
const PERF_OVERHEAD: Duration = Duration::from_secs(30);
const PERF_SCRIPT_LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn draw(args: &Args) -> Result<bool, BenchError> {
    let path = &args.perf_script;
    let output = std::fs::read_to_string(path)
        .map_err(BenchError::io(format!("reading {}", path.display())))?;
    let stacks = Stacks::of_perf_script(&output).map_err(BenchError::Failed)?;
    let svg = stacks.svg("qmux-bench").map_err(BenchError::Failed)?;
    write(&args.svg, &svg)?;
    print!("{}", stacks.top(SYMBOLS));
    Ok(true)
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(BenchError::io(format!("writing {}", path.display())))
}

pub(crate) fn profile(args: &ProfileArgs) -> Result<bool, BenchError> {
    // Packets are counted by the admin endpoint.
    let setup = Setup {
        placement: Placement::Apart,
        ..args.one.setup(args.path.open()?)?
    };
    let (service, tunnel) = args.one.start(&setup, args.cores, PERF_OVERHEAD)?;
    let processes = tunnel.processes();
    let process = processes.iter().find(|it| it.role == args.side.role());
    let process = process.ok_or_else(|| {
        BenchError::Failed(format!(
            "{} has no process to be profiled",
            args.one.tunnel.label
        ))
    })?;
    let data = setup.site.path().join("perf.data");
    let traffic = under_load(args, &tunnel, &service, || record(args, process, &data))?;
    let farewell = tunnel.stop();
    for complaint in farewell.complaints {
        eprintln!("{complaint}");
    }
    let script = Launch::new("perf script", "perf")
        .args(["script", "--no-inline", "--force", "-i"])
        .args([data.as_os_str()])
        .output(PERF_SCRIPT_LIMIT)?;
    let stacks = Stacks::of_perf_script(&script).map_err(BenchError::Failed)?;
    present(args, &stacks, &traffic)?;
    Ok(true)
}

/// What the process that is looked at has used and carried between two moments.
struct Window<'a> {
    args: &'a ProfileArgs,
    admin: Option<SocketAddr>,
    began: Instant,
    meter: Meter,
    bytes: u64,
    scrape: Option<Scrape>,
}

/// An older program may have no such endpoint; then there are no packets to count.
fn scrape(admin: Option<SocketAddr>) -> Option<Scrape> {
    Scrape::read(admin?).ok()
}

impl<'a> Window<'a> {
    fn open(args: &'a ProfileArgs, tunnel: &Tunnel, bytes: u64) -> Self {
        let processes = tunnel.processes();
        let role = args.side.role();
        let own: Vec<Metered> = processes.into_iter().filter(|it| it.role == role).collect();
        Self {
            args,
            admin: tunnel.admin,
            scrape: scrape(tunnel.admin),
            began: Instant::now(),
            meter: Meter::start(&own),
            bytes,
        }
    }

    /// The traffic of as many seconds as are recorded.
    fn close(self, bytes: u64) -> Traffic {
        let share = self.args.seconds_f64() / self.began.elapsed().as_secs_f64();
        let usage = self.meter.stop();
        let after = scrape(self.admin);
        let bytes = (bytes - self.bytes) as f64;
        // Those that carry the bytes; for UDP the datagrams, of which a QUIC packet has several.
        let counter = match self.args.scenario {
            Scenario::Tcp => "quic_packets_sent",
            Scenario::TcpReverse => "quic_packets_received",
            Scenario::Udp => "udp_datagrams_in",
        };
        let grown = self.scrape.as_ref().zip(after.as_ref());
        let packets = grown.map_or(f64::NAN, |(before, after)| after.growth(before, counter));
        Traffic {
            bytes: bytes * share,
            packets: packets * share,
            cpu_seconds: usage.tunnel_cpu_seconds() * self.args.seconds_f64() / usage.seconds,
        }
    }
}

/// Records, and meters what happens meanwhile: not from the first to the last moment, because perf
/// itself takes CPU time from the load when it starts and when it writes what it has.
fn metered(
    args: &ProfileArgs,
    tunnel: &Tunnel,
    bytes: impl Fn() -> u64,
    record: impl FnOnce() -> Result<(), BenchError> + Send,
) -> Result<Traffic, BenchError> {
    let length = Duration::from_secs(args.seconds).saturating_sub(2 * PERF_START);
    thread::scope(|scope| {
        let recording = scope.spawn(record);
        thread::sleep(PERF_START);
        let window = Window::open(args, tunnel, bytes());
        thread::sleep(length.max(PERF_START));
        let traffic = window.close(bytes());
        let panicked = |_| BenchError::Failed("recording has panicked".into());
        recording.join().map_err(panicked)??;
        Ok(traffic)
    })
}

impl ProfileArgs {
    fn seconds_f64(&self) -> f64 {
        Duration::from_secs(self.seconds).as_secs_f64()
    }
}

/// Runs `record` while the load runs.
fn under_load(
    args: &ProfileArgs,
    tunnel: &Tunnel,
    service: &Service,
    record: impl FnOnce() -> Result<(), BenchError> + Send,
) -> Result<Traffic, BenchError> {
    let way = match args.scenario {
        Scenario::Tcp => Way::Up,
        Scenario::TcpReverse => Way::Down,
        Scenario::Udp => return under_udp(args, tunnel, service, record),
    };
    let bulk = Bulk::start(tunnel.visit, way, 1)?;
    thread::sleep(WARM_UP);
    metered(args, tunnel, || bulk.arrived_bytes(service), record)
}

fn under_udp(
    args: &ProfileArgs,
    tunnel: &Tunnel,
    service: &Service,
    record: impl FnOnce() -> Result<(), BenchError> + Send,
) -> Result<Traffic, BenchError> {
    let failed = || BenchError::io("sending UDP");
    let mut source = UdpSource::new(tunnel.visit).map_err(failed())?;
    let rate = args.udp_gbit * 1e9 / 8.0 / args.udp_size as f64;
    let stream = Stream {
        payload_bytes: args.udp_size,
        rate,
        burst_packets: BURST,
        duration: WARM_UP + Duration::from_secs(args.seconds) + WARM_UP,
    };
    thread::scope(|scope| {
        let sending = scope.spawn(|| source.deliver(&stream, service));
        thread::sleep(WARM_UP);
        let recorded = metered(args, tunnel, || service.udp.counts().bytes, record);
        let panicked = |_| BenchError::Failed("the source has panicked".into());
        let delivery = sending.join().map_err(panicked)?.map_err(failed())?;
        println!(
            "{:.0} packets/s arrived, {:.2} % were lost",
            delivery.arrived_per_second(),
            delivery.lost_percent()
        );
        recorded
    })
}

/// Records the stacks of a process. `cpu-clock` needs no hardware counters, which virtual machines
/// rarely have.
fn record(args: &ProfileArgs, process: &Metered, data: &Path) -> Result<(), BenchError> {
    let seconds = args.seconds.to_string();
    let launch = Launch::new("perf record", "perf")
        .args(["record", "-e", "cpu-clock", "--quiet", "--call-graph"])
        .args([&args.call_graph])
        .args(["-F".to_owned(), FREQUENCY.to_owned()])
        .args(["-p".to_owned(), process.pid.to_string(), "-o".to_owned()])
        .args([data.as_os_str()])
        .args(["--", "sleep", &seconds]);
    let ended = launch.run(Duration::from_secs(args.seconds) + PERF_OVERHEAD)?;
    if ended.succeeded {
        return Ok(());
    }
    Err(ended.into_error(&launch.name))
}

fn present(args: &ProfileArgs, stacks: &Stacks, traffic: &Traffic) -> Result<(), BenchError> {
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map_or(String::new(), |it| it.get_name().to_owned())
    };
    let scenario = name(args.scenario.to_possible_value());
    let side = name(args.side.to_possible_value());
    let label = &args.one.tunnel.label;
    let title = format!("{label} {side}, {scenario}");
    let directory = &args.out;
    std::fs::create_dir_all(directory)
        .map_err(BenchError::io(format!("making {}", directory.display())))?;
    let stem = format!("flamegraph-{label}-{scenario}-{side}");
    let mut top = format!("{title}: {}", stacks.top(SYMBOLS));
    if args.stages {
        let stages = stages::stages(stacks);
        let programs = args.one.programs.clone();
        let programs = programs.unwrap_or_else(qmux_harness::own_directory);
        let profile = Profile {
            title: title.clone(),
            machine: Machine::describe(std::slice::from_ref(&args.one.tunnel), &programs),
            traffic: *traffic,
            stages: stages.iter().map(|it| (it.name, it.ns)).collect(),
        };
        let json = serde_json::to_string_pretty(&profile)
            .map_err(|error| BenchError::Failed(format!("the stages as JSON: {error}")))?;
        write(&directory.join(format!("{stem}.json")), &json)?;
        let stages = stages::table(&stages, traffic);
        let packets = match args.scenario {
            Scenario::Udp => "datagrams",
            Scenario::Tcp | Scenario::TcpReverse => "QUIC packets",
        };
        top.push_str(&format!(
            "\nby stage; {:.2} GB in {:.0} {packets} in {} s:\n\n{stages}",
            traffic.bytes / 1e9,
            traffic.packets,
            args.seconds
        ));
    }
    let svg = stacks.svg(&title).map_err(BenchError::Failed)?;
    let files = [
        (directory.join(format!("{stem}.svg")), svg.as_str()),
        (directory.join(format!("{stem}.txt")), top.as_str()),
        (directory.join(format!("{stem}.folded")), stacks.folded()),
    ];
    println!("{top}");
    for (path, text) in files {
        write(&path, text)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
