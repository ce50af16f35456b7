//! Whether addresses overlap, so that two sockets cannot both have their visitors: those of one
//! port do if they have the same IP address, or if one of them is the unspecified address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// A set of addresses that can be asked for overlaps.
#[derive(Debug, Default)]
pub(crate) struct Addresses(HashMap<u16, Vec<IpAddr>>);

impl Addresses {
    /// Whether one of the addresses overlaps with this one.
    pub(crate) fn overlap(&self, address: SocketAddr) -> bool {
        let ips = self.0.get(&address.port()).map_or(&[][..], Vec::as_slice);
        let ip = address.ip();
        ips.iter()
            .any(|it| *it == ip || it.is_unspecified() || ip.is_unspecified())
    }
}

impl FromIterator<SocketAddr> for Addresses {
    fn from_iter<T: IntoIterator<Item = SocketAddr>>(addresses: T) -> Addresses {
        let mut ports: HashMap<u16, Vec<IpAddr>> = HashMap::new();
        for address in addresses {
            ports.entry(address.port()).or_default().push(address.ip());
        }
        Addresses(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_of_one_address_or_of_all() {
        let parse = |text: &str| text.parse::<SocketAddr>().expect("literal");
        let some: Addresses = ["192.0.2.1:80", "0.0.0.0:81"]
            .map(parse)
            .into_iter()
            .collect();
        for (address, overlaps) in [
            ("192.0.2.1:80", true),
            ("192.0.2.2:80", false),
            ("[::]:80", true),
            ("192.0.2.2:81", true),
            ("192.0.2.1:82", false),
        ] {
            assert_eq!(some.overlap(parse(address)), overlaps, "{address}");
        }
    }
}
