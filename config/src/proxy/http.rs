//! HTTP proxies: the method CONNECT (RFC 9110, section 9.3.6). No I/O here.

use super::{Place, Step};
use crate::secret::Secret;
use crate::transport::ProxyAddress;

/// The most headers of an answer that is accepted.
const HEADERS_MAX: usize = 64;

/// Base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    boring::base64::encode_block(bytes)
}

/// The request for a tunnel to `place`.
pub(super) fn request(proxy: &ProxyAddress, place: &Place) -> Vec<u8> {
    let (host, port) = (place.host(), place.port());
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if !proxy.user.is_empty() {
        let password = proxy.password.as_ref().map(Secret::expose);
        let mut credentials = proxy.user.as_bytes().to_vec();
        credentials.push(b':');
        credentials.extend_from_slice(password.unwrap_or_default());
        request += &format!("Proxy-Authorization: Basic {}\r\n", base64(&credentials));
    }
    request += "\r\n";
    request.into_bytes()
}

/// Reads the proxy's answer, as far as it came.
///
/// # Errors
/// The proxy's refusal, in words.
pub(super) fn answer(said: &[u8]) -> Result<Step, String> {
    if !said.ends_with(b"\n") {
        return Ok(Step::Wait);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(said);
    let parsed = parsed.map_err(|error| format!("its answer is no HTTP: {error}"))?;
    let Some(code) = response.code.filter(|_| parsed.is_complete()) else {
        return Ok(Step::Wait);
    };
    if (200..300).contains(&code) {
        return Ok(Step::Through);
    }
    let reason = response.reason.unwrap_or_default();
    let advice = match code {
        // tinyproxy answers 401 to a wrong password.
        401 | 407 => {
            ": it wants a user and a password, or others than these; set proxy = \
                \"http://user@host:port\" and password_file"
        }
        403 => ": it does not allow this address, or CONNECT to this port (many allow 443 only)",
        502..=504 => ": it cannot reach the server",
        _ => "",
    };
    Err(format!("it answers {code} {reason}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place::Name("server.example.com".into(), 8443)
    }

    #[test]
    fn it_is_asked_for_the_server_with_the_credentials_there_are() {
        let ask = |text: &str| {
            let proxy = ProxyAddress::parse(text).expect("a proxy");
            String::from_utf8(request(&proxy, &place())).expect("text")
        };
        let plain = "CONNECT server.example.com:8443 HTTP/1.1\r\nHost: server.example.com:8443\r\n";
        assert_eq!(ask("http://proxy:3128"), format!("{plain}\r\n"));
        // The example of RFC 7617, section 2.
        let known = "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n";
        let asked = ask("http://Aladdin:open%20sesame@proxy:3128");
        assert_eq!(asked, format!("{plain}{known}\r\n"));
    }

    #[test]
    fn only_a_whole_answer_of_success_is_a_way_and_others_are_named() {
        let good = b"HTTP/1.1 200 Connection established\r\nVia: a proxy\r\n\r\n";
        for end in 0..good.len() {
            assert_eq!(answer(&good[..end]), Ok(Step::Wait), "{end}");
        }
        assert_eq!(answer(good), Ok(Step::Through));
        let refused = answer(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        let why = refused.expect_err("refused");
        assert!(why.contains("407 Proxy Authentication Required") && why.contains("password_file"));
        assert!(answer(b"SSH-2.0-OpenSSH_9.2\r\n").is_err());
    }
}
