//! SOCKS version 5 (RFC 1928) with a user and a password (RFC 1929). No I/O here.

use std::fmt;

use super::{Place, Step};
use crate::transport::ProxyAddress;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NONE_ACCEPTABLE: u8 = 0xff;
/// The version of the negotiation with a password.
const PASSWORD_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The answer that the dialogue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Method,
    Password,
    Connection,
}

/// One dialogue.
pub(super) struct Dialogue {
    waits: Waits,
    user: Vec<u8>,
    password: Vec<u8>,
    request: Vec<u8>,
}

impl fmt::Debug for Dialogue {
    /// Shows no user and no password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Dialogue");
        shown.field("waits", &self.waits).finish_non_exhaustive()
    }
}

impl Dialogue {
    /// Begins a dialogue.
    ///
    /// # Errors
    /// If the destination cannot be expressed in this protocol.
    pub(super) fn new(proxy: &ProxyAddress, place: &Place) -> Result<Dialogue, String> {
        let mut request = vec![VERSION, CONNECT, 0];
        match place {
            Place::Address(address) => match address.ip().to_canonical() {
                std::net::IpAddr::V4(ip) => {
                    request.push(IPV4);
                    request.extend_from_slice(&ip.octets());
                }
                std::net::IpAddr::V6(ip) => {
                    request.push(IPV6);
                    request.extend_from_slice(&ip.octets());
                }
            },
            Place::Name(name, _) => {
                let length = u8::try_from(name.len());
                request.push(NAME);
                request.push(length.map_err(|_| "the server's name is too long for SOCKS5")?);
                request.extend_from_slice(name.as_bytes());
            }
        }
        request.extend_from_slice(&place.port().to_be_bytes());
        let password = proxy.password.as_ref().map(|it| it.expose().to_vec());
        Ok(Dialogue {
            waits: Waits::Method,
            user: proxy.user.as_bytes().to_vec(),
            password: password.unwrap_or_default(),
            request,
        })
    }

    /// The first message to the proxy.
    pub(super) fn greeting(&self) -> Vec<u8> {
        if self.user.is_empty() {
            vec![VERSION, 1, NO_AUTHENTICATION]
        } else {
            vec![VERSION, 2, NO_AUTHENTICATION, USER_AND_PASSWORD]
        }
    }

    /// Takes everything that the proxy has sent since this side sent something, as far as it came.
    ///
    /// # Errors
    /// The proxy's refusal, in words.
    pub(super) fn next(&mut self, said: &[u8]) -> Result<Step, String> {
        match self.waits {
            Waits::Method => self.method(said),
            Waits::Password => match *said {
                [_, 0] => Ok(self.ask()),
                [_, _] => Err("it refuses the user or the password".into()),
                _ => Ok(Step::Wait),
            },
            Waits::Connection => connection(said),
        }
    }

    fn method(&mut self, said: &[u8]) -> Result<Step, String> {
        match *said {
            [VERSION, NO_AUTHENTICATION] => Ok(self.ask()),
            [VERSION, USER_AND_PASSWORD] if !self.user.is_empty() => {
                self.waits = Waits::Password;
                let mut words = vec![PASSWORD_VERSION];
                for word in [&self.user, &self.password] {
                    // dp.toml and the environment allow no longer ones.
                    words.push(u8::try_from(word.len()).map_err(|_| "a password is too long")?);
                    words.extend_from_slice(word);
                }
                Ok(Step::Say(words))
            }
            [VERSION, NONE_ACCEPTABLE] if self.user.is_empty() => Err(
                "it wants a user and a password; set proxy = \"socks5://user@host:port\" and \
                 password_file"
                    .into(),
            ),
            [VERSION, method] => Err(format!(
                "it wants a way of authentication (method {method}) that qmux-dp does not know"
            )),
            [VERSION] | [] => Ok(Step::Wait),
            _ => Err("it does not speak SOCKS5".into()),
        }
    }

    fn ask(&mut self) -> Step {
        self.waits = Waits::Connection;
        Step::Say(self.request.clone())
    }
}

fn connection(said: &[u8]) -> Result<Step, String> {
    let (Some(code), kind) = (said.get(1), said.get(3)) else {
        return Ok(Step::Wait);
    };
    let why = match code {
        0 => {
            let address_bytes = match kind {
                None => return Ok(Step::Wait),
                Some(&IPV4) => 4,
                Some(&IPV6) => 16,
                Some(&NAME) => match said.get(4) {
                    Some(length) => 1 + usize::from(*length),
                    None => return Ok(Step::Wait),
                },
                Some(_) => return Err("its answer is no SOCKS5".into()),
            };
            let whole = said.len() >= 4 + address_bytes + 2;
            return Ok(if whole { Step::Through } else { Step::Wait });
        }
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "the server does not answer",
        7 => "it knows no CONNECT",
        8 => "it knows no addresses of this kind",
        _ => "an unknown code",
    };
    Err(format!("it answers {code}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue(proxy: &str, place: &Place) -> Dialogue {
        let proxy = ProxyAddress::parse(proxy).expect("a proxy");
        Dialogue::new(&proxy, place).expect("a dialogue")
    }

    fn place() -> Place {
        Place::Name("a.example".into(), 443)
    }

    #[test]
    fn a_way_to_a_name_with_a_user_and_a_password() {
        let mut dialogue = dialogue("socks5://me:pw@proxy:1080", &place());
        assert_eq!(dialogue.greeting(), [5, 2, 0, 2]);
        assert_eq!(dialogue.next(&[5]), Ok(Step::Wait));
        let password = Step::Say(b"\x01\x02me\x02pw".to_vec());
        assert_eq!(dialogue.next(&[5, 2]), Ok(password));
        let request = Step::Say(b"\x05\x01\x00\x03\x09a.example\x01\xbb".to_vec());
        assert_eq!(dialogue.next(&[1, 0]), Ok(request));
        let answer = [5, 0, 0, 1, 127, 0, 0, 1, 0, 80];
        for end in 0..answer.len() {
            assert_eq!(dialogue.next(&answer[..end]), Ok(Step::Wait), "{end}");
        }
        assert_eq!(dialogue.next(&answer), Ok(Step::Through));
    }

    #[test]
    fn what_the_proxy_says_against_it_is_named() {
        let says = |proxy: &str, words: &[&[u8]]| {
            let mut dialogue = dialogue(proxy, &place());
            let steps = words.iter().map(|said| dialogue.next(said));
            let refused: Vec<_> = steps.filter_map(Result::err).collect();
            refused.join("; ")
        };
        assert!(says("socks5://p:1", &[&[5, 0xff]]).contains("password_file"));
        assert!(says("socks5://u:x@p:1", &[&[5, 2], &[1, 1]]).contains("refuses the user"));
        assert!(says("socks5://p:1", &[&[5, 0], &[5, 2]]).contains("not allowed"));
        assert!(says("socks5://p:1", &[b"HT"]).contains("does not speak SOCKS5"));
    }
}
