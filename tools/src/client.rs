//! `qmux-ctl client`: a further client, in one file.

use std::path::PathBuf;

use qmux_config::certs::{self, ClientFile, DAYS_DEFAULT, DAYS_MAX, OfferedService};

use crate::authority;
use crate::failure::Failure;
use crate::output::{self, Readers};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a certificate for a client and write the one file that it needs, a complete dp.toml.
    Add(Add),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// The name of the client, in its certificate and at the server.
    #[arg(value_name = "NAME", value_parser = authority::client_name)]
    name: String,
    /// Where the client dials the server.
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// The services that the client serves, each with or without the place where it is, as in
    /// web,ssh=127.0.0.1:22. Without any: the service without a name.
    #[arg(long, value_name = "NAME[=HOST:PORT],…", value_delimiter = ',',
        value_parser = OfferedService::parse)]
    services: Vec<OfferedService>,
    /// The directory with the CA's certificate and key.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,
    /// The file to write. Default: NAME.toml.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long the certificate is valid; never longer than the CA.
    #[arg(long, value_name = "N", default_value_t = DAYS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Add(args) => add(args),
    }
}

fn add(args: &Add) -> Result<(), Failure> {
    let name = &args.name;
    if matches!(name.as_str(), "server" | "ca") {
        let message = format!("{name:?} is the name of a file in every directory of certificates");
        return Err(Failure::Input(format!("{message}; it must be another one")));
    }
    let host = certs::server_host(&args.server)
        .map_err(|message| Failure::Input(format!("--server {message}")))?;
    let authority = authority::load(&args.certs)?;
    // If the server's certificate lies beside the CA, its names are known; otherwise the host is
    // the best guess, and dp.toml's default.
    let server_name = authority::read(&args.certs.join("server.crt"))
        .ok()
        .and_then(|pem| certs::server_name(&pem, host))
        .unwrap_or_else(|| host.to_owned());
    let issued = authority
        .issue_client(name, args.days)
        .map_err(|error| authority::refused(&args.certs, &error))?;
    let file = ClientFile {
        name,
        server: &args.server,
        server_name: &server_name,
        services: &args.services,
        ca_cert_pem: authority.cert_pem(),
        issued: &issued,
    };
    let text = file.text().map_err(Failure::Input)?;
    let path = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    let way_out = "; --out names another file";
    output::to_new_file(&path, &text, Readers::Owner, way_out)?;
    let shown = path.display();
    output::to_stderr(format_args!("wrote {shown}"));
    if server_name != host {
        output::to_stderr(format_args!(
            "the server's certificate is not for {host}: {shown} expects its name {server_name}"
        ));
    }
    let to_edit: Vec<&str> = args
        .services
        .iter()
        .filter(|service| service.is_to_be_edited())
        .map(OfferedService::name)
        .collect();
    if args.services.is_empty() {
        output::to_stderr(format_args!("put host and port in [client.local] right"));
    } else if !to_edit.is_empty() {
        let names = to_edit.join(", ");
        output::to_stderr(format_args!("put host and port right for: {names}"));
    }
    output::to_stderr(format_args!(
        "\nOn the client: qmux-dp --config {shown}\nIn the server's dp.toml:\n"
    ));
    // It is the only thing on standard output, so that it can be appended to a file.
    output::to_stdout(&file.entry())
}
