//! The command line.

use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::process::logging::LogOptions;
use crate::sys::CORES_MAX;

/// The package's version and the commit that a release build is of (see `build.rs`).
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("QMUX_BUILD"), ")");

/// L4 reverse tunnel: publishes services behind NAT through public servers. TCP rides QUIC streams,
/// UDP rides QUIC datagrams.
#[derive(Debug, Parser)]
#[command(
    name = "qmux-dp",
    version = VERSION,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// What to do instead of running a config
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// The configuration: of a server, of a client, or of both
    #[arg(long, value_name = "dp.toml", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Threads, one per core; default: the CPUs that the process may run on
    #[arg(long, value_name = "N", value_parser = cores, global = true)]
    pub(crate) cores: Option<usize>,
    /// Validate config, certificates and addresses, print what would run, and exit
    #[arg(long)]
    pub(crate) check: bool,
    /// How logging is done
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

/// What to do instead of running a config.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a service, a server and a client in this process on loopback, to try the tunnel out
    Demo {
        /// Send real traffic through the tunnel, report, and exit
        #[arg(long)]
        once: bool,
    },
    /// Count what the tunnel allocates once its traffic flows steadily, by owner and place
    #[cfg(feature = "count-allocations")]
    Allocations,
}

impl Cli {
    /// Parses the arguments of this process. Help, version and mistakes are printed and end it.
    pub(crate) fn from_arguments() -> Cli {
        Cli::try_parse().unwrap_or_else(|error| {
            if let Some(hint) = config_hint(&error) {
                // The error itself would call a config an unknown subcommand.
                let text = format!("error: {hint}\n\nFor more information, try '--help'.");
                crate::process::logging::say(&text);
                std::process::exit(USAGE_ERROR);
            }
            error.exit()
        })
    }
}

/// The exit code for a bad command line, as clap has it.
const USAGE_ERROR: i32 = 2;

/// The hint for somebody who gave a config without `--config`; `None` for any other mistake.
fn config_hint(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let path = Path::new(word);
    let is_config = path.extension().is_some_and(|it| it == "toml") || path.is_file();
    is_config.then(|| {
        format!("'{word}' is no subcommand; a config is given as: qmux-dp --config {word}")
    })
}

fn cores(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(cores) if (1..=CORES_MAX).contains(&cores) => Ok(cores),
        _ => Err(format!("a number from 1 to {CORES_MAX} is allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_config_without_its_option_is_told_from_a_wrong_subcommand() {
        let hint = |word| {
            let error = Cli::try_parse_from(["qmux-dp", word]).expect_err("no subcommand");
            config_hint(&error)
        };
        let expected =
            "'a/dp.toml' is no subcommand; a config is given as: qmux-dp --config a/dp.toml";
        assert_eq!(hint("a/dp.toml").as_deref(), Some(expected));
        assert_eq!(hint("demmo"), None);
    }

    #[test]
    fn cores_are_bounded() {
        assert_eq!(cores("8"), Ok(8));
        for bad in ["0", "257", "-1", "many", ""] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }
}
