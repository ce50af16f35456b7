//! A network that stops carrying UDP, in each of the ways in which networks do that, with all kinds
//! of traffic under way: nothing of it is lost. [`table`] measures the same with more, and prints
//! it (`scripts/udp-blocked.sh`).
//!
//! Each test runs in a network namespace of its own, where nftables drop what the rules say when it
//! arrives: its sender notices nothing.

use std::env;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::diagnosis::may_make_networks;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{TcpService, UdpService};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, client_launch};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::visits::{self, Visits};

/// Set where the test has its own network.
const INSIDE: &str = "QMUX_E2E_IN_OWN_NETWORK";

/// Seed of a download's bytes.
const SEED: u64 = 12;

/// The bytes that a download brings at a time, and the pause after that: 25 MB/s at most.
const PIECE_BYTES: usize = 1 << 20;
const PIECE_PAUSE: Duration = Duration::from_millis(40);

/// New visitors per second.
const PER_SECOND: u32 = 50;

/// Pause between two lines that somebody types, and between two datagrams.
const TYPING_PAUSE: Duration = Duration::from_millis(100);
const DATAGRAM_PAUSE: Duration = Duration::from_millis(50);

/// Traffic before the network changes.
const BEFORE: Duration = Duration::from_secs(2);

/// How a network stops carrying UDP: rules for what arrives, with `PORT` for the door's.
struct Way {
    name: &'static str,
    rules: &'static [&'static str],
}

const ALL: Way = Way {
    name: "all of it",
    rules: &["udp dport PORT drop", "udp sport PORT drop"],
};
const TO_THE_SERVER: Way = Way {
    name: "what the client sends",
    rules: &["udp dport PORT drop"],
};
const TO_THE_CLIENT: Way = Way {
    name: "what the server sends",
    rules: &["udp sport PORT drop"],
};
const LARGE: Way = Way {
    name: "packets above 1,300 bytes",
    rules: &[
        "udp dport PORT udp length > 1308 drop",
        "udp sport PORT udp length > 1308 drop",
    ],
};

const ALL_BUT_64_KBIT: Way = Way {
    name: "all but 64 kbit/s",
    rules: &[
        "udp dport PORT limit rate over 8 kbytes/second burst 8 kbytes drop",
        "udp sport PORT limit rate over 8 kbytes/second burst 8 kbytes drop",
    ],
};

/// Whether this process has a network of its own. If not, and if it may make one, runs `test` of
/// this file in one.
fn has_own_network(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    if subject::only_wire("only qmux-dp speaks TLS") || !may_make_networks(test) {
        return false;
    }
    let this = env::current_exe().expect("its path");
    let output = Command::new("unshare")
        .args([
            "--net",
            "--",
            "sh",
            "-c",
            // Batches are cut into packets before rules see them, as they are on a real network.
            "ip link set lo up gso_max_segs 1 && exec \"$@\"",
            "sh",
        ])
        .arg(this)
        .args(["--exact", "--nocapture", "--include-ignored"])
        .arg(format!("udp_blocked::{test}"))
        .env(INSIDE, "1")
        .output()
        .expect("unshare");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} in its own network");
    false
}

fn nft(script: &str) {
    let status = Command::new("nft").arg(script).status().expect("nft");
    assert!(status.success(), "{script}");
}

/// Makes the network drop the packets that `way` names.
fn block(way: &Way, door: SocketAddr) {
    let port = door.port().to_string();
    let mut script =
        String::from("add table ip t; add chain ip t in { type filter hook input priority 0; }; ");
    for rule in way.rules {
        script += &format!("add rule ip t in {}; ", rule.replace("PORT", &port));
    }
    nft(&script);
}

fn pass_again() {
    nft("delete table ip t");
}

/// A service: `d` asks for a download of `download_bytes`, a zero is the first byte of a visitor's
/// request, and whatever else is typed comes back.
fn service(download_bytes: usize) -> TcpService {
    TcpService::start(move |mut stream| {
        let mut first = [0];
        if stream.read_exact(&mut first).is_err() {
            return;
        }
        match first {
            [b'd'] => send_download(&mut stream, download_bytes),
            [0] => {
                let mut request = [0; 8];
                if stream.read_exact(&mut request[1..]).is_ok() {
                    let _gone = stream.write_all(&request);
                }
            }
            _ => {
                let _gone = stream.write_all(&first);
                let mut bytes = [0; 1_024];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    let _gone = stream.write_all(&bytes[..length]);
                }
            }
        }
    })
}

fn send_download(stream: &mut TcpStream, bytes: usize) {
    let mut random = Random::new(SEED);
    let mut piece = vec![0; PIECE_BYTES];
    for _ in 0..bytes / PIECE_BYTES {
        random.fill(&mut piece);
        stream.write_all(&piece).expect("the visitor reads");
        thread::sleep(PIECE_PAUSE);
    }
    visitor::finish(stream);
}

