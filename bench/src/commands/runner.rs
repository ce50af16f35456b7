//! Runs the cases of a measurement with every tunnel, round after round, and makes the report.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::harness::cleanup::say;
use crate::harness::cpus::Layout;
use crate::harness::iperf3;
use crate::harness::machine::Machine;
use crate::harness::meter::{Meter, Metered, ProcessUsage, Role, Usage};
use crate::harness::place::Place;
use crate::harness::requests::{Requests, Server};
use crate::harness::site::Site;
use crate::harness::spec::Spec;
use crate::harness::tunnel::{Farewell, Setup, Tunnel};
use crate::load::connect;
use crate::load::service::Service;
use crate::report::{CaseReport, Metric, Report, Run, Settings, Table, TunnelReport, USAGE, page};

use crate::commands::background::WORKS_LIMIT;
use crate::commands::options::{Common, Mistake};
use crate::commands::service;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// This program's own service.
    Own,
    /// The same, kept to CPUs that visitors are not on.
    OwnApart,
    /// The same as a process of its own: with ten thousand connections at each of its ends, one
    /// process may not have enough files.
    OwnProcess,
    Iperf3,
    Requests(Requests),
}

enum Running {
    Own(Service),
    Other(Server),
}

impl Running {
    fn start(behind: Behind, place: &Place, layout: &Layout) -> Result<Self> {
        match behind {
            Behind::Own => Service::start(place, &[]).map(Self::Own),
            Behind::OwnApart => Service::start(place, &layout.service).map(Self::Own),
            Behind::OwnProcess => service::start(place).map(Self::Other),
            Behind::Iperf3 => iperf3::server(place).map(Self::Other),
            Behind::Requests(kind) => kind.server(place).map(Self::Other),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Own(service) => service.address,
            Self::Other(server) => server.address,
        }
    }
}

pub(crate) struct Case<'a> {
    pub(crate) name: String,
    /// Cores of each side, if not those of the command line.
    pub(crate) cores: Option<usize>,
    pub(crate) behind: Behind,
    /// Whether qmux-dp's server is asked for its counters meanwhile.
    pub(crate) asks: bool,
    /// Whether the tunnel's instructions are counted.
    pub(crate) by_instructions: bool,
    pub(crate) measure: Box<Measure<'a>>,
}

type Measure<'a> = dyn Fn(&Session<'_>) -> Result<Outcome> + 'a;

impl<'a> Case<'a> {
    /// With this program's own service behind the tunnel.
    pub(crate) fn new(
        name: impl Into<String>,
        measure: impl Fn(&Session<'_>) -> Result<Outcome> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            cores: None,
            behind: Behind::Own,
            asks: false,
            by_instructions: false,
            measure: Box::new(measure),
        }
    }
}

/// A tunnel that works, to be measured.
pub(crate) struct Session<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) spec: &'a Spec,
    pub(crate) tunnel: &'a Tunnel,
    pub(crate) visit: SocketAddr,
    /// The tunnel's processes, and those of the load.
    pub(crate) processes: Vec<Metered>,
    pub(crate) layout: Layout,
    service: Option<&'a Service>,
}

