//! `qmux-ctl completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::{Cli, output};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell, which reads them as its own documentation says; for bash, for example: source
    /// <(qmux-ctl completions bash)
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "qmux-ctl", &mut text);
    output::to_stdout(&String::from_utf8_lossy(&text))
}
