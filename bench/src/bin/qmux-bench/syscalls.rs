//! `qmux-bench syscalls`: what a tunnel does for each unit of work, counted rather than timed.
//! Counts are the same on a slow machine and a fast one, and on a busy one.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use qmux_bench::harness::admin::Scrape;
use qmux_bench::harness::calls::{self, KINDS};
use qmux_bench::harness::meter::{Metered, Role};
use qmux_bench::harness::strace::{Calls, Tracer};
use qmux_bench::harness::{BenchError, proc_stat};
use qmux_bench::load::bulk::Way;
use qmux_bench::load::standing::{Standing, Work};
use qmux_bench::report::{CaseReport, Metric, Run, TunnelReport, lower, neither};

use crate::discard::BURST;
use crate::options::Common;
use crate::runner::{self, Case, Outcome, Session};

/// How system calls are counted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Visitors at a time
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,64"
    )]
    visitors: Vec<usize>,
    /// Bytes of UDP payloads
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "64,1150"
    )]
    sizes: Vec<usize>,
    /// UDP packets per second; few enough that a traced tunnel, which is slow, loses none
    #[arg(long, value_name = "PACKETS", default_value_t = 20_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

/// Something that is counted on each side.
struct Column {
    metric: Metric,
    /// Where the runner keeps it of the server, and of the client, until there is a row for each.
    server: &'static str,
    client: &'static str,
}

macro_rules! columns {
    ($($name:literal: $head:literal $(.$main:ident())?,)+) => {
        [$(Column {
            metric: lower($name, $head, 2)$(.$main())?,
            server: concat!("server_", $name),
            client: concat!("client_", $name),
        }),+]
    };
}

/// One for each of [`KINDS`], in their order.
const BY_KIND: [Column; KINDS.len()] = columns! {
    "wait": "enter, wait",
    "udp_send": "UDP send",
    "udp_receive": "UDP receive",
    "tcp_send": "TCP send",
    "tcp_receive": "TCP receive",
    "begin": "accept, connect",
    "options": "options",
    "end": "close",
    "other": "other",
};

const OTHERS: [Column; 6] = columns! {
    "calls": "calls" .main(),
    "failed_calls": "in vain",
    "wake_ups": "wake-ups",
    "packets_out": "packets out",
    "packets_in": "packets in",
    "cpu_us": "CPU µs",
};
const CALLS: &Column = &OTHERS[0];
const FAILED: &Column = &OTHERS[1];
const WAKE_UPS: &Column = &OTHERS[2];
const PACKETS_OUT: &Column = &OTHERS[3];
const PACKETS_IN: &Column = &OTHERS[4];
const CPU: &Column = &OTHERS[5];

const UNITS: Metric = neither("units", "units", 0);
const LOST: Metric = lower("lost_percent", "lost %", 2);

/// How long a load has stood still before counting begins or ends: what it has left to do (the last
/// acknowledgements, the ends of flows) is done by then, and counted.
const SETTLE: Duration = Duration::from_millis(150);

/// The units that work is counted in are bytes for bulk, and shown per GB.
const BYTES_PER_GB: f64 = 1e9;
/// Time is counted in milliseconds, and shown per second.
const MILLISECONDS_SHOWN: f64 = 1_000.0;
/// A tunnel takes many datagrams with one call.
const DATAGRAMS_SHOWN: f64 = 1_000.0;

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let common = args.common.with_processes("system calls")?;
    let cases = cases(args, &common);
    let metrics: Vec<Metric> = [CALLS]
        .into_iter()
        .chain(&BY_KIND)
        .chain(&OTHERS[1..])
        .map(|column| column.metric)
        .chain([UNITS, LOST])
        .collect();
    let mut report = runner::new_report(&common, "syscalls", &metrics)?;
    let place = common.path.open()?;
    report.settings.path.clone_from(&place.name);
    report.cases = runner::measure(&common, place, &metrics, &cases)?
        .iter()
        .flat_map(sides)
        .collect();
    runner::finish(&common, report)
}

