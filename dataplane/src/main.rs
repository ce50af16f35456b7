//! `qmux-dp`: an L4 reverse tunnel. See `ARCHITECTURE.md` for the layers and the path of a byte.

mod admin;
mod bind;
mod buffer;
mod check;
mod cli;
mod client;
mod core;
#[cfg(test)]
mod costs;
mod demo;
mod exit;
mod flow;
mod jitter;
mod log_limit;
mod logging;
mod metrics;
mod quic;
mod ready;
mod resolve;
mod run;
mod server;
mod status;
mod sys;
mod watch;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use qmux_config::Config;

use cli::{Cli, Command};
use exit::Failure;
use run::StopOn;

#[cfg(not(feature = "count-allocations"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "count-allocations")]
#[global_allocator]
static ALLOCATOR: sys::allocations::Counting = sys::allocations::Counting;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("qmux-dp: {failure}");
            failure.code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    logging::start(&cli.log)?;
    match (cli.command, cli.config) {
        (Some(Command::Demo { once }), _) => demo::run(once, cli.cores),
        #[cfg(feature = "count-allocations")]
        (Some(Command::Allocations), _) => demo::count_allocations(),
        (None, Some(path)) => {
            let config =
                Config::load(&path).map_err(|errors| Failure::Input(errors.to_string()))?;
            for warning in &config.warnings {
                tracing::warn!("{warning}");
            }
            let cores = run::core_count(cli.cores);
            if cli.check {
                return check::run(config, cores);
            }
            serve(config, cores)
        }
        (None, None) => Err(Failure::Input("--config is missing".into())),
    }
}

fn serve(config: Config, cores: usize) -> Result<(), Failure> {
    check::tls_contexts(&config)?;
    let drain_timeout = drain_timeout(&config);
    run::start(&Arc::new(config), cores, StopOn::Signal)?.until_signal(drain_timeout)
}

/// The longer of both roles' times.
fn drain_timeout(config: &Config) -> Duration {
    let server = config.server.as_ref().map(|server| server.drain_timeout);
    let client = config.client.as_ref().map(|client| client.drain_timeout);
    server.max(client).unwrap_or_default()
}
