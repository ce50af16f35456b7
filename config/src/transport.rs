//! How a client reaches a server: over QUIC, over TLS, through a proxy.

use std::fmt;
use std::path::Path;

use toml::Spanned;

use crate::address::{self, Target};
use crate::named_file::NamedFile;
use crate::secret::{self, Secret};
use crate::section::Section;
use crate::tls_files::{EXPOSED, is_exposed};

/// The longest name, and longest password, that SOCKS5 can carry, in bytes (RFC 1929, section 2).
const CREDENTIAL_BYTES_MAX: usize = 255;

const PROXY_FORM: &str = "\"http://host:port\" or \"socks5://host:port\", with user@ or \
    user:password@ before the host where the proxy wants it, or \"env\"";

/// The transport that carries the lanes to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// QUIC over UDP, and where that does not pass, TLS over TCP.
    #[default]
    Auto,
    /// QUIC over UDP only.
    Quic,
    /// TLS over TCP only.
    Tls,
}

impl fmt::Display for Transport {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Tls => "tls",
        })
    }
}

impl Transport {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let choices = [
            ("auto", Self::Auto),
            ("quic", Self::Quic),
            ("tls", Self::Tls),
        ];
        let choice = section.choice("transport", &choices);
        choice.map_or_else(Self::default, Spanned::into_inner)
    }
}

/// The protocol that a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocolOut {
    /// HTTP with the method CONNECT (RFC 9110, section 9.3.6).
    Http,
    /// SOCKS version 5 (RFC 1928).
    Socks5,
}

/// A proxy that TLS connections go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyAddress {
    /// The protocol that the proxy speaks.
    pub protocol: ProxyProtocolOut,
    /// The host: a name or an IP address without brackets.
    pub host: String,
    /// The proxy's TCP port.
    pub port: u16,
    /// The user name; empty if the proxy needs none.
    pub user: String,
    /// The user's password.
    pub password: Option<Secret>,
}

impl fmt::Display for ProxyAddress {
    /// Writes the address without the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            ProxyProtocolOut::Http => "http",
            ProxyProtocolOut::Socks5 => "socks5",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// The route of TLS connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// Directly to the server.
    #[default]
    None,
    /// Through this proxy.
    Fixed(ProxyAddress),
    /// Through the proxy that the variables `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name at the
    /// start.
    Environment,
}

impl Proxy {
    /// Reads `proxy` and `password_file`.
    pub(crate) fn read(section: &Section<'_>, transport: Transport) -> Self {
        let proxy = section.filled_string("proxy", PROXY_FORM);
        let file =
            section.filled_string("password_file", "the path of a file that holds a password");
        let Some(proxy) = proxy else {
            if let Some(file) = file {
                let message = "has no proxy to belong to; it must stand beside proxy";
                section.problem_at("password_file", &file.span(), message);
            }
            return Self::None;
        };
        if transport == Transport::Quic {
            let message = "has no effect: QUIC passes no proxy; transport must be \"auto\" or \
                \"tls\" beside it";
            section.problem_at("proxy", &proxy.span(), message);
        }
        let report = section.report();
        report.place(section.key("proxy"), &proxy.span());
        if *proxy.get_ref() == "env" {
            if let Some(file) = file {
                let message = "stands beside proxy = \"env\"; the variable holds the password";
                section.problem_at("password_file", &file.span(), message);
            }
            return Self::Environment;
        }
        let mut parsed = match ProxyAddress::parse(proxy.get_ref()) {
            Ok(parsed) => parsed,
            Err(message) => {
                section.problem_at("proxy", &proxy.span(), message);
                return Self::None;
            }
        };
        if let Some(file) = file {
            parsed.password = read_password(section, &file, &parsed).or(parsed.password);
        }
        Self::Fixed(parsed)
    }
}

fn read_password(
    section: &Section<'_>,
    file: &Spanned<&str>,
    proxy: &ProxyAddress,
) -> Option<Secret> {
    let key = "password_file";
    let misplaced = |message: &str| section.problem_at(key, &file.span(), message);
    if proxy.password.is_some() {
        misplaced("stands beside a password in proxy; it must be one of them");
        return None;
    }
    if proxy.user.is_empty() {
        misplaced("has no user to belong to; proxy must name one, as in \"http://user@host:port\"");
        return None;
    }
    let named = NamedFile::of(section, file.get_ref(), None);
    let wrong = |why: String| named.problem(section, key, &file.span(), &why);
    let text = secret::read_file(&named.path).map_err(wrong).ok()?;
    // An editor, or `echo`, ends the line, which nobody means to be a part of the password.
    let password = text.trim_end_matches(['\r', '\n']);
    let fits = fits(password, "password").map_err(|why| wrong(format!("holds a {why}")));
    fits.ok()?;
    warn_if_exposed(section, file, &named.path);
    Some(Secret::new(password.to_owned()))
}

