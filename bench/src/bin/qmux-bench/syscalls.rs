//! `qmux-bench syscalls`: what a tunnel does for each unit of work, counted rather than timed.
//! Counts are the same on a slow machine and a fast one, and on a busy one.

use std::net::SocketAddr;
use std::time::Duration;

use qmux_bench::harness::admin::Scrape;
use qmux_bench::harness::calls::{self, KINDS};
use qmux_bench::harness::meter::{Metered, Role};
use qmux_bench::harness::strace::{Calls, Tracer};
use qmux_bench::harness::{BenchError, proc_stat};
use qmux_bench::load::standing::Work;
use qmux_bench::report::{CaseReport, Metric, Run, TunnelReport, lower, neither};

use crate::counting::{self, Counting, Unit, exact};
use crate::discard::BURST;
use crate::options::{Common, List};
use crate::runner::{self, Case, Outcome, Session};

/// How system calls are counted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Visitors at a time
    #[arg(long, value_name = "LIST", default_value = "1,64")]
    visitors: List<usize>,
    /// Bytes of UDP payloads
    #[arg(long, value_name = "LIST", default_value = "64,1150")]
    sizes: List<usize>,
    /// UDP packets per second; few enough that a traced tunnel, which is slow, loses none
    #[arg(long, value_name = "PACKETS", default_value_t = 20_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

/// Of each side.
fn metrics() -> Vec<Metric> {
    let by_kind = KINDS.map(|(name, head, _)| lower(name, head, 2));
    let mut metrics = vec![lower("calls", "calls", 2).main()];
    metrics.extend(by_kind);
    metrics.extend([
        lower("failed_calls", "in vain", 2),
        lower("wake_ups", "wake-ups", 2),
        lower("packets_out", "packets out", 2),
        lower("packets_in", "packets in", 2),
        lower("cpu_us", "CPU µs", 2),
        neither("units", "units", 0),
        lower("lost_percent", "lost %", 2),
    ]);
    metrics
}

/// How long a load has stood still before counting begins or ends.
const SETTLE: Duration = Duration::from_millis(150);

/// The units that work is counted in are bytes for bulk, and shown per GB.
const BYTES_PER_GB: f64 = 1e9;
/// Time is counted in milliseconds, and shown per second.
const MILLISECONDS_SHOWN: f64 = 1_000.0;
/// A tunnel takes many datagrams with one call.
const DATAGRAMS_SHOWN: f64 = 1_000.0;

/// A value of one side.
type OfSide = (Role, &'static str, f64);

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let common = args.common.with_processes("system calls")?;
    let case = |(name, work, shown): Unit| {
        let common = &common;
        let measure = move |session: &Session<'_>| measure(session, work, shown, common);
        Case {
            asks: true,
            ..Case::new(name, measure)
        }
    };
    let cases: Vec<Case<'_>> = works(args).into_iter().map(case).collect();
    let metrics = metrics();
    let mut report = runner::new_report(&common, "syscalls", &metrics)?;
    let place = common.path.open()?;
    report.settings.path.clone_from(&place.name);
    report.cases = runner::measure(&common, place, &metrics, &cases)?
        .iter()
        .flat_map(sides)
        .collect();
    runner::finish(&common, report)
}

fn works(args: &Args) -> Vec<Unit> {
    let mut works = vec![
        ("an idle second".to_owned(), Work::Idle, MILLISECONDS_SHOWN),
        ("a round trip of 64 B".to_owned(), Work::RoundTrips, 1.0),
    ];
    works.extend(args.visitors.iter().map(|&visitors| {
        let name = format!("a visitor ×{visitors}");
        (name, Work::Visitors(visitors), 1.0)
    }));
    let named = ("1000 datagrams", DATAGRAMS_SHOWN);
    works.extend(counting::datagrams(&args.sizes, args.rate, BURST, named));
    works.extend(counting::bytes("a GB", BYTES_PER_GB));
    works
}

/// First what tracing would change, without it: wake-ups, packets, CPU time. Then the calls.
fn measure(
    session: &Session<'_>,
    work: Work,
    shown: f64,
    common: &Common,
) -> Result<Outcome, BenchError> {
    let mut counting = Counting::start(session, work, shown, common, SETTLE)?;
    // The question costs the server something itself, which is left out.
    let asked = scrape(session.admin);
    let before = Used::now(session, asked);
    let began = counting.done();
    counting.work()?;
    let units = counting::units(began, counting.done(), shown)?;
    let mut after = Used::now(session, None);
    after.scrape = scrape(session.admin);
    let mut of_sides = after.per_unit(&before, units);

    let attach =
        |process: &Metered| Tracer::attach(&format!("the {}", process.role.name()), process.pid);
    let (counted, values) = counting.count(attach, Tracer::detach)?;
    for (role, calls, units) in counted {
        of_sides.extend(per_unit(role, &calls, units));
    }
    Ok(Outcome {
        values,
        of_sides,
        ..Outcome::default()
    })
}

