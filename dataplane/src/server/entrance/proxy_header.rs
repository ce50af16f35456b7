//! The PROXY protocol header with which a visitor begins who comes through a trusted balancer; it
//! says whose connection this is. This module is pure: whoever reads the socket asks again with
//! more bytes.
//!
//! Both versions of the specification (haproxy.org, proxy-protocol.txt) are read. The end of the
//! text form is found here, because `ppp` rejects a line that has not wholly arrived.

use std::net::SocketAddr;

use ppp::{PartialResult as _, v1, v2};

/// The longest header with all of its TLVs. HAProxy's own have some hundred bytes; certificates in
/// TLVs fit as well.
pub(crate) const HEADER_BYTES_MAX: usize = 4_096;

/// The longest header in text form, with the end of its line (section 2.1 of the specification).
const TEXT_BYTES_MAX: usize = 107;

/// Length of a binary header without its addresses.
const BINARY_FIXED_BYTES: usize = 16;

const _: () = assert!(TEXT_BYTES_MAX <= HEADER_BYTES_MAX);

/// What the bytes that have come so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The bytes are the beginning of a header, and more are needed.
    More,
    /// The bytes begin with a whole header, which the visitor's own bytes may follow.
    Header {
        /// The length of the header in bytes.
        bytes: usize,
        /// The visitor's address; `None` if the connection is the balancer's own (a health check),
        /// or one without an IP address.
        visitor: Option<SocketAddr>,
    },
}

/// Why bytes are not a PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The bytes cannot become a header, whatever follows.
    Bad,
    /// The header is longer than [`HEADER_BYTES_MAX`].
    TooLong,
}

/// Judges what a visitor has sent so far.
///
/// # Errors
/// If the bytes cannot become a header.
pub(crate) fn read(bytes: &[u8]) -> Result<Progress, Flaw> {
    if begins_alike(bytes, v2::PROTOCOL_PREFIX) {
        return read_binary(bytes);
    }
    if begins_alike(bytes, v1::PROTOCOL_PREFIX.as_bytes()) {
        return read_text(bytes);
    }
    Err(Flaw::Bad)
}

/// Whether one of the two is the beginning of the other.
fn begins_alike(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes
        .iter()
        .zip(prefix)
        .all(|(it, expected)| it == expected)
}

fn read_binary(bytes: &[u8]) -> Result<Progress, Flaw> {
    if let Some([high, low]) = bytes.get(BINARY_FIXED_BYTES - 2..BINARY_FIXED_BYTES) {
        let rest = usize::from(u16::from_be_bytes([*high, *low]));
        if BINARY_FIXED_BYTES + rest > HEADER_BYTES_MAX {
            return Err(Flaw::TooLong);
        }
    }
    let parsed = v2::Header::try_from(bytes);
    if parsed.is_incomplete() {
        return Ok(Progress::More);
    }
    let header = parsed.map_err(|_| Flaw::Bad)?;
    let is_tcp = matches!(header.protocol, v2::Protocol::Stream);
    let visitor = match (header.command, &header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(it)) if is_tcp => {
            Some(SocketAddr::from((it.source_address, it.source_port)))
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(it)) if is_tcp => {
            Some(SocketAddr::from((it.source_address, it.source_port)))
        }
        _ => None,
    };
    Ok(found(header.len(), visitor))
}

fn read_text(bytes: &[u8]) -> Result<Progress, Flaw> {
    let line = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return match bytes.len() < TEXT_BYTES_MAX {
            true => Ok(Progress::More),
            false => Err(Flaw::TooLong),
        };
    };
    let line = &line[..=end];
    let header = v1::Header::try_from(line).map_err(|_| Flaw::Bad)?;
    if header.header.len() != line.len() {
        return Err(Flaw::Bad); // A line's end within the line.
    }
    let visitor = match header.addresses {
        v1::Addresses::Tcp4(it) => Some(SocketAddr::from((it.source_address, it.source_port))),
        v1::Addresses::Tcp6(it) => Some(SocketAddr::from((it.source_address, it.source_port))),
        v1::Addresses::Unknown => None,
    };
    Ok(found(line.len(), visitor))
}

