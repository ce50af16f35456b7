//! `qmux-bench attack`: what honest visitors and the machine notice while strangers attack.
//!
//! A pair of server and client carries honest requests and UDP questions all the time. The round
//! trips, failures, memory and descriptors are recorded before, during and after an attack. The
//! attack is on a tunnel that this program has started itself, on loopback or in network namespaces
//! of its own.

mod honest;

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use qmux_link::{Preset, Profile};

use crate::commands::background::{One, WORKS_LIMIT};
use crate::harness::cleanup::say;
use crate::harness::meter::Role;
use crate::harness::place::Place;
use crate::harness::proc_stat;
use crate::harness::tunnel::Tunnel;
use crate::load::wire::{self, Command};
use honest::Honest;

/// The time between two samples of memory and descriptors.
const LOOK: Duration = Duration::from_millis(100);

/// The number of datagrams from strangers between two pauses, and the length of a pause: some
/// 10,000 datagrams per second.
const SOURCES_PER_BURST: usize = 100;
const SOURCE_PAUSE: Duration = Duration::from_millis(10);

/// The bytes that a visitor reads before it stops reading.
const READ_BEFORE_STOPPING: u64 = 20 << 20;

/// The number of visitors that read at the same time, and how long one waits for bytes.
const READERS: usize = 20;
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Parts of the names of the counters that are printed, because they show the effects of attacks.
const COUNTED: [&str; 6] = [
    "dropped",
    "refused",
    "stalled",
    "evicted",
    "memory",
    "unanswered",
];

/// How strangers attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// One datagram of one byte from each of many UDP sources.
    Sources,
    /// Visitors with a round trip of 40 ms that read 20 MiB each and then stop reading.
    Stalled,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How
    #[arg(value_enum)]
    kind: Kind,
    /// How many sources or visitors [default: 40000 sources, 300 visitors]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    #[command(flatten)]
    one: One,
    /// Cores of each side
    #[arg(long, value_name = "N", default_value_t = 1)]
    cores: usize,
    /// Seconds of each phase: before, during and after the attack
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Memory of flows of each side, as in `[limits] memory`
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let place = match args.kind {
        Kind::Sources => Place::loopback(),
        Kind::Stalled => Place::link(&long_way())?,
    };
    let mut setup = args.one.setup(place)?;
    if let Some(size) = &args.memory {
        let line = format!("memory = \"{size}\"");
        setup.overrides.add("limits", line);
    }
    let (_service, tunnel) = args.one.start(&setup, args.cores, WORKS_LIMIT)?;
    say!(
        "| | honest requests: p50, p99 ms (failed) | UDP: p50, p99 ms (lost) | server: MiB, \
         descriptors | client |\n| --- | --- | --- | --- | --- |"
    );
    let honest = Honest::start(tunnel.visit);
    let hold = || thread::sleep(Duration::from_secs_f64(args.seconds));
    // Within a second the tunnel allocates what it needs only once, before anything is recorded.
    thread::sleep(Duration::from_secs(1));
    let _ = honest.take();
    during("before", &tunnel, &honest, hold);
    let attackers = during("during", &tunnel, &honest, || {
        let attackers = attack(args, tunnel.visit);
        hold();
        attackers
    });
    drop(attackers);
    during("after", &tunnel, &honest, hold);
    let wrong = honest.stop();
    let farewell = tunnel.stop();
    for (side, counters) in farewell.sides() {
        let is_told = |name: &str| COUNTED.iter().any(|part| name.contains(part));
        let counters = counters.iter();
        let told: Vec<String> = counters
            .filter(|(name, count)| **count > 0 && is_told(name))
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        say!("{side} counted: {}", told.join(" "));
    }
    for line in &wrong {
        say!("**wrong**: {line}");
    }
    Ok(wrong.is_empty())
}

fn long_way() -> Preset {
    let profile = Profile {
        delay: Duration::from_millis(20),
        ..Profile::default()
    };
    Preset {
        name: "long-way",
        summary: "40 ms round trip, as fast as this machine",
        left_to_right: profile.clone(),
        right_to_left: profile,
    }
}

/// Starts the attack. Returns the connections that must stay open for it to go on.
fn attack(args: &Args, visit: SocketAddr) -> Vec<TcpStream> {
    match args.kind {
        Kind::Sources => {
            one_datagram_each(visit, args.count.unwrap_or(40_000));
            Vec::new()
        }
        Kind::Stalled => readers_who_stop(visit, args.count.unwrap_or(300)),
    }
}

/// Sends one byte from each of `count` sources: loopback addresses, with some ports of each.
fn one_datagram_each(visit: SocketAddr, count: usize) {
    for source in 0..count {
        let number = u32::try_from(source % 10_000).unwrap_or_default();
        let [_, _, high, low] = number.to_be_bytes();
        let from = Ipv4Addr::new(127, 77, high, low.max(1));
        // If no port can be bound, there is one source fewer.
        if let Ok(socket) = UdpSocket::bind((from, 0)) {
            let _lost = socket.send_to(b"x", visit);
        }
        if source % SOURCES_PER_BURST == 0 {
            thread::sleep(SOURCE_PAUSE);
        }
    }
}

fn readers_who_stop(visit: SocketAddr, count: usize) -> Vec<TcpStream> {
    let read_and_stop = || -> io::Result<TcpStream> {
        let stream = wire::connect_for(Command::Source, visit, READ_PATIENCE)?;
        let read = io::copy(&mut (&stream).take(READ_BEFORE_STOPPING), &mut io::sink())?;
        match read {
            READ_BEFORE_STOPPING => Ok(stream),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    let mut stopped = Vec::new();
    for first in (0..count).step_by(READERS) {
        let now = READERS.min(count - first);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..now).map(|_| scope.spawn(read_and_stop)).collect();
            let readers = readers.into_iter();
            stopped.extend(readers.filter_map(|reader| reader.join().ok()?.ok()));
        });
    }
    let count = stopped.len();
    eprintln!("{count} visitors have read their part and stopped");
    stopped
}

/// Runs `phase`, and prints what was measured in the meantime: of memory and descriptors, the
/// largest values of each side.
fn during<T>(name: &str, tunnel: &Tunnel, honest: &Honest, phase: impl FnOnce() -> T) -> T {
    let sides = [Role::Server, Role::Client].map(|role| tunnel.pid(role).unwrap_or(0));
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let (result, most) = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = [(0, 0); 2];
            while !over.load(Ordering::Relaxed) {
                for (most, pid) in most.iter_mut().zip(sides) {
                    let memory = proc_stat::memory(pid).unwrap_or_default();
                    most.0 = most.0.max(memory.resident_bytes >> 20);
                    most.1 = most.1.max(proc_stat::descriptors(pid));
                }
                thread::sleep(LOOK);
            }
            most
        });
        let result = phase();
        over.store(true, Ordering::Relaxed);
        (result, looking.join().unwrap_or_default())
    });
    let [requests, questions] = honest.take();
    let [server, client] = most.map(|(mib, files)| format!("{mib} MiB, {files}"));
    let seconds = began.elapsed().as_secs_f64();
    say!("| {name} ({seconds:.0} s) | {requests} | {questions} | {server} | {client} |");
    result
}
