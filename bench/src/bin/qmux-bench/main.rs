//! `qmux-bench`: measures tunnels side by side, so that every number stands beside the same number
//! without a tunnel and with others, from the same run.
//!
//! Each measurement is a list of cases. Every round runs every case with every tunnel in turn (A B
//! A B), each time with a fresh tunnel, so that what else happens on the machine hits all of them
//! alike. What comes out are medians, spreads and ratios, with everything that is needed to repeat
//! it.

#![forbid(unsafe_code)]

mod attack;
mod background;
mod connect;
mod counting;
mod discard;
mod faults;
mod flamegraph;
mod flows;
mod goals;
mod instructions;
mod iperf;
mod latency;
mod link;
mod options;
mod path;
mod performance;
mod programs;
mod runner;
mod scale;
mod service;
mod soak;
mod syscalls;
mod udp;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qmux_bench::harness::{BenchError, cleanup, limits};

/// Something could not be measured.
const EXIT_FAILED: u8 = 1;

/// Measures tunnels side by side: qmux-dp, the same on quinn, no tunnel, others
#[derive(Debug, Parser)]
#[command(name = "qmux-bench", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How many bytes go through: an own source and sink, TCP and UDP
    Discard(discard::Args),
    /// The same by iperf3
    Iperf(iperf::Args),
    /// Round trips of small messages, with and without bulk beside them
    Latency(latency::Args),
    /// New visitors per second, and how long each waits
    Connect(connect::Args),
    /// What open flows cost: memory and CPU time
    Flows(flows::Args),
    /// UDP packets per second until some are lost, by size
    Udp(udp::Args),
    /// System calls, wake-ups and packets per round trip, visitor, datagram and GB
    Syscalls(syscalls::Args),
    /// Instructions of each side per round trip, visitor, datagram and byte (with valgrind)
    Instructions(instructions::Args),
    /// Requests per second of redis-benchmark and wrk, and what each costs
    Programs(programs::Args),
    /// What a byte costs with more cores
    Scale(scale::Args),
    /// Bytes and round trips over emulated links
    Link(link::Args),
    /// Whether every byte and visitor gets through links that fail
    Faults(faults::Args),
    /// What honest visitors notice while strangers attack
    Attack(attack::Args),
    /// Mixed load for many minutes, with a picture of what it costs
    Soak(soak::Args),
    /// Everything that the goals are about, in one table
    Goals(goals::Args),
    /// Writes docs/performance.md from what other commands have measured
    Performance(performance::Args),
    /// Profiles a tunnel's server or client under load (with perf), and draws the flamegraph
    Profile(flamegraph::ProfileArgs),
    /// Draws a flamegraph of what `perf script` has printed
    Flamegraph(flamegraph::Args),
    /// The service behind a tunnel, until it is killed
    #[command(hide = true)]
    Service(service::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    limits::raise_open_files();
    let result = cleanup::on_signals().and_then(|()| run(&cli.command));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("qmux-bench: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Whether everything could be measured.
fn run(command: &Command) -> Result<bool, BenchError> {
    match command {
        Command::Discard(args) => discard::run(args),
        Command::Iperf(args) => iperf::run(args),
        Command::Latency(args) => latency::run(args),
        Command::Connect(args) => connect::run(args),
        Command::Flows(args) => flows::run(args),
        Command::Udp(args) => udp::run(args),
        Command::Syscalls(args) => syscalls::run(args),
        Command::Instructions(args) => instructions::run(args),
        Command::Programs(args) => programs::run(args),
        Command::Scale(args) => scale::run(args),
        Command::Link(args) => link::run(args),
        Command::Faults(args) => faults::run(args),
        Command::Attack(args) => attack::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Goals(args) => goals::run(args),
        Command::Performance(args) => performance::run(args),
        Command::Profile(args) => flamegraph::profile(args),
        Command::Flamegraph(args) => flamegraph::draw(args),
        Command::Service(args) => service::run(args),
    }
}
