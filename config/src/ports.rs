//! Ranges of ports, as in `30000-30099`, and traffic addresses with such a range.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::address;

/// The most ports of one service: 4,096 of them on 16 cores are 65,536 sockets of each protocol,
/// more than one process can use well.
pub const RANGE_PORTS_MAX: u16 = 4_096;

/// One or more ports in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    count: u16,
}

impl Ports {
    /// One port.
    #[must_use]
    pub fn one(port: u16) -> Self {
        Self {
            first: port,
            count: 1,
        }
    }

    /// A range from `first` to `last`, both included. `None` if it is empty, contains port 0, or
    /// has more than [`RANGE_PORTS_MAX`] ports.
    #[must_use]
    pub fn range(first: u16, last: u16) -> Option<Self> {
        let count = last.checked_sub(first)?.checked_add(1)?;
        (first > 0 && count <= RANGE_PORTS_MAX).then_some(Self { first, count })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.first + (self.count - 1)
    }

    /// Number of ports, at least one.
    #[must_use]
    pub fn count(self) -> u16 {
        self.count
    }

    /// The port at a position, from 0.
    #[must_use]
    pub fn at(self, position: u16) -> Option<u16> {
        (position < self.count).then(|| self.first + position)
    }

    /// The position of a port, from 0.
    #[must_use]
    pub fn position(self, port: u16) -> Option<u16> {
        port.checked_sub(self.first)
            .filter(|position| *position < self.count)
    }

    /// Every port, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last()
    }

    pub(crate) fn overlap(self, other: Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }

    /// Reads `30000` or `30000-30099`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some((first, last)) = text.split_once('-') else {
            return address::port_number(text).map(Self::one);
        };
        let (from, to) = (address::port_number(first)?, address::port_number(last)?);
        if to < from {
            return Err(format!(
                "{text:?} runs backwards; it must be the lower port first, as in \"{to}-{from}\""
            ));
        }
        Self::range(from, to).ok_or_else(|| {
            format!(
                "{text:?} has {} ports; it must have {RANGE_PORTS_MAX} at most",
                u32::from(to - from) + 1
            )
        })
    }
}

impl fmt::Display for Ports {
    /// Writes them as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 1 {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last())
        }
    }
}

/// The address that visitors of a service connect to, with one port or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrafficAddr {
    first: SocketAddr,
    ports: Ports,
}

impl TrafficAddr {
    /// One address.
    #[must_use]
    pub fn one(address: SocketAddr) -> Self {
        Self {
            first: address,
            ports: Ports::one(address.port()),
        }
    }

    /// The IP address, the same for all ports.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.first.ip()
    }

    /// Replaces the IP address.
    pub fn set_ip(&mut self, ip: IpAddr) {
        self.first.set_ip(ip);
    }

    /// The ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The address with the lowest port.
    #[must_use]
    pub fn first(&self) -> SocketAddr {
        self.first
    }

    /// Every address, lowest port first.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let first = self.first;
        self.ports.iter().map(move |port| {
            let mut address = first;
            address.set_port(port);
            address
        })
    }

    /// Reads `0.0.0.0:8080` or `0.0.0.0:30000-30099`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let range = text
            .rsplit_once(':')
            .filter(|(_, ports)| ports.contains('-'));
        let Some((host, ports)) = range else {
            return address::parse_listen(text).map(Self::one);
        };
        let ports = Ports::parse(ports)?;
        // The IP address is checked in the same way as where there is one port.
        let first = address::parse_listen(&format!("{host}:{}", ports.first()))?;
        Ok(Self { first, ports })
    }
}

impl fmt::Display for TrafficAddr {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        if self.ports.count() > 1 {
            write!(f, "-{}", self.ports.last())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_traffic_address_has_one_port_or_a_range() {
        for (text, first, count) in [
            ("0.0.0.0:8080", 8080, 1),
            ("0.0.0.0:30000-30099", 30000, 100),
            ("[::1]:65535-65535", 65535, 1),
            ("[2001:db8::1]:1-4096", 1, 4096),
        ] {
            let parsed = TrafficAddr::parse(text).expect(text);
            assert_eq!(parsed.ports().first(), first, "{text}");
            assert_eq!(parsed.ports().count(), count, "{text}");
            assert_eq!(parsed.addresses().count(), usize::from(count), "{text}");
        }
        let range = TrafficAddr::parse("127.0.0.1:10-12").expect("a range");
        assert_eq!(range.to_string(), "127.0.0.1:10-12");
        let ports: Vec<u16> = range.addresses().map(|address| address.port()).collect();
        assert_eq!(ports, [10, 11, 12]);
    }

    #[test]
    fn a_bad_range_says_what_is_wrong_with_it() {
        for (text, part) in [
            ("0.0.0.0:30099-30000", "runs backwards"),
            ("0.0.0.0:0-10", "port 0"),
            ("0.0.0.0:65530-65536", "\"65536\" is no port"),
            ("0.0.0.0:1-", "\"\" is no port"),
            ("0.0.0.0:1-2-3", "\"2-3\" is no port"),
            ("0.0.0.0:1-65535", "65535 ports"),
            ("localhost:1-2", "is a name"),
            (":1-2", "no IP address"),
        ] {
            let message = TrafficAddr::parse(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn a_port_and_its_position_belong_together(
            first in 1..=u16::MAX, more in 0..RANGE_PORTS_MAX, port in any::<u16>()
        ) {
            let Some(ports) = first.checked_add(more).and_then(|last| Ports::range(first, last))
            else {
                return Ok(());
            };
            let expected = (first..=ports.last()).contains(&port).then(|| port - first);
            prop_assert_eq!(ports.position(port), expected);
            if let Some(position) = expected {
                prop_assert_eq!(ports.at(position), Some(port));
            }
            prop_assert_eq!(ports.at(ports.count()), None);
            prop_assert_eq!(Ports::parse(&ports.to_string()), Ok(ports));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "[0-9:.\\[\\]-]*") {
            let _ = Ports::parse(&text);
            let _ = TrafficAddr::parse(&text);
        }
    }
}