fn warn_if_exposed(section: &Section<'_>, file: &Spanned<&str>, path: &Path) {
    if is_exposed(path) {
        let message = format!("{} {EXPOSED}", path.display());
        let key = section.key("password_file");
        section.report().warning(&key, &file.span(), &message);
    }
}

/// What is wrong with a name or a password, as the end of a sentence.
fn fits(text: &str, what: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what} that is empty"));
    }
    if text.len() > CREDENTIAL_BYTES_MAX {
        return Err(format!(
            "{what} of {} bytes; it must be at most {CREDENTIAL_BYTES_MAX}",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(format!(
            "{what} with control characters; it must be without them"
        ));
    }
    Ok(())
}

impl ProxyAddress {
    /// Reads an address in the form of dp.toml, or of a variable of the environment.
    ///
    /// # Errors
    /// What is wrong with it, as a message that shows no password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("is no proxy; it must be {PROXY_FORM}");
        let no_place = || format!("does not end in a host and a port; it must be {PROXY_FORM}");
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let protocol = match scheme.to_ascii_lowercase().as_str() {
            "http" => ProxyProtocolOut::Http,
            // The proxy resolves the name in any case.
            "socks5" | "socks5h" => ProxyProtocolOut::Socks5,
            // A password with :// in it makes the scheme what it is not.
            _ if !is_scheme(scheme) => return Err(form()),
            _ => {
                return Err(format!(
                    "begins with {scheme:?}; it must be \"http\" or \"socks5\""
                ));
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest),
        };
        // Where an @ is forgotten, or stands in the password, this may be a part of the password.
        let target = address::parse_target(place);
        let Target { host, port, .. } = target.map_err(|_| no_place())?;
        let (user, password) = match credentials {
            None => (String::new(), None),
            Some(credentials) => read_credentials(credentials)?,
        };
        Ok(Self {
            protocol,
            host: host.to_owned(),
            port,
            user,
            password,
        })
    }
}

/// Whether `text` may be the scheme of a URL (RFC 3986, section 3.1).
fn is_scheme(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn read_credentials(text: &str) -> Result<(String, Option<Secret>), String> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let user = unescape(user)?;
    fits(&user, "user").map_err(|why| format!("has a {why}"))?;
    let Some(password) = password else {
        return Ok((user, None));
    };
    let password = unescape(password)?;
    fits(&password, "password").map_err(|why| format!("has a {why}"))?;
    Ok((user, Some(Secret::new(password))))
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn unescape(text: &str) -> Result<String, String> {
    let wrong = || {
        "has a % in its user or password that stands for no character; a % itself must be %25"
            .to_owned()
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(wrong());
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| wrong())?);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_address_with_or_without_credentials() {
        let parsed = ProxyAddress::parse("http://proxy.example.com:3128/").expect("a proxy");
        assert_eq!(parsed.protocol, ProxyProtocolOut::Http);
        assert_eq!(
            (parsed.host.as_str(), parsed.port),
            ("proxy.example.com", 3128)
        );
        assert_eq!((parsed.user.as_str(), &parsed.password), ("", &None));
        let parsed =
            ProxyAddress::parse("socks5://me:a%40b%3A@[2001:db8::1]:1080").expect("a proxy");
        assert_eq!(parsed.protocol, ProxyProtocolOut::Socks5);
        assert_eq!(
            (parsed.host.as_str(), parsed.user.as_str()),
            ("2001:db8::1", "me")
        );
        assert_eq!(parsed.password.expect("a password").expose(), b"a@b:");
    }

    #[test]
    fn a_proxy_shows_no_password_whatever_is_wrong_with_it() {
        let parsed = ProxyAddress::parse("http://me:secret@[2001:db8::1]:80").expect("a proxy");
        assert_eq!(parsed.to_string(), "http://[2001:db8::1]:80");
        assert!(!format!("{parsed:?}").contains("secret"));
        for wrong in [
            "me:secret@host:80",
            "https://me:secret@host:80",
            "http://me:secret@host",
            "http://me:secret%@host:80",
            "http://me:secret\u{7}@host:80",
            "http://:secret@host:80",
            "http://me:secret",
            "http://me:secret#host:80",
            "http://me@secret",
            "me:secret://@host:80",
        ] {
            let message = ProxyAddress::parse(wrong).expect_err("refused");
            assert!(!message.contains("secret"), "{wrong}: {message}");
        }
    }
}
