//! How long it takes until what has died is worked around, for every kind of death:
//! `scripts/two-seconds.sh` runs this and prints its table. It measures; nothing here fails for
//! being slow.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::program::Program;
use crate::support::service::{TcpService, UdpService, echo_both};
use crate::support::switched_path::SwitchedPath;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::visits::{Visit, Visits};
use crate::support::wait;

/// TCP visitors per second, and the time before and after the death.
const PER_SECOND: u32 = 50;
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(5);

/// UDP visitors with a flow that is there already: some of them ride what dies.
const UDP_VISITORS: usize = 6;

/// How often a UDP visitor asks again.
const UDP_PATIENCE: Duration = Duration::from_millis(50);

/// A TCP visitor who took longer than this was hit by the death.
const SLOW: Duration = Duration::from_millis(500);

/// One client with its path and its services.
struct Client {
    program: Program,
    path: SwitchedPath,
    _services: (TcpService, UdpService),
}

impl Client {
    fn start(site: &Site, server: &Server, name: &'static str, lanes: &'static str) -> Self {
        let path = SwitchedPath::to(server.quic());
        let services = echo_both();
        let setup = ClientSetup {
            name,
            client: vec![lanes],
            ..ClientSetup::default()
        };
        let program = start_client(site, &setup, path.address, services.0.address);
        Self {
            program,
            path,
            _services: services,
        }
    }
}

struct World {
    server: Server,
    clients: Vec<Client>,
    site: Site,
}

impl World {
    fn new(clients: &[&'static str], lanes: &'static str) -> Self {
        let site = Site::new();
        let server = Server::start(&site, &ServerSetup::default());
        let clients = clients
            .iter()
            .map(|name| Client::start(&site, &server, name, lanes))
            .collect();
        visitor::wait_until_served(server.traffic());
        Self {
            server,
            clients,
            site,
        }
    }
}

/// Visitors come all the time while something dies; prints a row.
fn row(what: &str, world: &mut World, dies: impl FnOnce(&mut World)) {
    let traffic = world.server.traffic();
    let mut udp: Vec<UdpVisitor> = (0..UDP_VISITORS)
        .map(|_| UdpVisitor::new(traffic))
        .collect();
    for visitor in &mut udp {
        visitor.echo(b"a flow that lasts");
    }
    let visits = Visits::start(traffic, PER_SECOND);
    thread::sleep(BEFORE);
    let died_at = visits.elapsed();
    let died = Instant::now();
    dies(world);
    let moved: Vec<Option<Duration>> = thread::scope(|scope| {
        let threads: Vec<_> = udp
            .iter_mut()
            .map(|visitor| scope.spawn(move || served_again(visitor, died)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a UDP visitor"))
            .collect()
    });
    thread::sleep(AFTER.saturating_sub(died.elapsed()));
    let visits = visits.finish();
    println!("{}", line(what, &visits, died_at, &moved));
}

/// How long after the death a UDP visitor gets an answer, if it gets one.
fn served_again(visitor: &mut UdpVisitor, died: Instant) -> Option<Duration> {
    while died.elapsed() < AFTER * 2 {
        visitor.send(b"still there?");
        if visitor.receive_within(UDP_PATIENCE, b"still there?") {
            return Some(died.elapsed());
        }
        thread::sleep(UDP_PATIENCE / 2);
    }
    None
}

fn line(what: &str, visits: &[Visit], died_at: Duration, moved: &[Option<Duration>]) -> String {
    let after: Vec<&Visit> = visits
        .iter()
        .filter(|visit| visit.came + visit.took >= died_at)
        .collect();
    let hit: Vec<&&Visit> = after
        .iter()
        .filter(|visit| visit.took > SLOW || visit.result.is_err())
        .collect();
    let reset = after.iter().filter(|visit| visit.result.is_err()).count();
    let slowest = after.iter().map(|visit| visit.took).max();
    let last_hit = hit
        .iter()
        .map(|visit| visit.came.saturating_sub(died_at))
        .max();
    let seconds = |time: Option<Duration>| {
        time.map_or_else(
            || "–".to_owned(),
            |time| format!("{:.2}", time.as_secs_f64()),
        )
    };
    let udp = if moved.iter().all(Option::is_some) {
        seconds(moved.iter().flatten().max().copied())
    } else {
        let lost = moved.iter().filter(|moved| moved.is_none()).count();
        format!("{lost} of {} never", moved.len())
    };
    format!(
        "| {what} | {} | {reset} of {} | {} | {} | {udp} |",
        seconds(slowest),
        after.len(),
        hit.len(),
        seconds(last_hit),
    )
}

#[test]
#[ignore = "measures; run by scripts/two-seconds.sh"]
fn table() {
    println!(
        "| what dies | slowest TCP visitor, s | reset | who waited or was reset | the last of them came after, s | UDP flows go on after, s |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let pair = ["first", "second"];
    row(
        "one client of two: kill -9",
        &mut World::new(&pair, "lanes = 2"),
        |world| {
            world.clients[0].program.kill();
        },
    );
    row(
        "one client of two: SIGSTOP",
        &mut World::new(&pair, "lanes = 2"),
        |world| {
            world.clients[0].program.signal(Signal::STOP);
        },
    );
    row(
        "the path of one client of two",
        &mut World::new(&pair, "lanes = 2"),
        |world| {
            world.clients[0].path.break_all(true);
        },
    );
    row(
        "one lane of two of the only client",
        &mut World::new(&["only"], "lanes = 2"),
        |world| {
            world.clients[0].path.break_one(0);
        },
    );
    row(
        "the only client: SIGSTOP",
        &mut World::new(&["only"], "lanes = 2"),
        |world| {
            world.clients[0].program.signal(Signal::STOP);
        },
    );
    row(
        "the only client: kill -9, restarted at once",
        &mut World::new(&["only"], "lanes = 2"),
        |world| {
            world.clients[0].program.kill();
            world.clients[0].program.restart();
        },
    );
    row(
        "the only server: kill -9, restarted at once",
        &mut World::new(&["only"], "lanes = 2"),
        |world| {
            world.server.program.kill();
            world.server.program.restart();
        },
    );
    another_server_behind_the_address();
}

/// Visitors come to the new server all the time; it has nobody to serve them until the client finds
/// it.
fn another_server_behind_the_address() {
    let world = World::new(&["only"], "lanes = 2");
    let setup = ServerSetup {
        name: "another",
        ..ServerSetup::default()
    };
    let another = Server::start(&world.site, &setup);
    let died = Instant::now();
    world.clients[0].path.redirect(another.quic());
    wait::until_true("the new server serves", || {
        visitor::echo_works(another.traffic())
    });
    let found = died.elapsed().as_secs_f64();
    println!("| DNAT to another server, which serves after {found:.2} s | – | – | – | – | – |");
}
