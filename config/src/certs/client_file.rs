//! The one file that a client needs: a complete dp.toml with its certificates and its key in it.

use std::fmt::Write as _;
use std::path::Path;

use boring::x509::X509;
use toml::de::{DeTable, DeValue};

use super::{Authority, AuthorityError, Issued};
use crate::address;
use crate::certificate_facts::CertificateFacts;
use crate::config::Config;
use crate::local_service::LocalPorts;
use crate::ports::Ports;
use crate::service_name::is_name;

/// The host of a service, if none is given.
const HOST: &str = "127.0.0.1";
const PORT: u16 = 3_000;

/// A service that the client is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedService {
    name: String,
    /// Host and ports; `None` if they are to be filled in later.
    place: Option<(String, LocalPorts)>,
}

impl OfferedService {
    /// Reads `web` or `web=127.0.0.1:8080`; the port may be a range or `same`.
    ///
    /// # Errors
    /// What is wrong with it, and what it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "NAME or NAME=HOST:PORT, as in web=127.0.0.1:8080";
        let (name, place) = match text.split_once('=') {
            Some((name, place)) => (name, Some(place)),
            None => (text, None),
        };
        if !is_name(name) {
            return Err(format!(
                "{name:?} is no name of a service; it must be 1 to 64 of A-Z a-z 0-9 . _ -"
            ));
        }
        let place = place
            .map(|place| {
                let (host, port) = place
                    .rsplit_once(':')
                    .ok_or_else(|| format!("{place:?} has no port; it must be {FORM}"))?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                if !address::is_host(host) {
                    return Err(format!("{host:?} is no host; it must be {FORM}"));
                }
                let ports = match port {
                    "same" => LocalPorts::Same,
                    port => LocalPorts::These(Ports::parse(port)?),
                };
                Ok((host.to_owned(), ports))
            })
            .transpose()?;
        Ok(Self {
            name: name.to_owned(),
            place,
        })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its place is to be filled in later.
    #[must_use]
    pub fn is_to_be_edited(&self) -> bool {
        self.place.is_none()
    }
}

/// The content of the file.
#[derive(Clone, Copy, Debug)]
pub struct ClientFile<'a> {
    /// The client's name.
    pub name: &'a str,
    /// Host and port of the server.
    pub server: &'a str,
    /// The name that the server's certificate has.
    pub server_name: &'a str,
    /// The services; if there are none, the service without a name.
    pub services: &'a [OfferedService],
    /// The CA's certificate, in PEM form.
    pub ca_cert_pem: &'a str,
    /// The client's own certificate and key.
    pub issued: &'a Issued,
}

impl ClientFile<'_> {
    /// The text of the file. It contains a private key.
    ///
    /// # Errors
    /// The problem that [`Config`] would report about it.
    pub fn text(&self) -> Result<String, String> {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        match Config::parse(&text, Path::new("dp.toml")) {
            Ok(_) => Ok(text),
            Err(errors) => Err(errors.to_string()),
        }
    }

    /// The entry for the server's file.
    #[must_use]
    pub fn entry(&self) -> String {
        let names: Vec<String> = match self.services {
            [] => vec!["\"\"".to_owned()],
            services => services.iter().map(|it| format!("{:?}", it.name)).collect(),
        };
        format!(
            "[[server.clients]]\nname = {name:?}\ncertificate = {name:?}\nservices = [{}]\n",
            names.join(", "),
            name = self.name,
        )
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "# qmux-dp, client {:?}. It holds a private key: only its owner may read it.\n\
             # Every other key that it may have: qmux-ctl config client\n\n\
             [client]\n\n\
             [[client.servers]]\n\
             address = {:?}\n\
             server_name = {:?}",
            self.name, self.server, self.server_name
        )?;
        if self.services.is_empty() {
            let place = "# Where the service is.\n";
            writeln!(
                out,
                "\n[client.local]\n{place}host = {HOST:?}\nport = {PORT}"
            )?;
        }
        for service in self.services {
            writeln!(out, "\n[[client.services]]\nname = {:?}", service.name)?;
            match &service.place {
                Some((host, LocalPorts::These(ports))) if ports.count() == 1 => {
                    writeln!(out, "host = {host:?}\nport = {}", ports.first())?;
                }
                Some((host, ports)) => writeln!(out, "host = {host:?}\nport = \"{ports}\"")?,
                None => {
                    let place = "# Where the service is.\n";
                    writeln!(out, "{place}host = {HOST:?}\nport = {PORT}")?;
                }
            }
        }
        let (ca, cert) = (self.ca_cert_pem.trim_end(), self.issued.cert_pem.trim_end());
        writeln!(
            out,
            "\n[client.tls]\n\
             ca_cert = \"\"\"\n{ca}\n\"\"\"\n\
             client_cert = \"\"\"\n{cert}\n\"\"\"\n\
             client_key = \"\"\"\n{}\n\"\"\"",
            self.issued.key_pem.trim_end()
        )
    }
}

/// The host of a server's address, as in `server.example.com:8443`.
///
/// # Errors
/// What is wrong with it, and what it must be.
pub fn server_host(server: &str) -> Result<&str, String> {
    address::parse_target(server).map(|target| target.host)
}

/// The name to expect in the certificate of a server that is dialled at `host`: the host, if it is
/// among the certificate's names; otherwise the first of them that is not a pattern.
#[must_use]
pub fn server_name(cert_pem: &str, host: &str) -> Option<String> {
    let cert = X509::from_pem(cert_pem.as_bytes()).ok()?;
    let names = CertificateFacts::of(&cert.to_der().ok()?)?.names;
    let covers = |name: &String| match name.strip_prefix("*.") {
        Some(domain) => host
            .split_once('.')
            .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => name.eq_ignore_ascii_case(host),
    };
    if names.iter().any(covers) {
        return Some(host.to_owned());
    }
    names.into_iter().find(|name| address::is_host(name))
}

/// Why the certificate in a file was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewInFileError {
    /// The file has no certificate with its key in it.
    #[error("has no client_cert and client_key in [client.tls] with their texts")]
    NoCertificate,
    /// The file is not TOML.
    #[error("is not valid TOML: {0}")]
    Syntax(String),
    /// The CA has not issued one.
    #[error("its client_cert {0}")]
    Authority(#[from] AuthorityError),
}

/// The text of a client's file with its certificate renewed, and the new certificate; all else
/// stays as it is.
///
/// # Errors
/// There is no certificate in the file, or [`Authority::renew`] refuses it.
pub fn renew_in_file(
    text: &str,
    authority: &Authority,
    days: u32,
) -> Result<(String, String), RenewInFileError> {
    let table = DeTable::parse(text).map_err(|error| {
        RenewInFileError::Syntax(error.message().lines().collect::<Vec<_>>().join(" "))
    })?;
    let tls = table
        .get_ref()
        .get("client")
        .and_then(|client| client.as_ref().as_table())
        .and_then(|client| client.get("tls"))
        .and_then(|tls| tls.as_ref().as_table());
    let value = |key: &str| {
        let value = tls?.get(key)?;
        match value.as_ref() {
            DeValue::String(text) => Some((value.span(), text.as_ref())),
            _ => None,
        }
    };
    let (Some((span, cert)), Some((_, key))) = (value("client_cert"), value("client_key")) else {
        return Err(RenewInFileError::NoCertificate);
    };
    let renewed = authority.renew(cert, key, days)?;
    let (before, after) = (&text[..span.start], &text[span.end..]);
    let changed = format!("{before}\"\"\"\n{}\n\"\"\"{after}", renewed.trim_end());
    Ok((changed, renewed))
}
