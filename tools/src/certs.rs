//! `qmux-ctl certs`: makes a new CA, and the certificates of a server and of a client.

use std::fmt::Write as _;
use std::path::PathBuf;

use qmux_config::certs::{self, CertsRequest, DAYS_DEFAULT, DAYS_MAX, GenerateError, WriteError};

use crate::failure::Failure;
use crate::output;
use crate::renew;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// A DNS name or IP address under which clients dial the server; may be given several times.
    #[arg(long = "server-name", value_name = "NAME", required = true)]
    server_names: Vec<String>,
    /// The directory for the six files; it is created if it does not exist.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// How long the certificates are valid.
    #[arg(long, value_name = "N", default_value_t = DAYS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
    /// Replace files that are there already.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Replace a certificate that expires with a new one from the same CA and with the same key.
    Renew(renew::Args),
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if let Some(Command::Renew(args)) = args.command {
        return renew::run(&args);
    }
    let request = CertsRequest {
        server_names: args.server_names,
        days: args.days,
    };
    let generated = certs::generate(&request).map_err(|error| match error {
        GenerateError::Library(_) => Failure::Internal(error.to_string()),
        _ => Failure::Input(error.to_string()),
    })?;
    let paths = certs::write(&generated, &args.out, args.force).map_err(|error| match error {
        WriteError::Exists(_) => Failure::Input(format!("{error} (--force replaces them)")),
        WriteError::Io { path, error } => Failure::Write { path, error },
    })?;
    let mut text = String::new();
    for path in paths {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "wrote {}", path.display());
    }
    let _ = write!(
        text,
        "\nThe server needs ca.crt, server.crt and server.key; a client ca.crt, client.crt and \
         client.key.\nKeep ca.key away from both: whoever has it can make certificates that both \
         trust.\nNext, for each of them: qmux-ctl config server --out dp.toml, or qmux-ctl config \
         client --out dp.toml\n"
    );
    output::to_stdout(&text)
}
