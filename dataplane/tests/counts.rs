//! What qmux-dp does for each unit of work is counted and bounded: system calls and packets, which
//! are the same on every machine, where times are not. A change that adds a call to every round
//! trip fails here.
//!
//! Each bound is some 15 % above what was counted when it was written. Who makes qmux-dp do less
//! lowers its bound here; `qmux-bench syscalls` shows the counts, by kind and beside other tunnels.

use std::time::{Duration, Instant};

use qmux_bench::harness::meter::Role;
use qmux_bench::harness::place::Place;
use qmux_bench::harness::strace::{Calls, Tracer};
use qmux_bench::harness::tunnel::{Placement, Setup, Tunnel};
use qmux_bench::load::connect;
use qmux_bench::load::service::Service;
use qmux_bench::load::standing::{Standing, Work};

/// The most that one unit of work may take on each side.
struct Bound {
    work: Work,
    /// The name of a unit in failures.
    unit: &'static str,
    /// Number of units that are counted.
    units: u64,
    server: Most,
    client: Most,
}

/// The bounds per unit of work.
struct Most {
    calls: f64,
    /// Send calls for UDP: with one unit at a time, packets.
    udp_sends: f64,
}

const BOUNDS: [Bound; 2] = [
    Bound {
        work: Work::RoundTrips,
        unit: "round trip of 64 bytes",
        units: 2_000,
        server: Most {
            calls: 7.0,
            udp_sends: 1.2,
        },
        client: Most {
            calls: 7.0,
            udp_sends: 1.2,
        },
    },
    Bound {
        work: Work::Visitors(1),
        unit: "visitor that connects, hears an echo and closes",
        units: 500,
        server: Most {
            calls: 19.3,
            // The visitor's first bytes leave with the Open header.
            udp_sends: 2.4,
        },
        client: Most {
            calls: 20.5,
            // The visitor's first bytes are acknowledged before the service gets them.
            udp_sends: 3.5,
        },
    },
];

/// Calls that each side may make in a second whatever it carries: timers, heartbeats, the watch. A
/// loaded machine takes more seconds for the same work, which must not look like more work.
const IDLE_CALLS_PER_SECOND: f64 = 100.0;

/// Packets that each side may send in a second whatever it carries.
const IDLE_SENDS_PER_SECOND: f64 = 10.0;

/// How long work goes on between two readings of the counters of what has been done.
const SLICE: Duration = Duration::from_millis(50);

/// This only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn work_until(load: &mut Standing<'_>, units: u64) {
    let deadline = Instant::now() + PATIENCE;
    while load.done() < units {
        load.work(SLICE).expect("work");
        assert!(Instant::now() < deadline, "{} of {units}", load.done());
    }
}

#[test]
fn no_unit_of_work_takes_more_calls_than_it_did() {
    let mut setup = Setup::new(None, Place::loopback()).expect("a setup");
    setup.placement = Placement::Apart;
    setup.admin = false;
    // A core that polls for long has one more call for it. That depends on time, so it is left out
    // here, and has no bound.
    setup.overrides.add("quic", "busy_poll = false");
    let service = Service::start(&Place::loopback(), &[]).expect("a service");
    let spec = concat!("qmux-dp:", env!("CARGO_BIN_EXE_qmux-dp"));
    let spec = spec.parse().expect("a tunnel");
    let tunnel = Tunnel::start(&spec, &setup, 1, service.address).expect("a tunnel");
    connect::until_it_works(tunnel.visit, PATIENCE).expect("a visitor");
    for bound in BOUNDS {
        let counted = count(&bound, &tunnel, &service);
        for (role, calls) in &counted.sides {
            counted.judge(&bound, *role, calls);
        }
    }
}

/// The counts for a number of units.
struct Counted {
    units: f64,
    seconds: f64,
    sides: Vec<(Role, Calls)>,
}

fn count(bound: &Bound, tunnel: &Tunnel, service: &Service) -> Counted {
    let mut load = Standing::start(bound.work, tunnel.visit, service).expect("ready");
    // Work that is done once (path probes, tables that grow) is done before.
    work_until(&mut load, bound.units / 10);
    let began = (Instant::now(), load.done());
    let attach = |role, pid| Tracer::attach("qmux-dp", pid).map(|tracer| (role, tracer));
    let tracers: Vec<(Role, Tracer)> = tunnel
        .processes()
        .iter()
        .map(|process| attach(process.role, process.pid).expect("strace"))
        .collect();
    work_until(&mut load, began.1 + bound.units);
    let sides = tracers
        .into_iter()
        .map(|(role, tracer)| (role, tracer.detach().expect("counts")))
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "some thousand")]
    let units = (load.done() - began.1) as f64;
    Counted {
        units,
        seconds: began.0.elapsed().as_secs_f64(),
        sides,
    }
}

impl Counted {
    fn judge(&self, bound: &Bound, role: Role, calls: &Calls) {
        let most = match role {
            Role::Server => &bound.server,
            _ => &bound.client,
        };
        let per_unit = |count: u64, idle_per_second: f64| {
            #[expect(clippy::cast_precision_loss, reason = "some thousand")]
            let count = count as f64;
            (count - idle_per_second * self.seconds).max(0.0) / self.units
        };
        let all = calls.all().calls;
        let sends = calls.of_kind("udp_send").calls;
        let found = [
            (
                "system calls",
                per_unit(all, IDLE_CALLS_PER_SECOND),
                most.calls,
            ),
            (
                "UDP sends",
                per_unit(sends, IDLE_SENDS_PER_SECOND),
                most.udp_sends,
            ),
        ];
        for (what, count, limit) in found {
            let Counted { units, seconds, .. } = self;
            let unit = bound.unit;
            println!("{role:?}: {count:.2} {what} per {unit} (at most {limit})");
            assert!(
                count <= limit,
                "{role:?}: {count:.2} {what} per {unit}, at most {limit} were allowed; \
                 counted over {units} in {seconds:.1} s: {calls:#?}"
            );
        }
        // Otherwise nothing was counted. Some units may have been done before both tracers were
        // attached.
        assert!(sends as f64 >= self.units * 0.9, "{role:?}: {calls:#?}");
    }
}