/// All traffic while the network changes.
struct Traffic {
    stop: Arc<AtomicBool>,
    download: JoinHandle<Duration>,
    typing: JoinHandle<Duration>,
    datagrams: JoinHandle<Duration>,
    visits: Visits,
}

/// The observations of a visitor.
struct Seen {
    /// The longest time without a byte of the download, without an answer to a line, and without
    /// an answer to a datagram.
    download: Duration,
    typing: Duration,
    datagrams: Duration,
    visits: Vec<visits::Visit>,
}

impl Traffic {
    fn start(traffic: SocketAddr, download_bytes: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Self {
            download: thread::spawn(move || download(traffic, download_bytes)),
            typing: thread::spawn({
                let stop = Arc::clone(&stop);
                move || type_lines(traffic, &stop)
            }),
            datagrams: thread::spawn({
                let stop = Arc::clone(&stop);
                move || send_datagrams(traffic, &stop)
            }),
            visits: Visits::start(traffic, PER_SECOND),
            stop,
        }
    }

    /// Waits for the whole download; everything else goes on until then.
    fn finish(self) -> Seen {
        let download = self.download.join().expect("the download is exact");
        self.stop.store(true, Ordering::SeqCst);
        Seen {
            download,
            typing: self.typing.join().expect("each line is answered"),
            datagrams: self.datagrams.join().expect("the UDP flow goes on"),
            visits: self.visits.finish(),
        }
    }
}

/// Reads a whole download, of which each byte must be right. Returns the longest pause.
fn download(traffic: SocketAddr, bytes: usize) -> Duration {
    let mut stream = visitor::connect(traffic);
    stream.write_all(b"d").expect("sent");
    let mut expected = Random::new(SEED);
    let mut longest = Duration::ZERO;
    for _ in 0..bytes / PIECE_BYTES {
        let before = Instant::now();
        visitor::receive_on(&mut stream, &mut expected, PIECE_BYTES);
        longest = longest.max(before.elapsed());
    }
    visitor::finish(&stream);
    let ending = visitor::read_to_end(&mut stream);
    assert_eq!(ending, Ending::Clean(Vec::new()));
    longest
}

fn type_lines(traffic: SocketAddr, stop: &AtomicBool) -> Duration {
    let mut stream = visitor::connect(traffic);
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::SeqCst) {
        let before = Instant::now();
        visitor::exchange(&mut stream, b"ls -l\n");
        longest = longest.max(before.elapsed());
        thread::sleep(TYPING_PAUSE);
    }
    visitor::finish(&stream);
    let ending = visitor::read_to_end(&mut stream);
    assert_eq!(ending, Ending::Clean(Vec::new()));
    longest
}

fn send_datagrams(traffic: SocketAddr, stop: &AtomicBool) -> Duration {
    let mut visitor = UdpVisitor::new(traffic);
    let (mut longest, mut answered) = (Duration::ZERO, Instant::now());
    while !stop.load(Ordering::SeqCst) {
        visitor.send(b"a datagram");
        if visitor.receive_within(DATAGRAM_PAUSE, b"a datagram") {
            longest = longest.max(answered.elapsed());
            answered = Instant::now();
            thread::sleep(DATAGRAM_PAUSE);
        }
    }
    longest.max(answered.elapsed())
}

/// A tunnel in this network.
struct World {
    server: Server,
    client: Program,
    _services: (TcpService, UdpService),
    _site: Site,
}

impl World {
    /// A world whose network blocks what `from_start` says; returns also how long it took until a
    /// visitor was served.
    fn new(download_bytes: usize, from_start: Option<&Way>) -> (Self, Duration) {
        let (site, tcp) = (Site::new(), service(download_bytes));
        let udp = std::net::UdpSocket::bind(tcp.address).expect("the same port");
        let udp = UdpService::echo_on(udp);
        let server = Server::start(&site, &ServerSetup::default());
        if let Some(way) = from_start {
            block(way, server.quic());
        }
        let began = Instant::now();
        let setup = ClientSetup::default();
        let client = client_launch(&site, &setup, server.quic(), tcp.address).start();
        client.wait_until_ready().expect("a client");
        visitor::wait_until_served(server.traffic());
        let world = Self {
            server,
            client,
            _services: (tcp, udp),
            _site: site,
        };
        (world, began.elapsed())
    }

    fn waits_for(&self, moved: &str) {
        let moves = |line: &str| line.contains(&format!("a lane goes over {moved} with its flows"));
        self.client.wait_for_line(moved, moves);
    }
}