/// The result for a whole header. IPv4 addresses that are written as IPv6 ones become IPv4
/// addresses.
fn found(bytes: usize, visitor: Option<SocketAddr>) -> Progress {
    let visitor = visitor.map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()));
    Progress::Header { bytes, visitor }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short");
        [SIGNATURE, &[command, family], &length.to_be_bytes(), rest].concat()
    }

    /// The addresses 192.0.2.1:258 and 198.51.100.2:80.
    const FOUR: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 0, 80];

    /// Headers as they are sent, each with the visitor that it names.
    fn headers() -> Vec<(Vec<u8>, Option<SocketAddr>)> {
        let six = |from: &str| {
            let address = from.parse::<std::net::Ipv6Addr>().expect("literal");
            [&address.octets()[..], &[0; 16], &[1, 2, 0, 80]].concat()
        };
        let four = Some(address("192.0.2.1:258"));
        let tlvs = [&FOUR[..], &[3, 0, 2, 7, 7], &[4; 3_000]].concat();
        let unix = [7; 216];
        let texts: [(&str, Option<&str>); 5] = [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 258 80\r\n",
                Some("192.0.2.1:258"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::2 1 2\r\n",
                Some("[2001:db8::1]:1"),
            ),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 ::2 1 2\r\n",
                Some("192.0.2.1:1"),
            ),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN whatever it says\r\n", None),
        ];
        let mut all = vec![
            (binary(0x21, 0x11, &FOUR), four),
            (binary(0x21, 0x11, &tlvs), four),
            (
                binary(0x21, 0x21, &six("2001:db8::1")),
                Some(address("[2001:db8::1]:258")),
            ),
            (binary(0x21, 0x21, &six("::ffff:192.0.2.1")), four),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, &FOUR), None),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x31, &unix), None),
            // A header for a datagram, on a TCP connection.
            (binary(0x21, 0x12, &FOUR), None),
        ];
        let texts = texts.into_iter();
        all.extend(texts.map(|(text, of)| (text.as_bytes().to_vec(), of.map(address))));
        all
    }

    #[test]
    fn every_header_is_read_wherever_it_is_cut_and_whatever_follows_it() {
        for (header, visitor) in headers() {
            for cut in 0..header.len() {
                let progress = read(&header[..cut]);
                assert_eq!(progress, Ok(Progress::More), "{:?}", &header[..cut]);
            }
            let bytes = header.len();
            for rest in [&b""[..], b"x", b"\r\n", &header] {
                let sent = [&header, rest].concat();
                assert_eq!(read(&sent), Ok(Progress::Header { bytes, visitor }));
            }
        }
    }

    #[test]
    fn what_cannot_become_a_header_is_bad_at_once() {
        for bad in [
            &b"G"[..],
            b"GET / HTTP/1.1\r\n",
            b"PROXX",
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY TCP4 192.0.2.256 198.51.100.2 258 80\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 70000 80\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 258 80\n",
            b"PROXY TCP4\r192.0.2.1 198.51.100.2 258 80\r\n",
            b"PROXY TCP9 192.0.2.1 198.51.100.2 258 80\r\n",
            b"PROXY \xff\r\n",
            b"\r\n\r\n\0\r\nQUIX",
            &binary(0x11, 0x11, &FOUR),
            &binary(0x22, 0x11, &FOUR),
            &binary(0x21, 0x41, &FOUR),
            &binary(0x21, 0x11, &FOUR[..8]),
        ] {
            assert_eq!(
                read(bad),
                Err(Flaw::Bad),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    #[test]
    fn what_is_too_long_is_known_before_it_has_come() {
        let rest = u16::try_from(HEADER_BYTES_MAX - BINARY_FIXED_BYTES).expect("short");
        let first = |rest: u16| [SIGNATURE, &[0x21, 0x11], &rest.to_be_bytes()].concat();
        assert_eq!(read(&first(rest)), Ok(Progress::More));
        assert_eq!(read(&first(rest + 1)), Err(Flaw::TooLong));
        let text = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; TEXT_BYTES_MAX]].concat();
        assert_eq!(read(&text[..TEXT_BYTES_MAX - 1]), Ok(Progress::More));
        assert_eq!(read(&text[..TEXT_BYTES_MAX]), Err(Flaw::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_more_of_them_never_change_a_judgement(
            which in 0..headers().len() * 2,
            changed in any::<Option<(u16, u8)>>(),
            rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut sent = match headers().get(which) {
                Some((header, _)) => header.clone(),
                None => Vec::new(),
            };
            if let Some((place, byte)) = changed
                && !sent.is_empty()
            {
                let place = usize::from(place) % sent.len();
                sent[place] = byte;
            }
            sent.extend(rest);
            let mut judged = None;
            for end in 0..=sent.len() {
                let progress = read(&sent[..end]);
                if let Some(judged) = judged {
                    prop_assert_eq!(progress, judged, "after {} bytes", end);
                } else if progress != Ok(Progress::More) {
                    judged = Some(progress);
                }
                prop_assert!(end < HEADER_BYTES_MAX || judged.is_some());
            }
        }
    }
}
