//! `qmux-bench profile` and `qmux-bench flamegraph`: where a tunnel's time goes.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use qmux_harness::Launch;

use crate::commands::background::One;
use crate::harness::admin::Scrape;
use crate::harness::cleanup::say;
use crate::harness::machine::Machine;
use crate::harness::meter::{Meter, Metered, Role};
use crate::harness::tunnel::{Placement, Setup, Tunnel};
use crate::harness::{make, read, write};
use crate::load::bulk::{Bulk, Way};
use crate::load::service::Service;
use crate::load::udp_source::{Stream, UdpSource};
use crate::report::flamegraph::Stacks;
use crate::report::stages::{self, Profile, Traffic};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The output of `perf script`
    #[arg(long, value_name = "FILE")]
    perf_script: PathBuf,
    /// Where the flamegraph goes
    #[arg(long, value_name = "FILE")]
    svg: PathBuf,
}

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
    path: crate::commands::path::Path,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// One TCP connection, from the visitor to the service
    Tcp,
    /// One TCP connection, from the service to the visitor
    TcpReverse,
    /// One UDP flow, from the visitor to the service
    Udp,
}

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

impl Scenario {
    /// What counts those that carry the bytes; for UDP the datagrams, of which a QUIC packet has
    /// several.
    fn counter(self) -> &'static str {
        match self {
            Self::Tcp => "quic_packets_sent",
            Self::TcpReverse => "quic_packets_received",
            Self::Udp => "udp_datagrams_in",
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

pub(crate) fn draw(args: &Args) -> Result<bool> {
    let stacks = Stacks::of_perf_script(&read(&args.perf_script)?)?;
    write(&args.svg, &stacks.svg("qmux-bench")?)?;
    say!("{}", stacks.top(SYMBOLS).trim_end());
    Ok(true)
}

pub(crate) fn profile(args: &ProfileArgs) -> Result<bool> {
    // Packets are counted by the admin endpoint.
    let setup = Setup {
        placement: Placement::Apart,
        ..args.one.setup(args.path.open()?)?
    };
    let (service, tunnel) = args.one.start(&setup, args.cores, PERF_OVERHEAD)?;
    let mut processes = tunnel.processes();
    processes.retain(|it| it.role == args.side.role());
    let process = processes.first();
    let label = &args.one.tunnel.label;
    let process = process.with_context(|| format!("{label} has no process to be profiled"))?;
    let data = setup.site.path().join("perf.data");
    let under = Under {
        args,
        tunnel: &tunnel,
        service: &service,
        processes: &processes,
    };
    let counted = setup.site.path().join("counted.csv");
    let traffic = under.load(|| record(args, process, &data, &counted))?;
    for complaint in tunnel.stop().complaints {
        eprintln!("{complaint}");
    }
    let script = Launch::new("perf script", "perf")
        .words("script --no-inline --force -i")
        .args([data])
        .output(PERF_SCRIPT_LIMIT)?;
    present(args, &Stacks::of_perf_script(&script)?, &traffic)?;
    Ok(true)
}

/// What is recorded under which load.
struct Under<'a> {
    args: &'a ProfileArgs,
    tunnel: &'a Tunnel,
    service: &'a Service,
    processes: &'a [Metered],
}

impl Under<'_> {
    /// Records while the load runs.
    fn load(&self, record: impl FnOnce() -> Result<f64> + Send) -> Result<Traffic> {
        let (args, visit) = (self.args, self.tunnel.visit);
        let way = match args.scenario {
            Scenario::Tcp => Way::Up,
            Scenario::TcpReverse => Way::Down,
            Scenario::Udp => {
                let mut source = UdpSource::new(visit)?;
                let duration = WARM_UP + Duration::from_secs(args.seconds) + WARM_UP;
                let stream = Stream::of_gbit(args.udp_size, args.udp_gbit);
                return thread::scope(|scope| {
                    let sending = scope.spawn(|| source.deliver(&stream, duration, self.service));
                    thread::sleep(WARM_UP);
                    let recorded = self.metered(|| self.service.udp.counts().bytes, record);
                    let delivery = sending.join();
                    let delivery = delivery.unwrap_or_else(|_| bail!("the source has panicked"))?;
                    let (rate, lost) = (delivery.arrived_per_second(), delivery.lost_percent());
                    say!("{rate:.0} packets/s arrived, {lost:.2} % were lost");
                    recorded
                });
            }
        };
        let bulk = Bulk::start(visit, way, 1)?;
        thread::sleep(WARM_UP);
        self.metered(|| bulk.arrived_bytes(self.service), record)
    }

