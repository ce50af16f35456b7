//! `qmux-dp`: an L4 reverse tunnel. See `ARCHITECTURE.md` for the layers and the path of a byte.

// `println!` and `eprintln!` panic when nobody reads, and wait for a slow reader.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod buffer;
mod cli;
mod client;
mod core;
#[cfg(test)]
mod costs;
mod demo;
mod flow;
mod jitter;
mod output;
mod process;
mod quic;
mod ready;
mod resolve;
mod server;
mod sys;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use qmux_config::Config;

use cli::{Cli, Command};
use process::exit::Failure;
use process::run::{self, Events};
use process::{access_log, bind, check, logging};

#[cfg(not(feature = "count-allocations"))]
#[global_allocator]
static ALLOCATOR: sys::heap::Metered = sys::heap::Metered;

#[cfg(feature = "count-allocations")]
#[global_allocator]
static ALLOCATOR: sys::allocations::Counting = sys::allocations::Counting;

fn main() -> ExitCode {
    let cli = Cli::from_arguments();
    if !cli.check {
        sys::copies::make_fast();
    }
    let log_format = cli.log.log_format;
    let code = match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::say_last(&failure, log_format);
            failure.code()
        }
    };
    access_log::flush(logging::FLUSH_AT_END);
    logging::flush(logging::FLUSH_AT_END);
    code
}

fn run(cli: Cli) -> Result<(), Failure> {
    logging::start(&cli.log)?;
    match (cli.command, cli.config) {
        (Some(Command::Demo { once }), _) => demo::run(once, cli.cores),
        #[cfg(feature = "count-allocations")]
        (Some(Command::Allocations), _) => demo::count_allocations(),
        (None, Some(path)) if cli.check => check::run(load(&path)?, run::core_count(cli.cores)),
        (None, Some(path)) => serve(&path, cli.cores),
        (None, None) => Err(Failure::Input("--config is missing".into())),
    }
}

fn load(path: &Path) -> Result<Config, Failure> {
    let text = Config::text_of(path).map_err(|errors| Failure::Input(errors.to_string()))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Config, Failure> {
    let config = Config::parse(text, path).map_err(|errors| Failure::Input(errors.to_string()))?;
    let config = bind::without_ipv6(config, sys::bind::has_ipv6);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn serve(path: &Path, cores: Option<usize>) -> Result<(), Failure> {
    let events = Events::with_signals()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), "qmux-dp starts");
    let text = Config::text_of(path).map_err(|errors| Failure::Input(errors.to_string()))?;
    let config = parse(&text, path)?;
    let cores = run::core_count(cores);
    let config = Arc::new(config);
    let start = || {
        check::tls_contexts(&config)?;
        run::start(&config, cores, events)
    };
    let mut running = start().map_err(|failure: Failure| failure.located(&config))?;
    running.reload_from(path, text)?;
    running.until_signal(None)
}
