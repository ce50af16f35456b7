//! `qmux-bench soak`: mixed load for many minutes, and whether memory, descriptors, CPU time per
//! byte and latency stay as they are.
//!
//! A server and two clients carry long echoes, short visitors, UDP questions, downloads that are
//! aborted and visitors who stop reading; one of the clients is killed and started again time and
//! again. What comes out is one picture and one table. A byte that is wrong, or a clean end with
//! bytes missing, fails the run wherever it happens.

mod load;
mod picture;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use qmux_harness::Program;

use crate::commands::background::{One, WORKS_LIMIT};
use crate::harness::cleanup::say;
use crate::harness::meter::Role;
use crate::harness::place::Place;
use crate::harness::proc_stat::{self, CpuTime};
use crate::harness::tunnel::Tunnel;
use crate::harness::write;
use load::Load;

/// One sample.
const SAMPLE: Duration = Duration::from_secs(5);

/// Between two kills of the second client.
const KILL_EVERY: Duration = Duration::from_secs(45);

/// How long it stays away.
const AWAY: Duration = Duration::from_secs(3);

/// UDP flows that nobody uses any more are gone long before the first quarter is over.
const SESSION_TIMEOUT: &str = "session_timeout = \"15s\"";

/// What memory and descriptors at the end may be of what they were at first, for the run to count
/// as flat.
const GROWTH_MAX: f64 = 1.15;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    one: One,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 15.0)]
    minutes: f64,
    /// Cores of each side
    #[arg(long, value_name = "N", default_value_t = 2)]
    cores: usize,
    /// Where the picture goes
    #[arg(long, value_name = "FILE", default_value = "soak.svg")]
    svg: PathBuf,
}

/// What is sampled: the panel of the picture, its line there, its row in the table, and whether it
/// must stay as it was.
const SERIES: [(&str, &str, &str, bool); 7] = [
    ("memory, MiB", "server", "server, MiB in memory", true),
    ("memory, MiB", "client", "client, MiB in memory", true),
    ("open descriptors", "server", "server, files", true),
    ("open descriptors", "client", "client, files", true),
    (CPU, "CPU s/GB", "CPU s/GB", false),
    ("requests, ms", "p50", "requests, p50 ms", false),
    ("requests, ms", "p99", "requests, p99 ms", false),
];
const CPU: &str = "CPU seconds per GB, server and client";

/// One interval.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Since the start, at its end.
    minutes: f64,
    /// Of each of [`SERIES`]; `None` where too few bytes passed to tell what one costs.
    values: [Option<f64>; SERIES.len()],
}

/// The processes that live through it all.
struct Watched {
    server: u32,
    client: u32,
    cpu: f64,
    bytes: u64,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut setup = args.one.setup(Place::loopback())?;
    setup.overrides.add("udp", SESSION_TIMEOUT);
    let (_service, tunnel) = args.one.start(&setup, args.cores, WORKS_LIMIT)?;
    let mut load = Load::start(tunnel.visit);
    let mut samples = Vec::new();
    let soaked = soak(args, &tunnel, &load, &mut samples);
    let wrong = load.stop();
    let farewell = tunnel.stop();
    let kills = soaked?;
    write(&args.svg, &picture::draw(&samples)?)?;
    say!("wrote {}", args.svg.display());
    say!("\n{}; a client killed {kills} times", load.tally.summary());
    for line in farewell.complaints.iter().take(5) {
        say!("complaint: {line}");
    }
    for line in &wrong {
        say!("**wrong**: {line}");
    }
    Ok(is_flat(&samples) && wrong.is_empty())
}

/// Samples and kills until the time is over. Returns how often the second client was killed.
fn soak(args: &Args, tunnel: &Tunnel, load: &Load, samples: &mut Vec<Sample>) -> Result<usize> {
    let began = Instant::now();
    let lasts = Duration::from_secs_f64(args.minutes * 60.0);
    let mut second: Option<Program> = Some(tunnel.another_client()?);
    let (mut kills, mut last_kill) = (0, Instant::now());
    let mut watched = Watched::new(tunnel)?;
    while began.elapsed() < lasts {
        thread::sleep(SAMPLE);
        samples.push(watched.sample(load, began.elapsed()));
        if second.is_some() && last_kill.elapsed() >= KILL_EVERY {
            // Dropping a program kills it.
            second = None;
            (kills, last_kill) = (kills + 1, Instant::now());
        } else if second.is_none() && last_kill.elapsed() >= AWAY {
            second = Some(tunnel.another_client()?);
        }
    }
    Ok(kills)
}

impl Watched {
    fn new(tunnel: &Tunnel) -> Result<Self> {
        let pid = |role| {
            let pid = tunnel.pid(role);
            pid.context("a soak needs a tunnel with two sides")
        };
        let mut watched = Self {
            server: pid(Role::Server)?,
            client: pid(Role::Client)?,
            cpu: 0.0,
            bytes: 0,
        };
        watched.cpu = watched.cpu_seconds();
        Ok(watched)
    }

    fn cpu_seconds(&self) -> f64 {
        let times = [self.server, self.client].map(proc_stat::cpu_time);
        times.into_iter().flatten().map(CpuTime::seconds).sum()
    }

    fn sample(&mut self, load: &Load, at: Duration) -> Sample {
        const MIB: f64 = 1_048_576.0;
        /// Less than this in an interval says nothing about the price of a byte.
        const BYTES_MIN: u64 = 1_000_000;
        let mib = |pid| proc_stat::memory(pid).map_or(0.0, |it| it.resident_bytes as f64 / MIB);
        let (cpu, bytes) = (self.cpu_seconds(), load.bytes());
        let (used, moved) = (cpu - self.cpu, bytes - self.bytes);
        (self.cpu, self.bytes) = (cpu, bytes);
        let (p50_ms, p99_ms) = load.take_latency_ms();
        let descriptors = |pid| Some(proc_stat::descriptors(pid) as f64);
        Sample {
            minutes: at.as_secs_f64() / 60.0,
            values: [
                Some(mib(self.server)),
                Some(mib(self.client)),
                descriptors(self.server),
                descriptors(self.client),
                (moved >= BYTES_MIN).then(|| used / (moved as f64 / 1e9)),
                Some(p50_ms),
                Some(p99_ms),
            ],
        }
    }
}

/// Prints the table, and says whether memory and descriptors stayed as they were.
fn is_flat(samples: &[Sample]) -> bool {
    say!("\n| what | second quarter | last quarter | ratio |\n| --- | --- | --- | --- |");
    let quarter = samples.len() / 4;
    let mut flat = true;
    for (index, (.., name, is_judged)) in SERIES.into_iter().enumerate() {
        let median = |part: &[Sample]| {
            let values = part.iter().filter_map(|it| it.values[index]);
            let mut values: Vec<f64> = values.collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        let before = median(samples.get(quarter..2 * quarter).unwrap_or_default());
        let after = median(samples.get(3 * quarter..).unwrap_or_default());
        let ratio = if before > 0.0 { after / before } else { 1.0 };
        say!("| {name} | {before:.2} | {after:.2} | {ratio:.2} |");
        flat &= !is_judged || ratio <= GROWTH_MAX;
    }
    if !flat {
        say!("**not flat**: memory or files grew by more than {GROWTH_MAX} ×");
    }
    flat
}
