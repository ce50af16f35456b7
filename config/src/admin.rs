//! `[admin]`: the endpoint for health checks, metrics and the status page.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::address;
use crate::config;
use crate::conflicts::Claims;
use crate::errors::Errors;
use crate::section::Section;

/// The prefix of the path of a Unix socket.
const UNIX: &str = "unix:";

/// The longest path of a Unix socket in bytes: `sun_path` has 108 with the zero at its end
/// (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

const FORM: &str = "an IP address and a port, as in \"127.0.0.1:9600\", or a Unix socket, as in \
    \"unix:/run/qmux-dp/admin.sock\"";

/// The address that the admin endpoint listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminListen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket, which only its owner may use.
    Unix(PathBuf),
}

impl fmt::Display for AdminListen {
    /// Writes it as in dp.toml, with the whole path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl AdminListen {
    /// Reads an address in the form of dp.toml. A relative path begins at `directory`.
    ///
    /// # Errors
    /// What is wrong with it and what would be right.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(UNIX) else {
            let parsed = address::parse_listen(text);
            return parsed
                .map(Self::Tcp)
                .map_err(|why| format!("{why}; a Unix socket is written as \"unix:PATH\""));
        };
        if path.is_empty() {
            return Err(format!("{text:?} has no path; it must be {FORM}"));
        }
        let path = directory.join(path);
        let bytes = path.as_os_str().len();
        if bytes > UNIX_PATH_BYTES_MAX {
            return Err(format!(
                "{} has {bytes} bytes; the path of a Unix socket must have {UNIX_PATH_BYTES_MAX} \
                 at most",
                path.display()
            ));
        }
        Ok(Self::Unix(path))
    }
}

/// The admin endpoint; without this section there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The address that it listens on.
    pub listen: AdminListen,
}

impl Admin {
    /// Reads the section, and notes in `claims` the address that it will bind.
    pub(crate) fn read(section: Section<'_>, claims: &mut Claims) -> Option<Self> {
        if !section.is_present() {
            return None;
        }
        section.require("listen", FORM);
        let listen = Self::read_listen(&section, claims);
        section.finish();
        Some(Self { listen: listen? })
    }

    /// The address of the endpoint of the program that runs with this file, in which nothing else
    /// need be usable: neither certificates nor lists are read.
    ///
    /// # Errors
    /// If the file cannot be read, or what stands there is no address.
    pub fn listen_of(path: &Path) -> Result<Option<AdminListen>, Errors> {
        config::admin_listen_of(path)
    }

    /// Reads the address from the whole file, and reports what is wrong with it only.
    pub(crate) fn read_listen_alone(root: &Section<'_>) -> Option<AdminListen> {
        Self::read_listen(&root.table("admin"), &mut Claims::default())
    }

    fn read_listen(section: &Section<'_>, claims: &mut Claims) -> Option<AdminListen> {
        let text = section.filled_string("listen", FORM)?;
        let here = section.report().resolve("");
        match AdminListen::parse(text.get_ref(), &here) {
            Ok(listen) => {
                let report = section.report();
                report.place(section.key("listen"), &text.span());
                if let AdminListen::Tcp(address) = listen {
                    let spanned = toml::Spanned::new(text.span(), address);
                    claims.tcp(section, "listen", &spanned);
                    warn_if_public(section, &spanned);
                }
                Some(listen)
            }
            Err(message) => {
                section.problem_at("listen", &text.span(), message);
                None
            }
        }
    }
}

fn warn_if_public(section: &Section<'_>, address: &toml::Spanned<SocketAddr>) {
    if !address.get_ref().ip().is_loopback() {
        section.report().warning(
            &section.key("listen"),
            &address.span(),
            "whoever can reach this address can read the metrics and stop the process: the admin \
             endpoint has no authentication",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_found_from_the_directory_of_the_config_file() {
        let parse = |text| AdminListen::parse(text, Path::new("/etc/qmux-dp"));
        let unix = |path: &str| Ok(AdminListen::Unix(path.into()));
        assert_eq!(parse("unix:admin.sock"), unix("/etc/qmux-dp/admin.sock"));
        assert_eq!(parse("unix:/run/a.sock"), unix("/run/a.sock"));
        let address = "127.0.0.1:9600".parse().expect("literal");
        assert_eq!(parse("127.0.0.1:9600"), Ok(AdminListen::Tcp(address)));
        let shown = parse("unix:admin.sock").expect("valid").to_string();
        assert_eq!(shown, "unix:/etc/qmux-dp/admin.sock");
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_would_be_one() {
        let parse = |text: &str| AdminListen::parse(text, Path::new("/etc")).expect_err("refused");
        assert!(parse("unix:").contains("has no path"));
        assert!(parse("/run/admin.sock").contains("unix:PATH"));
        let long = parse(&format!("unix:{}", "x".repeat(110)));
        assert!(long.contains("115 bytes") && long.contains("107"), "{long}");
    }
}
