//! `qmux-bench attack`: what honest visitors and the machine notice while strangers attack.
//!
//! A pair of server and client carries honest requests and UDP questions all the time. Before,
//! during and after an attack the round trips, failures, memory and descriptors are noted. What is
//! attacked is a tunnel that this program has started itself, on loopback or in network namespaces
//! of its own.

mod honest;

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qmux_bench::harness::BenchError;
use qmux_bench::harness::meter::Role;
use qmux_bench::harness::place::Place;
use qmux_bench::harness::proc_stat;
use qmux_bench::harness::tunnel::Tunnel;
use qmux_bench::load::wire::{self, Command};
use qmux_link::{Preset, Profile};

use crate::background::One;
use honest::Honest;

/// How long the first visitor may take.
const WORKS_LIMIT: Duration = Duration::from_secs(20);

/// Between two looks at memory and descriptors.
const LOOK: Duration = Duration::from_millis(100);

/// Datagrams of strangers between two pauses, and the pause: some 10,000 a second.
const SOURCES_PER_BURST: usize = 100;
const SOURCE_PAUSE: Duration = Duration::from_millis(10);

/// What a visitor reads before it stops.
const READ_BEFORE_STOPPING: u64 = 20 << 20;

/// Visitors who read at a time, and for how long one waits for bytes.
const READERS: usize = 20;
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// How strangers attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// One datagram of one byte from each of many UDP sources.
    Sources,
    /// Visitors over 40 ms who read 20 MiB each and then stop reading.
    Stalled,
}

/// What to attack, and how.
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
    /// Seconds before the attack, while it is held, and after it
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Memory of flows of each side, as in `[limits] memory`
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let place = match args.kind {
        Kind::Sources => Place::loopback(),
        Kind::Stalled => Place::link(&long_way())?,
    };
    let mut setup = args.one.setup(place)?;
    if let Some(size) = &args.memory {
        setup
            .overrides
            .add("limits", format!("memory = \"{size}\""));
    }
    let (_service, tunnel) = args.one.start(&setup, args.cores, WORKS_LIMIT)?;
    println!(
        "| | honest requests: p50, p99 ms (failed) | UDP: p50, p99 ms (lost) | server: MiB, \
         descriptors | client |\n| --- | --- | --- | --- | --- |"
    );
    let honest = Honest::start(tunnel.visit);
    let hold = Duration::from_secs_f64(args.seconds);
    let mut watch = Watch::new(&tunnel);
    // What exists once is there before anything is noted.
    thread::sleep(Duration::from_secs(1));
    let _ = honest.take();
    watch.during("before", &honest, || thread::sleep(hold));
    let attackers = watch.during("during", &honest, || {
        let attackers = attack(args, tunnel.visit);
        thread::sleep(hold);
        attackers
    });
    drop(attackers);
    watch.during("after", &honest, || thread::sleep(hold));
    let wrong = honest.stop();
    let farewell = tunnel.stop();
    let counted = [
        ("server", &farewell.server_counters),
        ("client", &farewell.client_counters),
    ];
    for (side, counters) in counted {
        let names = [
            "dropped",
            "refused",
            "stalled",
            "evicted",
            "memory",
            "unanswered",
        ];
        let told: Vec<String> = counters
            .iter()
            .filter(|(name, count)| **count > 0 && names.iter().any(|part| name.contains(part)))
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        println!("{side} counted: {}", told.join(" "));
    }
    for line in &wrong {
        println!("**wrong**: {line}");
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

/// What must stay for the attack to go on.
struct Attackers(#[expect(dead_code, reason = "held open")] Vec<TcpStream>);

fn attack(args: &Args, visit: SocketAddr) -> Attackers {
    match args.kind {
        Kind::Sources => {
            one_datagram_each(visit, args.count.unwrap_or(40_000));
            Attackers(Vec::new())
        }
        Kind::Stalled => Attackers(readers_who_stop(visit, args.count.unwrap_or(300))),
    }
}

/// One byte from each of so many sources: addresses of loopback, some ports of each.
fn one_datagram_each(visit: SocketAddr, count: usize) {
    for source in 0..count {
        let [_, _, high, low] = u32::try_from(source % 10_000)
            .unwrap_or_default()
            .to_be_bytes();
        let from = Ipv4Addr::new(127, 77, high, low.max(1));
        // A port that is taken is one source fewer.
        if let Ok(socket) = UdpSocket::bind((from, 0)) {
            let _lost = socket.send_to(b"x", visit);
        }
        if source % SOURCES_PER_BURST == 0 {
            thread::sleep(SOURCE_PAUSE);
        }
    }
}

fn readers_who_stop(visit: SocketAddr, count: usize) -> Vec<TcpStream> {
    let read_and_stop = || -> std::io::Result<TcpStream> {
        let mut stream = wire::connect_for(Command::Source, visit, READ_PATIENCE)?;
        let mut buffer = vec![0; 256 << 10];
        let mut read = 0;
        while read < READ_BEFORE_STOPPING {
            match stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                more => read += more as u64,
            }
        }
        Ok(stream)
    };
    let mut stopped = Vec::new();
    for first in (0..count).step_by(READERS) {
        let now = READERS.min(count - first);
        let streams = thread::scope(|scope| {
            let readers: Vec<_> = (0..now).map(|_| scope.spawn(read_and_stop)).collect();
            readers
                .into_iter()
                .filter_map(|reader| reader.join().ok()?.ok())
                .collect::<Vec<_>>()
        });
        stopped.extend(streams);
    }
    eprintln!(
        "{} visitors have read their part and stopped",
        stopped.len()
    );
    stopped
}

/// Memory and descriptors of both sides.
struct Watch {
    sides: [u32; 2],
}

impl Watch {
    fn new(tunnel: &Tunnel) -> Self {
        let sides = [Role::Server, Role::Client].map(|role| tunnel.pid(role).unwrap_or(0));
        Self { sides }
    }

    /// Runs `phase`, and prints what was noticed meanwhile, the largest values of each side.
    fn during<T>(&mut self, name: &str, honest: &Honest, phase: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let sides = self.sides;
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
        println!(
            "| {name} ({:.0} s) | {requests} | {questions} | {} MiB, {} | {} MiB, {} |",
            began.elapsed().as_secs_f64(),
            most[0].0,
            most[0].1,
            most[1].0,
            most[1].1,
        );
        result
    }
}
