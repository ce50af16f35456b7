//! The configuration file as a whole.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::admin::{Admin, AdminListen};
use crate::client::Client;
use crate::conflicts::Claims;
use crate::errors::{Errors, Problem};
use crate::expand::{self, Part};
use crate::limits::Limits;
use crate::places::Places;
use crate::quic::Quic;
use crate::report::{Findings, Report};
use crate::section::Section;
use crate::server::Server;
use crate::source::Source;
use crate::udp::Udp;

/// The largest config file, in bytes: a thousand times what anybody writes. A larger one is a
/// mistake, such as the path of a log or a disk image.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A configuration that has been checked: every path is resolved against the directory of the
/// file, every certificate has been read, no two addresses collide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The path of the file.
    pub path: PathBuf,
    /// The server role. At least one of the two roles exists.
    pub server: Option<Server>,
    /// The client role.
    pub client: Option<Client>,
    /// Transport settings of both roles.
    pub quic: Quic,
    /// UDP settings of both roles.
    pub udp: Udp,
    /// The resources that flows of both roles may hold.
    pub limits: Limits,
    /// The admin endpoint, if there is to be one.
    pub admin: Option<Admin>,
    /// Warnings for the operator about what works nevertheless; one line each, in the form of a
    /// [`Problem`].
    pub warnings: Vec<String>,
    /// The files that the configuration names and that were read: certificates, keys, tokens,
    /// lists. Their content is a part of the configuration too.
    pub files: Vec<PathBuf>,
    /// Where the addresses and hosts stand that may turn out unusable.
    pub places: Places,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Every problem that was found: the file cannot be read, is not TOML, contains a
    /// wrong value or names a certificate that is not usable.
    pub fn load(path: &Path) -> Result<Self, Errors> {
        Self::parse(&Self::text_of(path)?, path)
    }

    /// Reads the text of a config file, for [`Config::parse`].
    ///
    /// # Errors
    /// If it cannot be read, or is not text.
    pub fn text_of(path: &Path) -> Result<String, Errors> {
        text_of(path)
    }

    /// Loads a file like [`Config::load`], for a diagnosis: a certificate that has expired, or is
    /// not valid yet, only causes a warning, because the clock may be wrong.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn load_whatever_the_time(path: &Path) -> Result<Self, Errors> {
        let text = text_of(path)?;
        let report = Report::new(Source { path, text: &text });
        Self::read(&text, path, report.whatever_the_time(), |name| {
            std::env::var_os(name)
        })
    }

    /// Checks the text of a file. `path` is for messages, and its directory is where relative
    /// paths start. The certificates that the text names are read.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Errors> {
        let report = Report::new(Source { path, text });
        Self::read(text, path, report, |name| std::env::var_os(name))
    }

    /// Parses a text like [`Config::parse`], with `environment` instead of the process's
    /// environment as the values of `${NAME}` in strings.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn parse_with(
        text: &str,
        path: &Path,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Errors> {
        Self::read(text, path, Report::new(Source { path, text }), environment)
    }

    fn read(
        text: &str,
        path: &Path,
        report: Report<'_>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Errors> {
        let (mut table, syntax_errors) = DeTable::parse_recoverable(text);
        if !syntax_errors.is_empty() {
            // What a half-understood file lacks says nothing, so syntax errors come first.
            report_syntax(&report, &syntax_errors);
            report.finish(Claims::default())?;
            unreachable!("syntax errors were reported");
        }
        if !expand::strings(table.get_mut(), Part::Whole, &report, &environment) {
            // Nobody knows what such a string would have meant, so this comes before the checks of
            // its value.
            report.finish(Claims::default())?;
            unreachable!("a string that cannot be expanded was reported");
        }
        let mut claims = Claims::default();
        let parts = Parts::read(Section::root(&report, table.get_ref()), &mut claims);
        let Findings {
            warnings,
            files,
            places,
        } = report.finish(claims)?;
        Ok(Self {
            path: path.to_owned(),
            server: parts.server,
            client: parts.client,
            quic: parts.quic,
            udp: parts.udp,
            limits: parts.limits,
            admin: parts.admin,
            warnings,
            files,
            places,
        })
    }

    /// The beginning of a message about a key, as of a [`Problem`]: `path:line:column: key`.
    #[must_use]
    pub fn at_key(&self, key: &str) -> String {
        self.at(key, self.places.of_key(key))
    }

    /// The beginning of a message about an address that is bound, for TCP or else for UDP; `None`
    /// if the file does not name it.
    #[must_use]
    pub fn at_address(&self, tcp: bool, address: SocketAddr) -> Option<String> {
        let (key, position) = self.places.of_address(tcp, address)?;
        Some(self.at(key, Some(position)))
    }

    fn at(&self, key: &str, position: Option<(usize, usize)>) -> String {
        let path = self.path.display();
        match position {
            Some((line, column)) => format!("{path}:{line}:{column}: {key}"),
            None => format!("{path}: {key}"),
        }
    }
}

