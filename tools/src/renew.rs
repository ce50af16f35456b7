//! `qmux-ctl certs renew`: renews a certificate.
//!
//! The CA and the key stay the same: one file is replaced at once, the pair fits at any moment, and
//! what a server derives from its key survives. No other file is touched.

use std::path::{Path, PathBuf};

use qmux_config::CertificateFacts;
use qmux_config::certs::{self, Authority, DAYS_DEFAULT, DAYS_MAX, RenewInFileError};

use crate::authority;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// "server", or a client's name: its certificate is NAME.crt beside the CA, or in NAME.toml as
    /// qmux-ctl client add has written it. Or the path of such a file.
    #[arg(value_name = "NAME")]
    name: String,
    /// The directory with the CA's certificate and key.
    #[arg(long, alias = "out", value_name = "DIR", default_value = "certs")]
    certs: PathBuf,
    /// How long the new certificate is valid; never longer than the CA.
    #[arg(long, value_name = "N", default_value_t = DAYS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let authority = authority::load(&args.certs)?;
    let name = args.name.as_str();
    if name.ends_with(".toml") {
        return in_file(Path::new(name), &authority, args.days);
    }
    if let Err(message) = authority::client_name(name) {
        return Err(Failure::Input(format!(
            "{name:?} is neither a name nor the path of a .toml file; {message}"
        )));
    }
    if name == "ca" {
        return Err(Failure::Input(
            "a CA is not renewed: peers trust its certificate as it is; make a new one: qmux-ctl \
             certs --server-name NAME --out ANOTHER_DIR"
                .to_owned(),
        ));
    }
    let cert = args.certs.join(format!("{name}.crt"));
    if cert.exists() {
        return pair(
            &cert,
            &args.certs.join(format!("{name}.key")),
            &authority,
            args.days,
        );
    }
    let file = format!("{name}.toml");
    let places = [PathBuf::from(&file), args.certs.join(&file)];
    match places.iter().find(|path| path.exists()) {
        Some(path) => in_file(path, &authority, args.days),
        None if name == "server" => Err(Failure::Input(format!(
            "{} does not exist; qmux-ctl certs makes one",
            cert.display()
        ))),
        None => Err(Failure::Input(format!(
            "there is no certificate of {name}: neither {}, nor {file} here or in {}; give the \
             path of its .toml, or make a client of that name: qmux-ctl client add {name}",
            cert.display(),
            args.certs.display()
        ))),
    }
}

fn pair(cert: &Path, key: &Path, authority: &Authority, days: u32) -> Result<(), Failure> {
    let pem = |path: &Path| {
        authority::read(path)
            .map_err(|message| Failure::Input(format!("{} {message}", path.display())))
    };
    let renewed = authority
        .renew(&pem(cert)?, &pem(key)?, days)
        .map_err(|error| authority::refused(cert, &error))?;
    output::replace(cert, &renewed)?;
    say(cert, &renewed)
}

fn in_file(path: &Path, authority: &Authority, days: u32) -> Result<(), Failure> {
    let shown = path.display();
    let text =
        authority::read(path).map_err(|message| Failure::Input(format!("{shown} {message}")))?;
    let (text, renewed) =
        certs::renew_in_file(&text, authority, days).map_err(|error| match &error {
            RenewInFileError::Authority(reason) => authority::refused(path, reason),
            _ => Failure::Input(format!("{shown} {error}")),
        })?;
    output::replace(path, &text)?;
    say(path, &renewed)
}

fn say(path: &Path, renewed: &str) -> Result<(), Failure> {
    let facts = CertificateFacts::of_pem(renewed);
    let until = facts.map_or_else(String::new, |facts| {
        format!(", valid until {}", facts.not_after)
    });
    output::to_stdout(&format!(
        "renewed {}{until}; its key is the same\n",
        path.display()
    ))
}
