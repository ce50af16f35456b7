//! Many reloads while visitors come, go and stay: nobody loses a byte, and nothing piles up.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::certs::Identity;
use crate::support::http;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};

use super::{ConfigFile, door, offering, service_table};

/// Reloads of the server; of the client a quarter as many.
const RELOADS: usize = 200;

/// After this many reloads all tables and pools have their size.
const WARM_UP: usize = 60;

/// How much a process may grow after that. An allocator keeps a little of everything.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

const TRANSFERS: usize = 3;
const STEP_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Load {
    over: AtomicBool,
    moved: AtomicUsize,
    served: AtomicUsize,
    datagrams: AtomicUsize,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }

    /// One flow from before the first reload to after the last one, exact to the byte.
    fn transfer(&self, address: SocketAddr, seed: u64) {
        let mut random = Random::new(seed);
        let mut stream = visitor::connect(address);
        while self.goes_on() {
            visitor::exchange(&mut stream, &random.bytes(STEP_BYTES));
            self.moved.fetch_add(STEP_BYTES, Ordering::SeqCst);
        }
        visitor::finish(&stream);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    }

    /// One visitor after the other.
    fn visitors(&self, address: SocketAddr, seed: u64) {
        let mut random = Random::new(seed);
        while self.goes_on() {
            let length = random.between(1..=20_000);
            visitor::echo(address, &random.bytes(length));
            self.served.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// One UDP visitor all the time. Each datagram is sent until it comes back: UDP may lose one.
    fn datagrams(&self, address: SocketAddr) {
        let mut visitor = UdpVisitor::new(address);
        while self.goes_on() {
            let number = self.datagrams.fetch_add(1, Ordering::SeqCst);
            visitor.echo(format!("datagram {number}").as_bytes());
        }
    }
}

/// The configuration of one reload: another service more or less, other limits, another protocol.
fn variation(text: &str, round: usize, others: &[SocketAddr]) -> String {
    let mut text = text.to_owned();
    let limit = format!(
        "max_visitors = {}\nstall_timeout = \"{}s\"\n",
        500 + round,
        60 + round % 7
    );
    text = text.replacen("name = \"a\"\n", &format!("name = \"a\"\n{limit}"), 1);
    let balancer = ["least-connections", "round-robin"][round % 2];
    text = text.replacen(
        "[server]\n",
        &format!("[server]\nload_balancer = \"{balancer}\"\n"),
        1,
    );
    for (index, address) in others.iter().enumerate() {
        if (round >> index) & 1 == 1 {
            let protocol = ["tcp", "udp", "both"][(round + index) % 3];
            text += &service_table(&format!("other-{index}"), *address, protocol);
        }
    }
    text
}

/// Writes new pairs all the time: sometimes whole, sometimes the key first, sometimes cut in half.
fn renew_pair(site: &Site, round: usize) {
    let next = Identity::server_between(-3_600, 86_400 * 20);
    match round % 4 {
        0 => next.write(site.path(), "server"),
        1 => {
            site.write("server.key", &next.key_pem);
        }
        2 => {
            site.write("server.crt", &next.cert_pem[..next.cert_pem.len() / 3]);
        }
        _ => Identity::server().write(site.path(), "server"),
    }
}

struct Growth<'a> {
    program: &'a Program,
    warm: u64,
}

impl Growth<'_> {
    fn assert_bounded(&self, who: &str) {
        let now = self.program.resident_bytes();
        let grown = now.saturating_sub(self.warm);
        assert!(
            grown < GROWTH_BYTES_MAX,
            "{who} has grown by {grown} bytes to {now}"
        );
    }
}

#[test]
fn two_hundred_reloads_under_load_cost_nobody_a_byte_and_leave_nothing_behind() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let (tcp, _udp) = echo_both();
    let launch = offering("nas", &["a", "other-0"], tcp.address).launch(&site, door.quic[0]);
    let of_client = ConfigFile::of(&site, "nas.toml", ports::free_address());
    of_client.append(&format!("[admin]\nlisten = \"{}\"\n", of_client.admin));
    let client = launch.start();
    let a = door.traffic("a");
    visitor::wait_until_served(a);
    let others: Vec<_> = (0..3).map(|_| ports::free_address()).collect();
    let (text, text_of_client) = (file.text(), of_client.text());
    let load = Load::default();
    let reloads = subject::scale("QMUX_E2E_RELOADS", RELOADS);
    thread::scope(|scope| {
        let load = &load;
        // Whatever fails below, the visitors must end.
        let _over = Over(load);
        for seed in 0..TRANSFERS as u64 {
            scope.spawn(move || load.transfer(a, seed));
        }
        scope.spawn(move || load.visitors(a, 100));
        scope.spawn(move || load.datagrams(a));
        let mut growth = Vec::new();
        let (mut taken_up, mut refused) = (0, 0);
        for round in 0..reloads {
            renew_pair(&site, round);
            file.write(&variation(&text, round, &others));
            // A pair that does not fit is refused, with all the rest.
            match file.reload().status {
                200 => taken_up += 1,
                422 => refused += 1,
                status => panic!("{status}"),
            }
            if round % 4 == 0 {
                let more = format!(
                    "[[client.services]]\nname = \"more\"\nhost = \"127.0.0.1\"\nport = {}\n",
                    1 + round
                );
                of_client.write(&(text_of_client.clone() + &more));
                of_client.taken_up();
            }
            if round == WARM_UP.min(reloads / 2) {
                for program in [&door.program, &client] {
                    let warm = program.resident_bytes();
                    growth.push(Growth { program, warm });
                }
            }
        }
        assert!(
            taken_up >= reloads / 4 && refused >= reloads / 4,
            "{taken_up}, {refused}"
        );
        growth[0].assert_bounded("the server");
        growth[1].assert_bounded("the client");
    });
    let counts = [&load.moved, &load.served, &load.datagrams];
    let counts = counts.map(|it| it.load(Ordering::SeqCst));
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let metrics = http::get(door.admin, "/metrics").body;
    assert!(
        metrics.contains("reloads_total{result=\"done\"}"),
        "{metrics}"
    );
}

struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_thousand_services_are_reloaded_while_one_of_them_serves() {
    if subject::only_wire("reload") {
        return;
    }
    const SERVICES: u16 = 1_000;
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let (tcp, _udp) = echo_both();
    let _client = offering("nas", &["a"], tcp.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    let first = crate::support::door::free_range(SERVICES);
    let text = file.text();
    let mut all = text.clone();
    for number in 0..SERVICES {
        let address = SocketAddr::new(first.ip(), first.port() + number);
        all += &service_table(&format!("s{number}"), address, "tcp");
    }
    file.write(&all);
    file.taken_up();
    visitor::echo(door.traffic("a"), b"served");
    let status = http::get(door.admin, "/status").body;
    assert!(status.contains("\"s999\""), "all are there");
    file.write(&text);
    file.taken_up();
    visitor::exchange(&mut flow, b"after");
    let status = http::get(door.admin, "/status").body;
    assert!(!status.contains("\"s999\""), "none is left");
}
