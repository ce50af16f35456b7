//! `[udp]`: how visitors' datagrams are carried.

use std::time::Duration;

use crate::section::Section;
use crate::units::{DAY, MILLISECOND};

/// Settings for UDP flows, the same for both roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// A UDP flow without a packet in either direction for this long is ended.
    pub session_timeout: Duration,
    /// A UDP flow whose service has not answered yet is ended after this long without a packet; at
    /// most `session_timeout`.
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
            .duration("session_timeout", MILLISECOND * 100..=DAY)
            .map_or(defaults.session_timeout, toml::Spanned::into_inner);
        let udp = Self {
            session_timeout,
            unanswered_timeout: section
                .duration("unanswered_timeout", MILLISECOND * 100..=DAY)
                .map_or(defaults.unanswered_timeout, toml::Spanned::into_inner)
                .min(session_timeout),
            enable_fragmentation: section
                .boolean("enable_fragmentation")
                .unwrap_or(defaults.enable_fragmentation),
        };
        section.finish();
        udp
    }
}