/// Drops what `way` says in the middle of everything, and passes it again.
fn in_the_middle(way: &Way, download_bytes: usize) -> Seen {
    let (world, _) = World::new(download_bytes, None);
    let traffic = Traffic::start(world.server.traffic(), download_bytes);
    thread::sleep(BEFORE);
    block(way, world.server.quic());
    let seen = traffic.finish();
    // What was under way has its end; new visitors are served.
    visitor::wait_until_served(world.server.traffic());
    pass_again();
    seen
}

const SMALL_DOWNLOAD_BYTES: usize = 100 << 20;

#[test]
fn a_client_serves_from_the_start_where_udp_does_not_pass() {
    if !has_own_network("a_client_serves_from_the_start_where_udp_does_not_pass") {
        return;
    }
    for way in [ALL, TO_THE_SERVER, TO_THE_CLIENT] {
        let (world, _) = World::new(PIECE_BYTES, Some(&way));
        let traffic = Traffic::start(world.server.traffic(), PIECE_BYTES);
        let seen = traffic.finish();
        assert!(
            seen.visits.iter().all(|visit| visit.result.is_ok()),
            "{}",
            way.name
        );
        pass_again();
    }
}

#[test]
fn nothing_is_lost_when_udp_is_dropped_in_the_middle_of_everything() {
    if !has_own_network("nothing_is_lost_when_udp_is_dropped_in_the_middle_of_everything") {
        return;
    }
    in_the_middle(&ALL, SMALL_DOWNLOAD_BYTES);
}

#[test]
fn nothing_is_lost_when_one_direction_of_udp_is_dropped_in_the_middle_of_everything() {
    const TEST: &str =
        "nothing_is_lost_when_one_direction_of_udp_is_dropped_in_the_middle_of_everything";
    if !has_own_network(TEST) {
        return;
    }
    for way in [TO_THE_SERVER, TO_THE_CLIENT] {
        in_the_middle(&way, SMALL_DOWNLOAD_BYTES);
    }
}

#[test]
fn nothing_is_lost_when_large_udp_packets_are_dropped_in_the_middle_of_everything() {
    const TEST: &str =
        "nothing_is_lost_when_large_udp_packets_are_dropped_in_the_middle_of_everything";
    if !has_own_network(TEST) {
        return;
    }
    in_the_middle(&LARGE, SMALL_DOWNLOAD_BYTES);
}

#[test]
fn nothing_is_lost_when_a_trickle_of_udp_alone_passes_in_the_middle_of_everything() {
    const TEST: &str =
        "nothing_is_lost_when_a_trickle_of_udp_alone_passes_in_the_middle_of_everything";
    if !has_own_network(TEST) {
        return;
    }
    in_the_middle(&ALL_BUT_64_KBIT, SMALL_DOWNLOAD_BYTES);
}

/// `scripts/udp-blocked.sh` prints what it prints. It measures; nothing here fails for being slow.
#[test]
#[ignore = "takes minutes"]
fn table() {
    const DOWNLOAD_BYTES: usize = 200 << 20;
    if !has_own_network("table") {
        return;
    }
    println!(
        "| dropped | when | served after | longest pause: download, lines, datagrams | \
         visitors (refused), slowest | flows lost |\n| --- | --- | --- | --- | --- | --- |"
    );
    for way in [ALL, TO_THE_SERVER, TO_THE_CLIENT] {
        let (world, served) = World::new(DOWNLOAD_BYTES, Some(&way));
        let seen = Traffic::start(world.server.traffic(), DOWNLOAD_BYTES).finish();
        print_row(&way, "from the start", Some(served), &seen);
        pass_again();
    }
    for way in [ALL, TO_THE_SERVER, TO_THE_CLIENT, LARGE, ALL_BUT_64_KBIT] {
        let seen = in_the_middle(&way, DOWNLOAD_BYTES);
        print_row(&way, "in the middle", None, &seen);
    }
    let (world, _) = World::new(DOWNLOAD_BYTES, None);
    block(&ALL, world.server.quic());
    world.waits_for("TLS");
    pass_again();
    let traffic = Traffic::start(world.server.traffic(), DOWNLOAD_BYTES);
    let began = Instant::now();
    world.waits_for("UDP");
    let back = began.elapsed();
    print_row(&ALL, "passed again", Some(back), &traffic.finish());
}

fn print_row(way: &Way, when: &str, served: Option<Duration>, seen: &Seen) {
    let s = |time: Duration| format!("{:.2}", time.as_secs_f64());
    let refused = seen.visits.iter().filter(|visit| visit.result.is_err());
    let slowest = seen.visits.iter().map(|visit| visit.took).max();
    println!(
        "| {} | {when} | {} | {}, {}, {} s | {} ({}), {} s | 0 |",
        way.name,
        served.map_or_else(|| "–".to_owned(), |served| s(served) + " s"),
        s(seen.download),
        s(seen.typing),
        s(seen.datagrams),
        seen.visits.len(),
        refused.count(),
        s(slowest.unwrap_or_default()),
    );
}
