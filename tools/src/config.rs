//! `qmux-ctl config`.

use std::path::PathBuf;

use clap::ValueEnum;
use qmux_config::example;

use crate::failure::Failure;
use crate::output::{self, Readers};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which side of the tunnel the config is for.
    #[arg(value_enum)]
    role: Role,
    /// The file to write; without it, the config goes to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it is there already.
    #[arg(long, requires = "out")]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    /// The side with the public addresses.
    Server,
    /// The side beside the service.
    Client,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (text, to_edit) = match args.role {
        Role::Server => (example::server(), "quic_addr and [[server.services]]"),
        Role::Client => (
            example::client(),
            "[[client.servers]] and [[client.services]]",
        ),
    };
    let Some(path) = &args.out else {
        return output::to_stdout(text);
    };
    output::to_file(path, text, Readers::Usual, args.force)?;
    let shown = path.display();
    output::to_stdout(&format!(
        "wrote {shown}\n\nNext: put {to_edit} right, then: qmux-dp --config {shown} --check\n"
    ))
}