    /// Records, and meters what happens meanwhile: not from the first to the last moment, because
    /// perf itself takes CPU time from the load when it starts and when it writes what it has.
    /// Returns the traffic of as many seconds as are recorded.
    fn metered(
        &self,
        bytes: impl Fn() -> u64,
        record: impl FnOnce() -> Result<f64> + Send,
    ) -> Result<Traffic> {
        let recorded = Duration::from_secs(self.args.seconds);
        let length = recorded.saturating_sub(2 * PERF_START);
        // An older program may have no such endpoint; then there are no packets to count.
        let scrape = || Scrape::read(self.tunnel.admin?).ok();
        thread::scope(|scope| {
            let recording = scope.spawn(record);
            thread::sleep(PERF_START);
            let (scrape_before, bytes_before) = (scrape(), bytes());
            let (began, meter) = (Instant::now(), Meter::start(self.processes));
            thread::sleep(length.max(PERF_START));
            let bytes = (bytes() - bytes_before) as f64;
            let share = recorded.as_secs_f64() / began.elapsed().as_secs_f64();
            let usage = meter.stop();
            let grown = scrape_before.zip(scrape());
            let counter = self.args.scenario.counter();
            let packets = grown.map(|(before, after)| after.growth(&before, counter) * share);
            let recorded = recording.join();
            let on_cpu = recorded.unwrap_or_else(|_| bail!("recording has panicked"))?;
            Ok(Traffic {
                bytes: bytes * share,
                packets,
                on_cpu_seconds: on_cpu,
                charged_seconds: usage.tunnel_cpu_seconds() * share,
            })
        })
    }
}

/// Records the stacks of a process, and counts the seconds that it is on a CPU meanwhile, which
/// are returned. `cpu-clock` and `task-clock` need no hardware counters, which virtual machines
/// rarely have.
fn record(args: &ProfileArgs, process: &Metered, data: &Path, counted: &Path) -> Result<f64> {
    let (seconds, graph, pid) = (args.seconds, &args.call_graph, process.pid);
    let limit = Duration::from_secs(seconds) + PERF_OVERHEAD;
    // Samples are taken while perf stat starts and ends, too: a few milliseconds. In the C locale
    // it writes numbers as they are read here.
    Launch::new("perf record", "perf")
        .env("LC_ALL", "C")
        .words(&format!(
            "record -e cpu-clock --quiet --call-graph {graph} -F {FREQUENCY} -p {pid}"
        ))
        .args(["-o".as_ref(), data])
        .words(&format!("-- perf stat -x, -e task-clock -p {pid} -o"))
        .args([counted])
        .words(&format!("-- sleep {seconds}"))
        .succeed(limit)?;
    let counted = read(counted)?;
    let seconds = on_cpu_seconds(&counted);
    seconds.with_context(|| format!("perf stat has counted nothing: {counted}"))
}

/// The seconds of `task-clock`, from what `perf stat -x,` writes, which is in milliseconds.
fn on_cpu_seconds(counted: &str) -> Option<f64> {
    let lines = counted.lines().filter(|line| line.contains(",task-clock"));
    let milliseconds = lines.filter_map(|line| line.split(',').next()?.parse::<f64>().ok());
    let seconds: f64 = milliseconds.sum::<f64>() / 1e3;
    (seconds > 0.0).then_some(seconds)
}

fn name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or(String::new(), |it| it.get_name().to_owned())
}

fn present(args: &ProfileArgs, stacks: &Stacks, traffic: &Traffic) -> Result<()> {
    let (scenario, side) = (name(&args.scenario), name(&args.side));
    let label = &args.one.tunnel.label;
    let title = format!("{label} {side}, {scenario}");
    make(&args.out)?;
    let stem = format!("flamegraph-{label}-{scenario}-{side}");
    let path = |ending| args.out.join(format!("{stem}.{ending}"));
    let mut top = format!("{title}: {}", stacks.top(SYMBOLS));
    if args.stages {
        let stages = stages::stages(stacks);
        let programs = args.one.programs.clone();
        let programs = programs.unwrap_or_else(qmux_harness::own_directory);
        let owned = stages.iter().map(|(name, ns)| ((*name).into(), *ns));
        let profile = Profile {
            title: title.clone(),
            machine: Machine::describe(std::slice::from_ref(&args.one.tunnel), &programs),
            traffic: *traffic,
            stages: owned.collect(),
        };
        write(&path("json"), &serde_json::to_string_pretty(&profile)?)?;
        let unit = match args.scenario {
            Scenario::Udp => "datagrams",
            Scenario::Tcp | Scenario::TcpReverse => "QUIC packets",
        };
        let (gb, packets) = (traffic.bytes / 1e9, traffic.packets.unwrap_or(f64::NAN));
        let (seconds, table) = (args.seconds, stages::table(&stages, traffic));
        top += &format!("\nby stage; {gb:.2} GB in {packets:.0} {unit} in {seconds} s:\n\n{table}");
    }
    let svg = stacks.svg(&title)?;
    say!("{top}");
    let files = [
        ("svg", svg.as_str()),
        ("txt", top.as_str()),
        ("folded", stacks.folded()),
    ];
    for (ending, text) in files {
        let path = path(ending);
        write(&path, text)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_on_the_cpu_are_read_from_what_perf_stat_writes() {
        let written = "\
# started on Mon Nov 30 14:49:52 2026

1334.27,msec,task-clock,1334270000,100.00,0.666,CPUs utilized
";
        let seconds = on_cpu_seconds(written).expect("it has counted something");
        assert!((seconds - 1.334_27).abs() < 1e-9, "{seconds}");
        for nothing in ["", "<not counted>,msec,task-clock,0,100.00,,\n"] {
            assert_eq!(on_cpu_seconds(nothing), None, "{nothing}");
        }
    }
}
