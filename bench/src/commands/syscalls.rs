//! `qmux-bench syscalls`: what a tunnel does for each unit of work, counted rather than timed.
//! Counts are the same on a slow machine and a fast one, and on a busy one.

use std::time::Duration;

use anyhow::Result;

use crate::commands::counting::{self, Counting, Unit};
use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Case, Outcome, Session};
use crate::harness::admin::Scrape;
use crate::harness::meter::{Metered, Role};
use crate::harness::proc_stat;
use crate::harness::strace::{Calls, KINDS, Tracer};
use crate::load::standing::Work;
use crate::load::udp_source::BURST;
use crate::report::{CaseReport, Metric, Run, lower, neither};

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

type OfSide = (Role, &'static str, f64);

pub(crate) fn run(args: &Args) -> Result<bool> {
    let common = args.common.with_processes("system calls")?;
    let case = |(name, work, shown): Unit| {
        let common = &common;
        let measure = move |session: &Session<'_>| measure(session, (work, shown), common);
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
fn measure(session: &Session<'_>, work: (Work, f64), common: &Common) -> Result<Outcome> {
    let mut counting = Counting::start(session, work, common, SETTLE)?;
    // An older program may have no admin endpoint. The question costs the server something itself,
    // which is left out.
    let scrape = || Scrape::read(session.tunnel.admin?).ok();
    let asked = scrape();
    let before = used(session);
    let began = counting.done();
    counting.work()?;
    let units = counting.units(began)?;
    let after = used(session);
    let mut of_sides = Vec::new();
    for ((role, wake_ups, cpu), (_, wake_ups_before, cpu_before)) in after.into_iter().zip(before) {
        let woken = wake_ups.zip(wake_ups_before);
        let woken = woken.map(|(after, before)| after.saturating_sub(before) as f64 / units);
        of_sides.extend(woken.map(|it| (role, "wake_ups", it)));
        of_sides.push((role, "cpu_us", (cpu - cpu_before) * 1e6 / units));
    }
    if let Some((before, after)) = asked.zip(scrape()) {
        let grown = |name| after.growth(&before, name) / units;
        let (sent, received) = (grown("quic_packets_sent"), grown("quic_packets_received"));
        // What one side sends the other receives.
        of_sides.extend([
            (Role::Server, "packets_out", sent),
            (Role::Server, "packets_in", received),
            (Role::Client, "packets_out", received),
            (Role::Client, "packets_in", sent),
        ]);
    }
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

fn per_unit(role: Role, calls: &Calls, units: f64) -> Vec<OfSide> {
    let by_kind = KINDS.map(|(name, ..)| (name, calls.of_kind(name).calls));
    let all = [
        ("calls", calls.all().calls),
        ("failed_calls", calls.all().failed),
    ];
    let counts = by_kind.into_iter().chain(all);
    counts
        .map(|(name, count)| (role, name, count as f64 / units))
        .collect()
}

/// Wake-ups and CPU seconds of the tunnel's processes since they began.
fn used(session: &Session<'_>) -> Vec<(Role, Option<u64>, f64)> {
    let processes = session.processes.iter().filter(|it| it.role.is_tunnel());
    let used = processes.map(|process| {
        let cpu = proc_stat::cpu_time(process.pid).unwrap_or_default();
        (
            process.role,
            proc_stat::wake_ups(process.pid),
            cpu.seconds(),
        )
    });
    used.collect()
}

/// A case as two, one for each side of the tunnel: twenty columns would be too many for a line.
fn sides(case: &CaseReport) -> [CaseReport; 2] {
    [Role::Server, Role::Client].map(|role| {
        let mut side = case.clone();
        side.case = format!("{}, {}", case.case, role.name());
        let runs = side.tunnels.iter_mut().flat_map(|tunnel| &mut tunnel.runs);
        runs.for_each(|run| keep_side(run, role));
        side
    })
}

/// Leaves the values of this side, and those of the whole.
fn keep_side(run: &mut Run, role: Role) {
    for metric in metrics() {
        let [server, client] = [Role::Server, Role::Client]
            .map(|it| run.values.remove(&runner::of_side(it, &metric.name)));
        let own = if role == Role::Server { server } else { client };
        let own = own.map(|value| (metric.name.to_string(), value));
        run.values.extend(own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::TunnelReport;
    use std::collections::BTreeMap;

    fn case() -> CaseReport {
        let mut run = Run::default();
        for (role, factor) in [(Role::Server, 1), (Role::Client, 2)] {
            let table = [
                format!("1 1 1 {} 1 sendmsg", 20 * factor),
                format!("1 1 1 {} 1 futex", 10 * factor),
            ];
            let calls = Calls::parse(table.iter().map(String::as_str));
            let values = per_unit(role, &calls, 10.0).into_iter();
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