fn cases<'a>(args: &Args, common: &'a Common) -> Vec<Case<'a>> {
    let mut works = vec![
        ("an idle second".to_owned(), Work::Idle, MILLISECONDS_SHOWN),
        ("a round trip of 64 B".to_owned(), Work::RoundTrips, 1.0),
    ];
    works.extend(args.visitors.iter().map(|&visitors| {
        let name = format!("a visitor ×{visitors}");
        (name, Work::Visitors(visitors), 1.0)
    }));
    works.extend(args.sizes.iter().map(|&payload_bytes| {
        let name = format!("1000 datagrams of {payload_bytes} B at {}/s", args.rate);
        let work = Work::Datagrams {
            payload_bytes,
            rate: f64::from(args.rate),
            burst_packets: BURST,
        };
        (name, work, DATAGRAMS_SHOWN)
    }));
    for (way, name) in [(Way::Up, "service"), (Way::Down, "visitor")] {
        let name = format!("a GB to the {name}");
        works.push((name, Work::Bulk(way), BYTES_PER_GB));
    }
    let case = |(name, work, shown): (String, Work, f64)| {
        Case::new(name, move |session| measure(session, work, shown, common)).asking()
    };
    works.into_iter().map(case).collect()
}

/// First what tracing would change, without it: wake-ups, packets, CPU time. Then the calls.
fn measure(
    session: &Session<'_>,
    work: Work,
    shown: f64,
    common: &Common,
) -> Result<Outcome, BenchError> {
    let mut load = Standing::start(work, session.visit, session.service()?)?;
    load.work(common.warm_up())?;
    thread::sleep(SETTLE);
    let mut values = Vec::new();

    // The question costs the server something itself, which is left out.
    let asked = scrape(session.admin);
    let before = Used::now(session, asked);
    let began = load.done();
    load.work(common.measure())?;
    thread::sleep(SETTLE);
    let units = units(began, load.done(), shown)?;
    let mut after = Used::now(session, None);
    after.scrape = scrape(session.admin);
    values.extend(after.per_unit(&before, units));

    let sent = load.sent();
    let mut traced = Vec::new();
    for process in &session.processes {
        let tracer = Tracer::attach(side(process.role), process.pid)?;
        traced.push((process.role, tracer, load.done()));
    }
    load.work(common.measure())?;
    thread::sleep(SETTLE);
    let mut counted = 0.0;
    for (role, tracer, began) in traced {
        let ended = load.done();
        let units = self::units(began, ended, shown)?;
        values.extend(per_unit(role, &tracer.detach()?, units));
        counted = units;
    }
    values.push((UNITS.name, counted));
    if let Some((before, after)) = sent.zip(load.sent()) {
        let (sent, arrived) = (exact(after - before), counted * shown);
        values.push((LOST.name, (1.0 - arrived / sent.max(1.0)) * 100.0));
    }
    Ok(Outcome {
        values,
        ..Outcome::default()
    })
}

fn side(role: Role) -> &'static str {
    match role {
        Role::Server => "the server",
        Role::Client => "the client",
        Role::Load => "the load",
    }
}

fn units(began: u64, ended: u64, shown: f64) -> Result<f64, BenchError> {
    match ended - began {
        0 => Err(BenchError::Failed("no work was done".into())),
        done => Ok(exact(done) / shown),
    }
}

fn exact(count: u64) -> f64 {
    count as f64
}

impl Column {
    fn of(&self, role: Role) -> Option<&'static str> {
        match role {
            Role::Server => Some(self.server),
            Role::Client => Some(self.client),
            Role::Load => None,
        }
    }
}

/// Calls of each kind for each unit of work.
fn per_unit(role: Role, calls: &Calls, units: f64) -> Vec<(&'static str, f64)> {
    let all = calls::all(calls);
    let by_kind = KINDS.iter().zip(&BY_KIND);
    let counts = by_kind
        .map(|(kind, column)| (column, calls::of_kind(calls, *kind).calls))
        .chain([(CALLS, all.calls), (FAILED, all.failed)]);
    counts
        .filter_map(|(column, count)| Some((column.of(role)?, exact(count) / units)))
        .collect()
}

/// What the processes have used since they began.
struct Used {
    processes: Vec<(Role, Option<u64>, f64)>,
    scrape: Option<Scrape>,
}

impl Used {
    fn now(session: &Session<'_>, scrape: Option<Scrape>) -> Self {
        let used = |process: &Metered| {
            let cpu = proc_stat::cpu_time(process.pid).unwrap_or_default();
            (
                process.role,
                proc_stat::wake_ups(process.pid),
                cpu.seconds(),
            )
        };
        Self {
            scrape,
            processes: session.processes.iter().map(used).collect(),
        }
    }

