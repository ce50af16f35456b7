//! `[udp]`: how visitors' datagrams are carried.

use std::time::Duration;

use crate::section::Section;
use crate::units::{self, DAY};

/// The shortest time after which a UDP flow ends: below it a flow would end between a question and
/// its answer.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Settings for UDP flows, the same for both roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// A UDP flow without a packet in either direction for this long is ended.
    pub session_timeout: Duration,
    /// A UDP flow whose service has not answered yet is ended after this long without a packet; at
    /// most `session_timeout`, which a zero in the file stands for.
    pub unanswered_timeout: Duration,
    /// Whether packets too large for one QUIC datagram are sent in fragments; otherwise they are
    /// dropped and counted.
    pub enable_fragmentation: bool,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            // RFC 4787, REQ-5: a NAT keeps a UDP mapping for at least two minutes, and five are
            // recommended. A tunnel should not forget sooner than the NATs around it.
            session_timeout: Duration::from_secs(5 * 60),
            // What a stranger sends once to a port must not be remembered for minutes, and no
            // program asks again after a longer silence than this.
            unanswered_timeout: Duration::from_secs(30),
            // As in QMux: a visitor expects that whatever an IP network carries passes through the
            // tunnel.
            enable_fragmentation: true,
        }
    }
}

impl Udp {
    pub(crate) fn read(section: Section<'_>) -> Self {
        let defaults = Self::default();
        let session_timeout = section
            .duration("session_timeout", TIMEOUT_MIN..=DAY)
            .map_or(defaults.session_timeout, toml::Spanned::into_inner);
        let udp = Self {
            session_timeout,
            unanswered_timeout: read_unanswered_timeout(&section)
                .unwrap_or(defaults.unanswered_timeout)
                .min(session_timeout),
            enable_fragmentation: section
                .boolean("enable_fragmentation")
                .unwrap_or(defaults.enable_fragmentation),
        };
        section.finish();
        udp
    }
}

/// Reads the timeout of flows without an answer; zero is none of their own.
fn read_unanswered_timeout(section: &Section<'_>) -> Option<Duration> {
    let key = "unanswered_timeout";
    let value = section.duration(key, Duration::ZERO..=DAY)?;
    let timeout = *value.get_ref();
    if timeout.is_zero() {
        return Some(Duration::MAX);
    }
    if timeout < TIMEOUT_MIN {
        let least = units::format_duration(TIMEOUT_MIN);
        let message = format!(
            "is too short; it must be {:?}, for session_timeout alone to hold, or at least \
             {least:?}",
            "0s"
        );
        section.problem_at(key, &value.span(), message);
        return None;
    }
    Some(timeout)
}
