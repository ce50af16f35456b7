//! Addresses: where to listen (an IP address and a port) and whom to dial (a host and a port).

use std::net::{IpAddr, SocketAddr};

use toml::Spanned;

use crate::section::Section;

/// How an address to listen on is to be written, for messages.
const LISTEN_FORM: &str = r#"an IP address and a port, as in "0.0.0.0:8443" or "[::]:8443""#;
/// How an address to dial is to be written, for messages.
const TARGET_FORM: &str = r#"a host and a port, as in "server.example.com:8443""#;
/// Why port 0 is refused.
const PORT_ZERO: &str = "port 0 would let the system pick a port that nobody knows, and another one \
    for every core; it must be from 1 to 65535";
/// RFC 1035, section 2.3.4.
const HOST_BYTES_MAX: usize = 253;

/// The address to listen on under `key`.
pub(crate) fn listen(section: &Section<'_>, key: &'static str) -> Option<Spanned<SocketAddr>> {
    let text = section.filled_string(key, LISTEN_FORM)?;
    match parse_listen(text.get_ref()) {
        Ok(address) => Some(Spanned::new(text.span(), address)),
        Err(message) => {
            section.problem_at(key, &text.span(), message);
            None
        }
    }
}

/// Like [`listen`], for a key that must be there.
pub(crate) fn required_listen(
    section: &Section<'_>,
    key: &'static str,
) -> Option<Spanned<SocketAddr>> {
    section.require(key, LISTEN_FORM);
    listen(section, key)
}

/// The address of a peer to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// The address as written.
    pub(crate) address: &'a str,
    /// A name or an IP address without brackets.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

/// The host and port to dial under `key`, which must be there.
pub(crate) fn required_target<'a>(
    section: &Section<'a>,
    key: &'static str,
) -> Option<Spanned<Target<'a>>> {
    section.require(key, TARGET_FORM);
    let text = section.filled_string(key, TARGET_FORM)?;
    match parse_target(text.get_ref()) {
        Ok(target) => Some(Spanned::new(text.span(), target)),
        Err(message) => {
            section.problem_at(key, &text.span(), message);
            None
        }
    }
}

pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 {
            Err(PORT_ZERO.to_owned())
        } else {
            Ok(address)
        };
    }
    if let Some(port) = text.strip_prefix(':') {
        return Err(format!(
            "{text:?} has no IP address; it must be \"0.0.0.0:{port}\" or \"[::]:{port}\" for every \
             address of the host, or one of its addresses"
        ));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{text:?} has no port; it must be {LISTEN_FORM}"));
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.parse::<IpAddr>().is_ok() {
            port_number(port)?;
        } else if is_host_name(host) {
            return Err(format!(
                "{host:?} is a name, not an IP address; it must be {LISTEN_FORM}"
            ));
        }
    }
    Err(format!("{text:?} is no address; it must be {LISTEN_FORM}"))
}

pub(crate) fn parse_target(text: &str) -> Result<Target<'_>, String> {
    if text.contains("://") || text.contains('@') {
        // It may hold a password, so it is not shown.
        return Err(format!("is a URL; it must be {TARGET_FORM}"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("{text:?} has no port; it must be {TARGET_FORM}"));
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if bracketed.is_none() && host.contains(':') {
        return Err(format!(
            "{text:?} needs brackets around its IPv6 address, as in \"[2001:db8::1]:8443\""
        ));
    }
    let host = bracketed.unwrap_or(host);
    let valid = match bracketed {
        Some(host) => matches!(host.parse(), Ok(IpAddr::V6(_))),
        None => is_host(host),
    };
    if !valid {
        return Err(format!("{host:?} is no host; it must be {TARGET_FORM}"));
    }
    Ok(Target {
        address: text,
        host,
        port: port_number(port)?,
    })
}

pub(crate) fn port_number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err(PORT_ZERO.to_owned()),
        Ok(port) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(format!(
            "{text:?} is no port; it must be a number from 1 to 65535"
        )),
    }
}

/// Whether `text` is an IP address or may be the name of a host.
pub(crate) fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_host_name(text)
}

/// Whether `text` may be the name of a host: letters, digits, hyphens and underscores between dots.
/// RFC 1123 does not allow underscores, but container networks use them.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    // A name of digits and dots alone is a mistyped IPv4 address.
    let has_letter = name
        .bytes()
        .any(|byte| !(byte.is_ascii_digit() || byte == b'.'));
    has_letter
        && name.len() <= HOST_BYTES_MAX
        && name.split('.').all(|label| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_listen_address_is_an_ip_address_and_a_port() {
        for text in [
            "0.0.0.0:8443",
            "[::]:1",
            "127.0.0.1:65535",
            "[2001:db8::1]:8443",
        ] {
            assert_eq!(
                parse_listen(text).map(|address| address.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn a_bad_listen_address_says_what_is_wrong_with_it() {
        for (text, part) in [
            (":8443", "0.0.0.0:8443"),
            ("localhost:8443", "is a name"),
            ("127.0.0.1", "has no port"),
            ("127.0.0.1:0", "port 0"),
            ("127.0.0.1:65536", "from 1 to 65535"),
            ("127.0.0.1:http", "from 1 to 65535"),
            ("[::1]:+5", "from 1 to 65535"),
            ("999.0.0.1:80", "is no address"),
            ("8443", "is no address"),
        ] {
            let message = parse_listen(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("server.example.com:8443", "server.example.com", 8443),
            ("localhost:1", "localhost", 1),
            ("10.0.0.1:443", "10.0.0.1", 443),
            ("[2001:db8::1]:8443", "2001:db8::1", 8443),
            ("qmux_server:8443", "qmux_server", 8443),
        ] {
            assert_eq!(
                parse_target(text),
                Ok(Target {
                    address: text,
                    host,
                    port
                })
            );
        }
    }

    #[test]
    fn a_bad_target_says_what_is_wrong_with_it() {
        for (text, part) in [
            ("server.example.com", "has no port"),
            ("2001:db8::1:8443", "brackets"),
            ("server.example.com:0", "port 0"),
            ("server.example.com:99999", "from 1 to 65535"),
            ("https://example.com:443", "is a URL"),
            ("me:secret@example.com:443", "is a URL"),
            ("exa mple:443", "is no host"),
            (":443", "is no host"),
            ("[example.com]:443", "is no host"),
            ("300.1.1.1:443", "is no host"),
        ] {
            let message = parse_target(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in ".*") {
            let _ = parse_listen(&text);
            let _ = parse_target(&text);
        }
    }
}