impl Session<'_> {
    /// This program's own service.
    pub(crate) fn service(&self) -> Result<&Service> {
        self.service.context("this case has no service of its own")
    }

    /// Does something, and meters the processes meanwhile.
    pub(crate) fn metered<T>(&self, work: impl FnOnce() -> T) -> (T, Usage) {
        let meter = Meter::start(&self.processes);
        let done = work();
        (done, meter.stop())
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// By metric; the first one is shown while it goes on.
    pub(crate) values: Vec<(&'static str, f64)>,
    /// The same of one side of the tunnel each; see [`of_side`].
    pub(crate) of_sides: Vec<(Role, &'static str, f64)>,
    pub(crate) usage: Option<Usage>,
    pub(crate) bytes: Option<f64>,
    pub(crate) load_command: Option<String>,
}

impl Outcome {
    pub(crate) fn of(values: Vec<(&'static str, f64)>, usage: Usage) -> Self {
        Self {
            values,
            usage: Some(usage),
            ..Self::default()
        }
    }
}

/// Measures every case and presents what came of it. The name is also that of the report's files;
/// the metrics are those beside what processes use. Whether every run succeeded.
pub(crate) fn run(
    common: &Common,
    name: &str,
    metrics: &[Metric],
    cases: &[Case<'_>],
) -> Result<bool> {
    let mut report = new_report(common, name, metrics)?;
    let place = common.path.open()?;
    report.settings.path.clone_from(&place.name);
    report.cases = measure(common, place, metrics, cases)?;
    finish(common, report)
}

pub(crate) fn new_report(common: &Common, name: &str, metrics: &[Metric]) -> Result<Report> {
    let specs = common.specs()?;
    let words: Vec<String> = std::env::args().map(quoted).collect();
    Ok(Report {
        bench: name.to_owned(),
        command: words.join(" "),
        machine: Machine::describe(&specs, &common.programs()),
        settings: Settings {
            cores: common.cores,
            placement: common.placement,
            path: String::new(),
            repeats: common.repeats,
            seconds: common.seconds,
            warm_up_seconds: common.warm_up,
            overrides: common.overrides().list(),
        },
        baselines: common.baselines(&specs)?,
        metrics: metrics.iter().chain(USAGE).cloned().collect(),
        cases: Vec::new(),
    })
}

/// A word as a shell takes it.
fn quoted(word: String) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_./,:=+%@".contains(it);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word;
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

pub(crate) fn measure(
    common: &Common,
    place: Place,
    metrics: &[Metric],
    cases: &[Case<'_>],
) -> Result<Vec<CaseReport>> {
    let specs = common.specs()?;
    let cases: Vec<&Case<'_>> = cases.iter().filter(|it| common.wants(&it.name)).collect();
    ensure!(
        !cases.is_empty(),
        Mistake("--cases: no case has such a name".into())
    );
    let setup = Setup {
        programs: common.programs(),
        place,
        placement: common.placement,
        overrides: common.overrides(),
        site: Site::new()?,
        admin: cases.iter().any(|case| case.asks),
        by_instructions: cases.iter().any(|case| case.by_instructions),
    };
    let mut reports: Vec<CaseReport> = cases.iter().map(|it| empty_report(it, &specs)).collect();
    for round in 1..=common.repeats {
        for (case, report) in cases.iter().zip(&mut reports) {
            for (spec, tunnel) in specs.iter().zip(&mut report.tunnels) {
                let (repeats, label) = (common.repeats, &spec.label);
                eprint!("round {round}/{repeats}  {}  {label}  ", case.name);
                let cores = case.cores.unwrap_or(common.cores);
                let mut run = run_once(case, spec, &setup, cores, round);
                // Once more, and said so: iperf3 itself fails now and then (with --bidir it tells
                // its connections apart by the order in which they arrive, which no proxy
                // promises), and one run out of a hundred must not spoil the others.
                if let Some(error) = run.error.take() {
                    eprint!("failed: {error}; again  ");
                    run = run_once(case, spec, &setup, cores, round);
                    run.repeated_after = Some(error);
                }
                eprintln!("{}", brief(&run, metrics));
                tunnel.runs.push(run);
            }
        }
    }
    Ok(reports)
}

fn empty_report(case: &Case<'_>, specs: &[Spec]) -> CaseReport {
    let tunnel = |spec: &Spec| TunnelReport {
        tunnel: spec.label.clone(),
        summary: BTreeMap::new(),
        runs: Vec::new(),
    };
    CaseReport {
        case: case.name.clone(),
        tunnels: specs.iter().map(tunnel).collect(),
    }
}

fn brief(run: &Run, metrics: &[Metric]) -> String {
    if let Some(error) = &run.error {
        return format!("failed: {error}");
    }
    let shown = metrics.iter().filter_map(|metric| {
        let value = run.values.get(&*metric.name)?;
        Some(format!("{value:.*} {}", metric.decimals, metric.unit))
    });
    shown.collect::<Vec<_>>().join(", ")
}

pub(crate) fn of_side(role: Role, metric: &str) -> String {
    format!("{}_{metric}", role.name())
}

/// One case, one tunnel, once.
fn run_once(case: &Case<'_>, spec: &Spec, setup: &Setup, cores: usize, round: usize) -> Run {
    let mut run = Run {
        round,
        ..Run::default()
    };
    match with_tunnel(case, spec, setup, cores, &mut run.farewell) {
        Ok(outcome) => {
            // What the case says itself comes last, and wins.
            run.take(counted_values(&run.farewell));
            run.take(outcome.values);
            let of_sides = outcome.of_sides.into_iter();
            let of_sides = of_sides.map(|(role, name, value)| (of_side(role, name), value));
            run.values.extend(of_sides);
            if let Some(usage) = &outcome.usage {
                run.take(usage_values(usage, outcome.bytes));
            }
            run.usage = outcome.usage;
            run.load_command = outcome.load_command;
        }
        Err(error) => run.error = Some(format!("{error:#}")),
    }
    run
}

fn with_tunnel(
    case: &Case<'_>,
    spec: &Spec,
    setup: &Setup,
    cores: usize,
    farewell: &mut Farewell,
) -> Result<Outcome> {
    let layout = setup.layout(cores);
    let running = Running::start(case.behind, &setup.place, &layout)?;
    let tunnel = Tunnel::start(spec, setup, cores, running.address())?;
    let mut processes = tunnel.processes();
    let service = match &running {
        Running::Own(service) => Some(service),
        Running::Other(server) => {
            processes.push(server.process());
            None
        }
    };
    // Visitors of other programs must speak their language; there the case's warm-up shows whether
    // the tunnel works.
    if !matches!(case.behind, Behind::Iperf3 | Behind::Requests(_)) {
        connect::until_it_works(tunnel.visit, WORKS_LIMIT)
            .context("the first visitor through the tunnel")?;
    }
    let outcome = (case.measure)(&Session {
        setup,
        spec,
        tunnel: &tunnel,
        visit: tunnel.visit,
        processes,
        layout,
        service,
    });
    *farewell = tunnel.stop();
    outcome
}

/// The metrics of what the tunnel's processes used.
fn usage_values(usage: &Usage, bytes: Option<f64>) -> Vec<(&'static str, f64)> {
    const MIB: f64 = 1_048_576.0;
    type Of = fn(&ProcessUsage) -> f64;
    if !usage.has_tunnel() {
        return Vec::new();
    }
    let sums: [(&str, Of); 4] = [
        ("cpu_percent_average", |it| it.cpu_percent_average),
        ("cpu_percent_max", |it| it.cpu_percent_max),
        ("memory_average_mib", |it| it.rss_average_bytes / MIB),
        ("memory_max_mib", |it| it.rss_peak_bytes as f64 / MIB),
    ];
    let mut values = sums.map(|(name, of)| (name, usage.sum(of))).to_vec();
    let bytes = bytes.filter(|bytes| *bytes > 0.0);
    let per_gb = bytes.map(|bytes| usage.tunnel_cpu_seconds() / (bytes / 1e9));
    values.extend(per_gb.map(|seconds| ("cpu_seconds_per_gb", seconds)));
    values
}

/// The metrics of what the tunnel's programs counted, of those that count.
fn counted_values(farewell: &Farewell) -> Vec<(&'static str, f64)> {
    let sides = farewell.sides().map(|(_, counters)| counters);
    if sides.iter().all(|side| side.is_empty()) {
        return Vec::new();
    }
    let metrics = [
        ("visitors_handed_over", "visitors_handed_over"),
        ("packets_handed_over", "quic_packets_handed_over"),
        ("mail_received", "mail_received"),
    ];
    let total = |counter: &str| -> u64 {
        let counts = sides.iter().filter_map(|side| side.get(counter));
        counts.sum()
    };
    let values = metrics.map(|(metric, counter)| (metric, total(counter) as f64));
    values.to_vec()
}

/// Presents a report. Whether every run succeeded.
pub(crate) fn finish(common: &Common, mut report: Report) -> Result<bool> {
    report.summarise();
    say!("\n{}", Table::of(&report).to_text());
    say!("{}", page::notes(&report).trim_end());
    if let Some(directory) = &common.out {
        for path in page::write_all(&report, directory)? {
            say!("wrote {}", path.display());
        }
    }
    Ok(report.failures().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        for (word, wanted) in [
            ("--tunnels=raw,qmux-dp", "--tunnels=raw,qmux-dp"),
            ("lanes = 2", "'lanes = 2'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word.into()), wanted);
        }
    }

    #[test]
    fn counters_of_both_sides_are_added_up() {
        assert!(counted_values(&Farewell::default()).is_empty());
        let side = |count| BTreeMap::from([("mail_received".to_owned(), count)]);
        let farewell = Farewell {
            server_counters: side(40),
            client_counters: side(2),
            ..Farewell::default()
        };
        let values = counted_values(&farewell);
        assert!(values.contains(&("mail_received", 42.0)));
        assert!(values.contains(&("visitors_handed_over", 0.0)));
    }

    #[test]
    fn without_a_tunnel_nothing_is_used() {
        assert!(usage_values(&Usage::default(), Some(1e9)).is_empty());
    }
}