    fn per_unit(&self, before: &Self, units: f64) -> Vec<(&'static str, f64)> {
        let mut values = Vec::new();
        for ((role, wake_ups, cpu), (_, wake_ups_before, cpu_before)) in
            self.processes.iter().zip(&before.processes)
        {
            let woken = wake_ups.zip(*wake_ups_before);
            let woken = woken.map(|(after, before)| exact(after.saturating_sub(before)));
            values.extend(WAKE_UPS.of(*role).zip(woken.map(|it| it / units)));
            let cpu_us = (cpu - cpu_before) * 1e6 / units;
            values.extend(CPU.of(*role).map(|name| (name, cpu_us)));
        }
        if let (Some(after), Some(before)) = (&self.scrape, &before.scrape) {
            let grown = |name| after.growth(before, name) / units;
            let (sent, received) = (grown("quic_packets_sent"), grown("quic_packets_received"));
            // What one side sends the other receives.
            values.extend([
                (PACKETS_OUT.server, sent),
                (PACKETS_IN.server, received),
                (PACKETS_OUT.client, received),
                (PACKETS_IN.client, sent),
            ]);
        }
        values
    }
}

/// What a server says that has an admin endpoint; older ones need not.
fn scrape(admin: Option<SocketAddr>) -> Option<Scrape> {
    Scrape::read(admin?).ok()
}

/// A case as two, one for each side of the tunnel: twenty columns would be too many for a line.
fn sides(case: &CaseReport) -> [CaseReport; 2] {
    [(Role::Server, "server"), (Role::Client, "client")].map(|(role, name)| CaseReport {
        case: format!("{}, {name}", case.case),
        tunnels: case
            .tunnels
            .iter()
            .map(|tunnel| TunnelReport {
                tunnel: tunnel.tunnel.clone(),
                summary: tunnel.summary.clone(),
                runs: tunnel.runs.iter().map(|run| of_side(run, role)).collect(),
            })
            .collect(),
    })
}

fn of_side(run: &Run, role: Role) -> Run {
    let mut values = run.values.clone();
    for column in BY_KIND.iter().chain(&OTHERS) {
        let (ours, theirs) = match role {
            Role::Client => (column.client, column.server),
            _ => (column.server, column.client),
        };
        values.remove(theirs);
        if let Some(value) = values.remove(ours) {
            values.insert(column.metric.name, value);
        }
    }
    Run {
        values,
        ..run.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmux_bench::harness::strace::Count;
    use std::collections::BTreeMap;

    fn case() -> CaseReport {
        let count = |calls| Count { calls, failed: 1 };
        let calls = |factor: u64| {
            Calls::from([
                ("sendmsg".to_owned(), count(20 * factor)),
                ("futex".to_owned(), count(10 * factor)),
            ])
        };
        let mut values: BTreeMap<_, _> =
            BTreeMap::from_iter(per_unit(Role::Server, &calls(1), 10.0));
        values.extend(per_unit(Role::Client, &calls(2), 10.0));
        values.insert(UNITS.name, 10.0);
        let run = Run {
            round: 1,
            values,
            ..Run::default()
        };
        let tunnel = TunnelReport {
            tunnel: "ours".into(),
            summary: BTreeMap::new(),
            runs: vec![run],
        };
        CaseReport {
            case: "a visit".into(),
            tunnels: vec![tunnel],
        }
    }

    #[test]
    fn each_side_has_its_own_calls_per_unit() {
        let sides = sides(&case());
        let values = [0, 1].map(|side: usize| &sides[side].tunnels[0].runs[0].values);
        assert_eq!(
            [&sides[0].case, &sides[1].case],
            ["a visit, server", "a visit, client"]
        );
        for (factor, values) in [(1.0, values[0]), (2.0, values[1])] {
            assert_eq!(values["udp_send"], 2.0 * factor);
            assert_eq!(values["wait"], factor);
            assert_eq!(values["calls"], 3.0 * factor);
            assert_eq!(values["failed_calls"], 0.2);
            assert_eq!(values["units"], 10.0);
            assert!(!values.keys().any(|it| it.starts_with("client_")));
            assert!(!values.keys().any(|it| it.starts_with("server_")));
        }
    }

    #[test]
    fn no_work_is_no_measurement() {
        assert!(units(5, 5, 1.0).is_err());
        assert_eq!(units(0, 2_000, 1_000.0).expect("work"), 2.0);
    }
}
