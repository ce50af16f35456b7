//! The commands of `qmux-bench`, which measures tunnels side by side, so that every number stands
//! beside the same number without a tunnel and with others, from the same run.
//!
//! Each measurement is a list of cases. Every round runs every case with every tunnel in turn (A B
//! A B), each time with a fresh tunnel, so that what else happens on the machine hits all of them
//! alike. What comes out are medians, spreads and ratios, with everything that is needed to repeat
//! it.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "brackets in the help of options are no links"
)]

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

use anyhow::Result;
use std::process::ExitCode;

use crate::commands::options::Mistake;
use crate::harness::{cleanup, cpus};
use clap::{Parser, Subcommand};

/// The commands, each with its module and the function of it that runs it, which says whether
/// everything could be measured.
macro_rules! commands {
    ($($(#[$doc:meta])+ $name:ident($module:ident::$args:ident) $run:ident;)+) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($(#[$doc])+ $name($module::$args),)+
        }

        fn run(command: &Command) -> Result<bool> {
            match command {
                $(Command::$name(args) => $module::$run(args),)+
            }
        }
    };
}

commands! {
    /// How many bytes go through: an own source and sink, TCP and UDP
    Discard(discard::Args) run;
    /// The same by iperf3
    Iperf(iperf::Args) run;
    /// Round trips of small messages, with and without bulk beside them
    Latency(latency::Args) run;
    /// New visitors per second, and how long each waits
    Connect(connect::Args) run;
    /// What open flows cost: memory and CPU time
    Flows(flows::Args) run;
    /// UDP packets per second until some are lost, by size
    Udp(udp::Args) run;
    /// System calls, wake-ups and packets per round trip, visitor, datagram and GB
    Syscalls(syscalls::Args) run;
    /// Instructions of each side per round trip, visitor, datagram and byte (with valgrind)
    Instructions(instructions::Args) run;
    /// Requests per second of redis-benchmark and wrk, and what each costs
    Programs(programs::Args) run;
    /// What a byte costs with more cores
    Scale(scale::Args) run;
    /// Bytes and round trips over emulated links
    Link(link::Args) run;
    /// Whether every byte and visitor gets through links that fail
    Faults(faults::Args) run;
    /// What honest visitors notice while strangers attack
    Attack(attack::Args) run;
    /// Mixed load for many minutes, with a picture of what it costs
    Soak(soak::Args) run;
    /// Everything that the goals are about, in one table
    Goals(goals::Args) run;
    /// Writes docs/performance.md from what other commands have measured
    Performance(performance::Args) run;
    /// Profiles a tunnel's server or client under load (with perf), and draws the flamegraph
    Profile(flamegraph::ProfileArgs) profile;
    /// Draws a flamegraph of what `perf script` has printed
    Flamegraph(flamegraph::Args) draw;
    /// The service behind a tunnel, until it is killed
    #[command(hide = true)]
    Service(service::Args) run;
}

/// Measures tunnels side by side: qmux-dp, the same on quinn, no tunnel, others
#[derive(Debug, Parser)]
#[command(name = "qmux-bench", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the program does. Exit code 1 means that something could not be measured, and 2 that the
/// command line has a mistake.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    cpus::raise_open_files();
    match cleanup::on_signals().and_then(|()| run(&cli.command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("qmux-bench: {error:#}");
            if error.is::<Mistake>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
