//! Why a lane ended, derived from the last state of its connection.

use boring::ssl::SslRef;
use boring::x509::X509VerifyError;
use qmux_config::CertificateFacts;
use qmux_config::explain::transport_error;
use qmux_proto::LaneError;

use super::lane::Connection;

/// A certificate of the peer that this side does not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadCertificate {
    /// The QUIC error code that is sent to the peer.
    pub(crate) code: u64,
    /// What is wrong with the certificate.
    pub(crate) why: X509VerifyError,
    /// What the certificate says of itself.
    pub(crate) facts: Option<CertificateFacts>,
}

/// Why a lane ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LaneEnd {
    /// The peer closed the lane with one of our codes.
    ClosedByPeer(LaneError, String),
    /// The peer's QUIC stack closed the lane (transport or TLS error code).
    TransportErrorByPeer(u64, String),
    /// This side closed the lane.
    ClosedByUs(LaneError),
    /// This side's QUIC stack closed the lane (transport or TLS error code).
    TransportErrorByUs(u64, String),
    /// This side does not accept the peer's certificate.
    BadCertificate(Box<BadCertificate>),
    /// The peer does not know the lane any more, because it was restarted.
    StatelessReset,
    /// Nothing was heard within the idle timeout.
    IdleTimeout,
    /// The peer completed the handshake but did not register.
    NotRegistered,
    /// The handshake did not complete in time.
    HandshakeTimeout,
    /// The network reports that nobody listens at the address.
    Unreachable(std::io::ErrorKind),
    /// A bug of this program; the log says where it panicked.
    Broken,
}

impl std::fmt::Display for LaneEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaneEnd::ClosedByPeer(code, text) if text.is_empty() => {
                write!(f, "closed by the peer: {code}")
            }
            LaneEnd::ClosedByPeer(code, text) => write!(f, "closed by the peer: {code}: {text}"),
            LaneEnd::TransportErrorByPeer(code, text) => {
                write!(f, "closed by the peer: {}", transport_error(*code))?;
                if text.is_empty() {
                    Ok(())
                } else {
                    write!(f, ": {text}")
                }
            }
            LaneEnd::ClosedByUs(code) => write!(f, "closed by us: {code}"),
            LaneEnd::TransportErrorByUs(code, text) => {
                write!(f, "closed by us: {}", transport_error(*code))?;
                if text.is_empty() {
                    Ok(())
                } else {
                    write!(f, ": {text}")
                }
            }
            LaneEnd::BadCertificate(bad) => {
                let (code, why) = (transport_error(bad.code), bad.why);
                write!(f, "closed by us: {code}: {why}")
            }
            LaneEnd::StatelessReset => {
                f.write_str("the peer was restarted and does not know this lane any more")
            }
            LaneEnd::IdleTimeout => f.write_str("nothing heard within max_idle_timeout"),
            LaneEnd::NotRegistered => f.write_str("the peer did not register in time"),
            LaneEnd::HandshakeTimeout => {
                f.write_str("no answer: the handshake did not complete in time")
            }
            LaneEnd::Unreachable(kind) => write!(f, "nobody listens there: {kind}"),
            LaneEnd::Broken => f.write_str("a bug of this program: a panic, logged before"),
        }
    }
}

impl BadCertificate {
    /// The fault that `ssl` has found in the peer's certificate, if any.
    fn of(code: u64, ssl: &SslRef) -> Option<BadCertificate> {
        let why = ssl.verify_result().err()?;
        let der = ssl.peer_certificate().and_then(|cert| cert.to_der().ok());
        let facts = der.and_then(|der| CertificateFacts::of(&der));
        Some(BadCertificate { code, why, facts })
    }
}

impl LaneEnd {
    /// The reason why the lane ended, once `conn` is closed or closing; `None` before.
    /// `closed_by_us` is the code with which this side has closed it.
    pub(super) fn of(
        conn: &mut Connection,
        closed_by_us: Option<LaneError>,
        was_established: bool,
        given_up: bool,
    ) -> Option<LaneEnd> {
        // The close may never be sent: a server must not send more than three times what it
        // received (RFC 9000, 8.1).
        if given_up {
            return Some(if was_established {
                LaneEnd::NotRegistered
            } else {
                LaneEnd::HandshakeTimeout
            });
        }
        // The connection is draining: a CONNECTION_CLOSE was sent or received, and nothing more
        // will pass (RFC 9000 section 10.2.2).
        if !conn.is_closed() && !conn.is_draining() {
            return None;
        }
        // The text is the peer's, perhaps an unknown one's, and must not be able to write lines of
        // our log.
        let text = |reason: &[u8]| {
            let reason = &reason[..reason.len().min(REASON_BYTES_MAX)];
            String::from_utf8_lossy(reason).escape_debug().to_string()
        };
        if let Some(error) = closed_by_us {
            return Some(LaneEnd::ClosedByUs(error));
        }
        if let Some(error) = conn.peer_error() {
            return Some(if error.is_app {
                LaneEnd::ClosedByPeer(LaneError::from_code(error.error_code), text(&error.reason))
            } else {
                LaneEnd::TransportErrorByPeer(error.error_code, text(&error.reason))
            });
        }
        if let Some(error) = conn.local_error() {
            let (code, text) = (error.error_code, text(&error.reason));
            let bad = TLS_ALERTS
                .contains(&code)
                .then(|| BadCertificate::of(code, AsMut::<SslRef>::as_mut(conn)));
            return Some(match bad.flatten() {
                Some(bad) => LaneEnd::BadCertificate(Box::new(bad)),
                None => LaneEnd::TransportErrorByUs(code, text),
            });
        }
        Some(match (conn.is_timed_out(), was_established) {
            (true, true) => LaneEnd::IdleTimeout,
            (true, false) => LaneEnd::HandshakeTimeout,
            (false, _) => LaneEnd::StatelessReset,
        })
    }
}

/// The most bytes of a peer's reason that are shown.
const REASON_BYTES_MAX: usize = 200;

/// QUIC error codes that carry a TLS alert (RFC 9001 section 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;
