//! Lists of networks: their form in a file, and whether an address is in one of them.
//!
//! A list may have as many networks as a country has, and is asked once for each visitor. So it is
//! sorted, contains no network twice, and a question is a binary search.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The form of a network, for messages.
pub(crate) const NETWORK_FORM: &str =
    "a network or an address, as in \"192.0.2.0/24\", \"2001:db8::/32\" or \"192.0.2.7\"";

/// The largest file with a list, in bytes: all announced networks of the Internet fill about two
/// thirds of it.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Bits of an IPv6 address before the IPv4 address that it stands for (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX_BITS: u8 = 96;

/// A set of networks. An IPv4 address that is written as an IPv6 one (`::ffff:192.0.2.7`) counts as
/// the IPv4 address that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Arc<[Ipv4Net]>,
    v6: Arc<[Ipv6Net]>,
}

impl Networks {
    /// Whether one of the networks contains this address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let after = self.v4.partition_point(|net| net.network() <= ip);
                after > 0 && self.v4[after - 1].contains(&ip)
            }
            IpAddr::V6(ip) => {
                let after = self.v6.partition_point(|net| net.network() <= ip);
                after > 0 && self.v6[after - 1].contains(&ip)
            }
        }
    }
}

impl std::str::FromStr for Networks {
    type Err = String;

    /// A single network or address.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(std::iter::once(parse(text)?).collect())
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let mut all: Vec<IpNet> = networks.into_iter().collect();
        // Of two networks that begin alike, the wider one comes first.
        all.sort_unstable_by_key(|net| (net.network(), net.prefix_len()));
        let (mut v4, mut v6): (Vec<Ipv4Net>, Vec<Ipv6Net>) = Default::default();
        for network in all {
            match network {
                IpNet::V4(it) if !v4.last().is_some_and(|last| last.contains(&it)) => v4.push(it),
                IpNet::V6(it) if !v6.last().is_some_and(|last| last.contains(&it)) => v6.push(it),
                // It lies within the one before it: of two networks, one contains the other, or
                // they are disjoint.
                IpNet::V4(_) | IpNet::V6(_) => {}
            }
        }
        Self {
            v4: v4.into(),
            v6: v6.into(),
        }
    }
}

/// Reads a network or a single address.
///
/// # Errors
/// What is wrong with it and what would be right.
pub(crate) fn parse(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is no network; it must be {NETWORK_FORM}");
    let (ip, bits) = match text.split_once('/') {
        Some((ip, bits)) if bits.bytes().all(|it| it.is_ascii_digit()) => {
            (ip, Some(bits.parse::<u8>().map_err(|_| wrong())?))
        }
        Some(_) => return Err(wrong()),
        None => (text, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
    let Some(bits) = bits else {
        return Ok(IpNet::from(ip.to_canonical()));
    };
    let network = IpNet::new(ip, bits).map_err(|_| wrong())?;
    if network.trunc() != network {
        return Err(format!(
            "{text:?} has bits set behind the first {bits}; it must be \"{}\", or \"{ip}\" for \
             that address alone",
            network.trunc()
        ));
    }
    Ok(as_ipv4(network).unwrap_or(network))
}

/// The IPv4 network that an IPv6 one stands for.
fn as_ipv4(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(network) = network else {
        return None;
    };
    let ip = network.addr().to_ipv4_mapped()?;
    let bits = network.prefix_len().checked_sub(MAPPED_PREFIX_BITS)?;
    Ipv4Net::new(ip, bits).ok().map(IpNet::V4)
}

/// Reads the networks of a file: one in each line; a `#` begins a comment.
///
/// # Errors
/// What is wrong with the file, as the end of a sentence that begins with its path.
pub(crate) fn read_file(path: &Path) -> Result<Vec<IpNet>, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "does not exist; it must be a file with one network in each line".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let text = std::str::from_utf8(crate::pem::without_mark(&bytes))
        .map_err(|_| "is not UTF-8 text".to_owned())?;
    let mut networks = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            networks
                .push(parse(text).map_err(|wrong| format!("is wrong in line {line}: {wrong}"))?);
        }
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        texts.iter().map(|it| parse(it).expect("right")).collect()
    }

    fn holds(networks: &Networks, ip: &str) -> bool {
        networks.contains(ip.parse().expect("an address"))
    }

    #[test]
    fn an_address_is_in_a_network_whatever_lies_around_and_within_it() {
        let list = networks(&[
            "10.1.0.0/16",
            "10.0.0.0/8",
            "192.0.2.7",
            "10.255.255.255",
            "255.255.255.255",
            "2001:db8::/32",
            "2001:db8:1::/48",
            "10.0.0.0/8",
        ]);
        for inside in [
            "10.0.0.0",
            "10.1.2.3",
            "10.200.0.1",
            "10.255.255.255",
            "192.0.2.7",
            "255.255.255.255",
            "::ffff:10.1.2.3",
            "2001:db8:1::1",
            "2001:db8:ffff::",
        ] {
            assert!(holds(&list, inside), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.0.2.6", "2001:db9::", "::"] {
            assert!(!holds(&list, outside), "{outside}");
        }
        assert_eq!(list.v4.len(), 3, "what lies within another is not kept");
        assert!(!holds(&Networks::default(), "10.0.0.1"));
    }

    #[test]
    fn all_addresses_of_a_family_are_a_network_too() {
        assert!(holds(&networks(&["0.0.0.0/0"]), "203.0.113.9"));
        assert!(!holds(&networks(&["0.0.0.0/0"]), "2001:db8::1"));
        assert!(holds(&networks(&["::/0"]), "2001:db8::1"));
        assert!(!holds(&networks(&["::/0"]), "203.0.113.9"));
        assert!(holds(&networks(&["::ffff:10.0.0.0/104"]), "10.9.9.9"));
    }

    #[test]
    fn what_is_no_network_is_told_what_would_be_right() {
        for wrong in [
            "",
            "x",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "010.0.0.0/8",
            "::/129",
            "example.com",
            "10.0.0.0/8/8",
        ] {
            let message = parse(wrong).expect_err(wrong);
            assert!(message.contains("192.0.2.0/24"), "{message}");
        }
        assert_eq!(
            parse("10.1.2.3/8").expect_err("bits behind the prefix"),
            "\"10.1.2.3/8\" has bits set behind the first 8; it must be \"10.0.0.0/8\", or \
             \"10.1.2.3\" for that address alone"
        );
    }
}
