//! The command line, which is that of qmux-dp with `--tuned` in addition.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::logging::LogOptions;
use clap::Parser;

/// The qmux-dp tunnel on quinn, tokio and rustls: the baseline to measure against
#[derive(Debug, Parser)]
#[command(name = "quinn-dp", version)]
pub(crate) struct Args {
    /// The config file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Worker threads [default: the CPUs that the process may run on]
    #[arg(long, value_name = "N")]
    cores: Option<NonZeroUsize>,
    /// Give quinn the settings that qmux-dp has, rather than its own defaults
    #[arg(long)]
    pub(crate) tuned: bool,
    /// Check the config, the certificates and the addresses, print what would run, and exit
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

impl Args {
    /// How many worker threads to run.
    pub(crate) fn cores(&self) -> NonZeroUsize {
        self.cores.unwrap_or_else(crate::process::cpus)
    }
}