/// Reads the admin endpoint's address from a file of which nothing else need be usable: whoever
/// asks a running program something must be able to while somebody edits its config, or while this
/// user may not read a key that the program may.
///
/// # Errors
/// If the file cannot be read or is not TOML, or the address is wrong.
pub(crate) fn admin_listen_of(path: &Path) -> Result<Option<AdminListen>, Errors> {
    let text = text_of(path)?;
    let (mut table, syntax_errors) = DeTable::parse_recoverable(&text);
    let report = Report::new(Source { path, text: &text });
    let environment = |name: &str| std::env::var_os(name);
    let mut listen = None;
    let part = Part::Section("admin");
    if expand::strings(table.get_mut(), part, &report, &environment) {
        listen = Admin::read_listen_alone(&Section::root(&report, table.get_ref()));
    }
    if listen.is_none() {
        report_syntax(&report, &syntax_errors);
    }
    report.finish(Claims::default())?;
    Ok(listen)
}

fn report_syntax(report: &Report<'_>, errors: &[toml::de::Error]) {
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().collect::<Vec<_>>().join(" ");
        report.problem("", &span, format!("is not valid TOML: {message}"));
    }
}

struct Parts {
    server: Option<Server>,
    client: Option<Client>,
    quic: Quic,
    udp: Udp,
    limits: Limits,
    admin: Option<Admin>,
}

impl Parts {
    fn read(root: Section<'_>, claims: &mut Claims) -> Self {
        let limits = Limits::read(root.table("limits"));
        let (server, client) = (root.table("server"), root.table("client"));
        if !server.is_present() && !client.is_present() {
            root.problem(
                "holds no role; it must have a [server] section, a [client] section or both",
            );
        }
        let server = if server.is_present() {
            Server::read(server, &limits, claims)
        } else {
            None
        };
        let client = if client.is_present() {
            Client::read(client, server.as_ref())
        } else {
            None
        };
        let quic = Quic::read(root.table("quic"));
        let udp = Udp::read(root.table("udp"));
        let admin_section = root.table("admin");
        let admin = Admin::read(admin_section, claims);
        root.finish();
        Self {
            server,
            client,
            quic,
            udp,
            limits,
            admin,
        }
    }
}

fn text_of(path: &Path) -> Result<String, Errors> {
    read_file(path).map_err(|message| {
        let message = format!("{message}; it must be a config file in TOML");
        Errors::new(vec![Problem {
            path: path.to_owned(),
            position: None,
            key: String::new(),
            message,
            excerpt: None,
        }])
    })
}

fn read_file(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot be read: {error}"),
    })?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("is not UTF-8 text (line {line})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KEYS;

    /// A file in which every section has an unknown key, so that each lists the keys that it knows.
    const STRANGER_EVERYWHERE: &str = "stranger = 1\n\
        [server]\nstranger = 1\n[[server.services]]\nstranger = 1\n\
        [[server.clients]]\nstranger = 1\n[[server.listeners]]\nstranger = 1\n\
        [server.auth]\nstranger = 1\n\
        [server.tls]\nstranger = 1\n[client]\nstranger = 1\n[[client.servers]]\nstranger = 1\n\
        [client.local]\nstranger = 1\n[[client.services]]\nstranger = 1\n\
        [client.auth]\nstranger = 1\n[client.tls]\nstranger = 1\n\
        [quic]\nstranger = 1\n[udp]\nstranger = 1\n[limits]\nstranger = 1\n[admin]\nstranger = 1\n";

    #[test]
    fn the_list_of_keys_is_what_the_sections_read() {
        let errors =
            Config::parse(STRANGER_EVERYWHERE, Path::new("dp.toml")).expect_err("strangers");
        let mut read = Vec::new();
        for problem in errors.problems() {
            let Some((_, known)) = problem.message.split_once(" may hold ") else {
                continue;
            };
            let section = problem.key.trim_end_matches("stranger").replace("[0]", "");
            read.extend(known.split(", ").map(|key| format!("{section}{key}")));
        }
        let is_section = |name: &str| KEYS.iter().any(|key| key.starts_with(&format!("{name}.")));
        read.retain(|key| !is_section(key));
        read.sort_unstable();
        let mut listed: Vec<&str> = KEYS.to_vec();
        listed.sort_unstable();
        assert_eq!(read, listed);
    }
}