/// Calls of each kind for each unit of work.
fn per_unit(role: Role, calls: &Calls, units: f64) -> Vec<OfSide> {
    let all = calls::all(calls);
    let by_kind = KINDS.map(|(name, ..)| (name, calls::of_kind(calls, name).calls));
    let counts = by_kind
        .into_iter()
        .chain([("calls", all.calls), ("failed_calls", all.failed)]);
    counts
        .map(|(name, count)| (role, name, exact(count) / units))
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
            let (role, pid) = (process.role, process.pid);
            let cpu = proc_stat::cpu_time(pid).unwrap_or_default();
            (role, proc_stat::wake_ups(pid), cpu.seconds())
        };
        let processes = session.processes.iter();
        Self {
            scrape,
            processes: processes
                .filter(|it| it.role.is_tunnel())
                .map(used)
                .collect(),
        }
    }

    fn per_unit(&self, before: &Self, units: f64) -> Vec<OfSide> {
        let mut values = Vec::new();
        for ((role, wake_ups, cpu), (_, wake_ups_before, cpu_before)) in
            self.processes.iter().zip(&before.processes)
        {
            let woken = wake_ups.zip(*wake_ups_before);
            let woken = woken.map(|(after, before)| exact(after.saturating_sub(before)));
            values.extend(woken.map(|it| (*role, "wake_ups", it / units)));
            values.push((*role, "cpu_us", (cpu - cpu_before) * 1e6 / units));
        }
        if let (Some(after), Some(before)) = (&self.scrape, &before.scrape) {
            let grown = |name| after.growth(before, name) / units;
            let (sent, received) = (grown("quic_packets_sent"), grown("quic_packets_received"));
            // What one side sends the other receives.
            values.extend([
                (Role::Server, "packets_out", sent),
                (Role::Server, "packets_in", received),
                (Role::Client, "packets_out", received),
                (Role::Client, "packets_in", sent),
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
    [Role::Server, Role::Client].map(|role| CaseReport {
        case: format!("{}, {}", case.case, role.name()),
        tunnels: case
            .tunnels
            .iter()
            .map(|tunnel| TunnelReport {
                runs: tunnel.runs.iter().map(|run| of_side(run, role)).collect(),
                ..tunnel.clone()
            })
            .collect(),
    })
}

/// The values of this side, and those of the whole.
fn of_side(run: &Run, role: Role) -> Run {
    let mut values = run.values.clone();
    for metric in metrics() {
        let [server, client] = [Role::Server, Role::Client]
            .map(|it| values.remove(&runner::of_side(it, &metric.name)));
        let own = if role == Role::Server { server } else { client };
        values.extend(own.map(|value| (metric.name.to_string(), value)));
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
        let mut run = Run::default();
        for (role, factor) in [(Role::Server, 1), (Role::Client, 2)] {
            let values = per_unit(role, &calls(factor), 10.0).into_iter();
            let values = values.map(|(role, name, value)| (runner::of_side(role, name), value));
            run.values.extend(values);
        }
        run.take([("units", 10.0)]);
        CaseReport {
            case: "a visit".into(),
            tunnels: vec![TunnelReport {
                tunnel: "ours".into(),
                summary: BTreeMap::new(),
                runs: vec![run],
            }],
        }
    }

    #[test]
    fn each_side_has_its_own_calls_per_unit() {
        let sides = sides(&case());
        let names = sides.each_ref().map(|side| side.case.as_str());
        assert_eq!(names, ["a visit, server", "a visit, client"]);
        for (factor, side) in [(1.0, &sides[0]), (2.0, &sides[1])] {
            let values = &side.tunnels[0].runs[0].values;
            assert_eq!(values["udp_send"], 2.0 * factor);
            assert_eq!(values["wait"], factor);
            assert_eq!(values["calls"], 3.0 * factor);
            assert_eq!(values["failed_calls"], 0.2);
            assert_eq!(values["units"], 10.0);
            let is_of_a_side = |it: &String| it.starts_with("client_") || it.starts_with("server_");
            assert!(!values.keys().any(is_of_a_side));
        }
    }
}
