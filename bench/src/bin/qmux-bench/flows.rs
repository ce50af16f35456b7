//! `qmux-bench flows`: what open flows cost.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::meter::{Metered, Role, Usage};
use qmux_bench::harness::proc_stat;
use qmux_bench::load::idle::Flows;
use qmux_bench::report::{Metric, lower, neither};

use crate::options::{Common, List};
use crate::runner::{self, Behind, Case, Outcome, Session};

/// How open flows are measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Flows at a time
    #[arg(long, value_name = "LIST", default_value = "1000,10000")]
    flows: List<usize>,
    /// Small messages per second, over all flows, that active flows exchange
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

const METRICS: &[Metric] = &[
    lower("server_kib_per_flow", "server KiB/flow", 2).main(),
    lower("client_kib_per_flow", "client KiB/flow", 2).main(),
    lower("idle_cpu_percent", "CPU % idle", 2),
    lower("active_cpu_percent", "CPU % active", 1),
    neither("active_messages_per_second", "messages/s", 0),
];

/// After the flows are open, what they have stirred up settles.
const SETTLE: Duration = Duration::from_secs(1);

/// Opens so many flows.
type Open = fn(SocketAddr, usize) -> io::Result<Flows>;

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let kinds: [(&str, Open); 2] = [("tcp", Flows::open_tcp), ("udp", Flows::open_udp)];
    let mut cases = Vec::new();
    for (kind, open) in kinds {
        for &flows in args.flows.iter() {
            let name = format!("{flows} {kind} flows");
            let case = Case::new(name, move |session| measure(session, open, flows, args));
            cases.push(Case {
                behind: Behind::OwnProcess,
                ..case
            });
        }
    }
    runner::run(&args.common, "flows", METRICS, &cases)
}

/// Resident bytes of the processes of a role.
fn resident(processes: &[Metered], role: Role) -> Option<f64> {
    let process = processes.iter().find(|it| it.role == role)?;
    let bytes = proc_stat::memory(process.pid)?.resident_bytes as f64;
    Some(bytes)
}

fn cpu_percent(usage: &Usage) -> f64 {
    usage.tunnel_cpu_seconds() / usage.seconds * 100.0
}

fn measure(
    session: &Session<'_>,
    open: Open,
    count: usize,
    args: &Args,
) -> Result<Outcome, BenchError> {
    let failed = |what: &'static str| BenchError::io(format!("{what} {count} flows"));
    // One flow of the kind first, so that what exists once is there before.
    drop(open(session.visit, 1).map_err(failed("before"))?);
    thread::sleep(SETTLE / 4);
    let roles = [
        ("server_kib_per_flow", Role::Server),
        ("client_kib_per_flow", Role::Client),
    ];
    let before = roles.map(|(_, role)| resident(&session.processes, role));
    let mut flows = open(session.visit, count).map_err(failed("opening"))?;
    thread::sleep(SETTLE);
    let ((), idle) = session.metered(|| thread::sleep(args.common.measure()));
    let after = roles.map(|(_, role)| resident(&session.processes, role));
    let chatter = || flows.chatter(args.rate, args.common.measure());
    let (messages, active) = session.metered(chatter);
    let messages = messages.map_err(failed("talking over"))?;

    let mut values = Vec::new();
    for ((name, _), (before, after)) in roles.iter().zip(before.iter().zip(after)) {
        if let Some((before, after)) = before.zip(after) {
            values.push((*name, (after - before) / 1_024.0 / count as f64));
        }
    }
    if idle.has_tunnel() {
        values.push(("idle_cpu_percent", cpu_percent(&idle)));
        values.push(("active_cpu_percent", cpu_percent(&active)));
    }
    let rate = f64::from(messages) / active.seconds;
    values.push(("active_messages_per_second", rate));
    Ok(Outcome::of(values, active))
}
