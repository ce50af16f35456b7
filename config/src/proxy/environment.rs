//! The proxy that the environment names, as curl and most other programs read it.

use std::net::IpAddr;

use crate::networks::Networks;
use crate::transport::ProxyAddress;

/// The environment variables that may name a proxy for TLS, the first one first.
const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The environment variables that may list hosts which need no proxy.
const EXCEPTION_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// The proxy for `host`, if the environment names one.
///
/// # Errors
/// If the value is not the address of a proxy.
pub(super) fn proxy_for(
    host: &str,
    port: u16,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<ProxyAddress>, String> {
    let first = |names: &[&'static str]| {
        let mut values = names
            .iter()
            .filter_map(|name| Some((*name, variable(name)?)));
        values.find(|(_, value)| !value.trim().is_empty())
    };
    let exceptions = first(&EXCEPTION_VARIABLES).map(|(_, value)| value);
    if exceptions.is_some_and(|list| is_excepted(host, port, &list)) {
        return Ok(None);
    }
    let Some((name, value)) = first(&PROXY_VARIABLES) else {
        return Ok(None);
    };
    let value = value.trim();
    // A value without a scheme is an HTTP proxy, as for curl.
    let whole = if value.contains("://") {
        value.to_owned()
    } else {
        format!("http://{value}")
    };
    let proxy = ProxyAddress::parse(&whole);
    proxy
        .map(Some)
        .map_err(|why| format!("the variable {name} {why}"))
}

/// Whether a list contains `host`: by its name, that of a domain above it, its address, or a
/// network.
fn is_excepted(host: &str, port: u16, list: &str) -> bool {
    let ip: Option<IpAddr> = host.parse().ok();
    let host = host.to_ascii_lowercase();
    list.split([',', ' ']).map(str::trim).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(ip), Ok(networks)) = (ip, entry.parse::<Networks>()) {
            return networks.contains(ip);
        }
        let mut entry = entry.to_ascii_lowercase();
        if let Some((name, of_port)) = entry.rsplit_once(':')
            && let Ok(of_port) = of_port.parse::<u16>()
        {
            if of_port != port {
                return false;
            }
            entry = name.to_owned();
        }
        let domain = entry.trim_start_matches("*.").trim_start_matches('.');
        let above = host
            .strip_suffix(domain)
            .is_some_and(|it| it.ends_with('.'));
        !domain.is_empty() && (host == domain || above)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(host: &str, variables: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let proxy = proxy_for(host, 8443, variable).expect("no error");
        proxy.map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_first_variable_that_says_something_holds() {
        assert_eq!(proxy("a.example", &[]), None);
        let both = [
            ("HTTPS_PROXY", "one:3128"),
            ("ALL_PROXY", "socks5://two:1080"),
        ];
        assert_eq!(
            proxy("a.example", &both).as_deref(),
            Some("http://one:3128")
        );
        let all = [("HTTPS_PROXY", " "), ("ALL_PROXY", "socks5h://two:1080")];
        assert_eq!(
            proxy("a.example", &all).as_deref(),
            Some("socks5://two:1080")
        );
        let wrong = proxy_for("a.example", 1, |name| {
            (name == "HTTPS_PROXY").then(|| "http://me:secret@".to_owned())
        });
        let why = wrong.expect_err("no proxy");
        assert!(
            why.contains("HTTPS_PROXY") && !why.contains("secret"),
            "{why}"
        );
    }

    #[test]
    fn servers_that_need_none_have_none() {
        let through = |host: &str, list: &str| {
            proxy(host, &[("HTTPS_PROXY", "one:3128"), ("NO_PROXY", list)]).is_some()
        };
        for list in [
            "*",
            "x, a.b.example",
            ".b.example",
            "b.example",
            "*.B.Example",
            "example:8443",
        ] {
            assert!(!through("a.b.example", list), "{list}");
        }
        for list in ["", "c.example", "b.exampl", "ab.example", "example:1", "."] {
            assert!(through("a.b.example", list), "{list}");
        }
        assert!(!through("192.0.2.7", "192.0.2.0/24"));
        assert!(!through("2001:db8::1", "2001:db8::1"));
        assert!(through("192.0.3.7", "192.0.2.0/24,192.0.3.8"));
    }
}
