//! `qmux-dp allocations`: what the tunnel allocates once its traffic flows steadily, counted by the
//! allocator itself. The command exists only in builds with the feature `count-allocations`.
//!
//! One core is server and client, so it both sends and receives each packet. The command fails if
//! in the steady state this program's own code allocates anything for a packet.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Visit;
use crate::output;
use crate::process::run::Running;
use crate::sys::allocations::{self, Source};

/// Time until pools, windows and packet sizes have settled.
const WARM_UP: Duration = Duration::from_secs(1);

/// For how long allocations are counted.
const COUNTED: Duration = Duration::from_secs(1);

/// Number of allocations whose stacks are recorded.
const RECORDED: usize = 10_000;

/// The longest time for recording them: a load may make fewer allocations than [`RECORDED`].
const RECORDING_MAX: Duration = Duration::from_secs(2);

/// Number of places that are listed for each load.
const PLACES: usize = 12;

/// Bytes written or read at once.
const CHUNK_BYTES: usize = 128 << 10;

/// Datagrams in flight at a time: fewer than the service's socket buffer holds.
const DATAGRAMS_IN_FLIGHT: usize = 16;

/// A datagram that is not back after this time was lost.
const DATAGRAM_TIMEOUT: Duration = Duration::from_millis(100);

/// The most allocations of our own per packet that still count as none: timers, heartbeats and
/// sweeps allocate a number of times per second, however many packets there are.
const OURS_PER_PACKET_MAX: f64 = 0.05;

/// A load, which runs until it is told to stop.
type Load = fn(Visit, &AtomicBool) -> io::Result<()>;

const LOADS: [(&str, Load); 5] = [
    ("TCP bulk, both ways at once", |to, stop| {
        tcp_bulk(to.web, stop)
    }),
    ("TCP, 64 bytes to and fro", |to, stop| {
        tcp_ping(to.web, stop)
    }),
    ("UDP, 64 bytes", |to, stop| udp(to.echo, stop, 64)),
    ("UDP, 1,150 bytes", |to, stop| udp(to.echo, stop, 1_150)),
    ("UDP, 40,000 bytes, in fragments", |to, stop| {
        udp(to.echo, stop, 40_000)
    }),
];

/// Runs every load and prints what it allocates.
///
/// # Errors
/// If a load fails, or if our own code allocates anything for a packet.
pub(super) fn run(running: &Running, visit: Visit) -> Result<(), String> {
    super::traffic::wait_ready(visit.web)?;
    let mut failures = Vec::new();
    for (name, load) in LOADS {
        let stop = AtomicBool::new(false);
        let ours = thread::scope(|scope| {
            let loading = scope.spawn(|| load(visit, &stop));
            let ours = measure(running, name);
            stop.store(true, Ordering::Relaxed);
            match loading.join() {
                Ok(result) => result.map(|()| ours),
                Err(_) => Err(io::Error::other("the load panicked")),
            }
        })
        .map_err(|error| format!("{name}: {error}"))?;
        if ours > OURS_PER_PACKET_MAX {
            failures.push(format!("{name}: {ours:.3} allocations of ours per packet"));
        }
    }
    if failures.is_empty() {
        output::line("none of ours per packet");
        return Ok(());
    }
    Err(failures.join("; "))
}

/// Counts the allocations of a load and prints them. Returns the number of our own allocations per
/// packet.
fn measure(running: &Running, name: &str) -> f64 {
    thread::sleep(WARM_UP);
    let packets = || running.total(|counters| counters.quic_packets_received.get());
    let bytes =
        || running.total(|counters| counters.tcp_bytes_in.get() + counters.udp_bytes_in.get());
    let (before, packets_before, bytes_before) = (allocations::counted(), packets(), bytes());
    thread::sleep(COUNTED);
    let after = allocations::counted();
    let packets = (packets() - packets_before).max(1) as f64;
    let megabytes = (bytes() - bytes_before) as f64 / 1e6;
    let count = (after.allocations - before.allocations) as f64;
    let allocated = (after.bytes - before.bytes) as f64;

    allocations::record(RECORDED);
    let (began, from) = (Instant::now(), allocations::counted().allocations);
    while began.elapsed() < RECORDING_MAX
        && allocations::counted().allocations - from < RECORDED as u64
    {
        thread::sleep(Duration::from_millis(10));
    }
    let mut places: Vec<(Source, u64)> = allocations::recorded().into_iter().collect();
    places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let recorded = places.iter().map(|(_, count)| count).sum::<u64>().max(1) as f64;
    let share_of = |ours: bool| {
        let some = places
            .iter()
            .filter(|(source, _)| source.owner.starts_with("qmux") == ours);
        some.map(|(_, count)| *count).sum::<u64>() as f64 / recorded
    };
    let per_packet = count / packets;
    let ours = per_packet * share_of(true);

    output::line(format_args!(
        "{name}: {packets:.0} QUIC packets, {megabytes:.1} MB in"
    ));
    output::line(format_args!(
        "  allocations: {per_packet:.3} per packet, {:.1} per MB, {:.0} bytes each; ours {ours:.3} per packet, others' {:.3}",
        count / megabytes.max(1e-3),
        allocated / count.max(1.0),
        per_packet * share_of(false),
    ));
    for (source, count) in places.iter().take(PLACES) {
        output::line(format_args!(
            "  {:>8.3} per packet  {:<10} {}",
            per_packet * *count as f64 / recorded,
            source.owner,
            source.place
        ));
    }
    ours
}

fn tcp_bulk(to: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let chunk = vec![0x5a; CHUNK_BYTES];
            while !stop.load(Ordering::Relaxed) {
                writer.write_all(&chunk)?;
            }
            writer.shutdown(std::net::Shutdown::Write)
        });
        let mut chunk = vec![0; CHUNK_BYTES];
        while stream.read(&mut chunk)? > 0 {}
        writing
            .join()
            .map_err(|_| io::Error::other("the writer panicked"))?
    })
}

fn tcp_ping(to: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut ping = [0x5a; 64];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&ping)?;
        stream.read_exact(&mut ping)?;
    }
    Ok(())
}

fn udp(to: SocketAddr, stop: &AtomicBool, length: usize) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(to.ip(), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(DATAGRAM_TIMEOUT))?;
    let datagram = vec![0x5a; length];
    let mut answer = vec![0; 1 << 16];
    let mut in_flight = 0;
    while !stop.load(Ordering::Relaxed) {
        while in_flight < DATAGRAMS_IN_FLIGHT {
            socket.send(&datagram)?;
            in_flight += 1;
        }
        match socket.recv(&mut answer) {
            Ok(_) => in_flight -= 1,
            Err(_lost) => in_flight = 0,
        }
    }
    Ok(())
}
