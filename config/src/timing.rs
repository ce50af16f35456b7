//! The times that both roles have: heartbeats, health, drain.

use std::time::Duration;

use crate::section::Section;
use crate::units::{self, DAY, MILLISECOND, SECOND};

/// Default time between two heartbeats: as in QMux.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Default time without a heartbeat after which a peer is unhealthy: as in QMux, two lost ones are
/// no reason.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of heartbeats in a timeout where only one of the two is given, so that changing one in a
/// config file does not make the other one wrong.
const HEARTBEATS_PER_TIMEOUT: u32 = 3;
/// Default time for open flows to end: as long as orchestrators usually wait before they kill.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The times of heartbeats, health and drain.
pub(crate) struct Timing {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) health_timeout: Duration,
    pub(crate) drain_timeout: Duration,
}

impl Timing {
    /// Reads the three keys from the section of a role.
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let heartbeat = section.duration("heartbeat_interval", MILLISECOND * 50..=SECOND * 3_600);
        let health = section.duration("health_timeout", MILLISECOND * 100..=DAY);
        let drain = section.duration("drain_timeout", Duration::ZERO..=DAY);
        let heartbeat_given = heartbeat.as_ref().map(|it| *it.get_ref());
        let health_given = health.as_ref().map(|it| *it.get_ref());
        let timing = Self {
            heartbeat_interval: heartbeat_given.unwrap_or_else(|| {
                HEARTBEAT_INTERVAL
                    .min(health_given.unwrap_or(HEALTH_TIMEOUT) / HEARTBEATS_PER_TIMEOUT)
            }),
            health_timeout: health_given.unwrap_or_else(|| {
                HEALTH_TIMEOUT.max(heartbeat_given.unwrap_or_default() * HEARTBEATS_PER_TIMEOUT)
            }),
            drain_timeout: drain.map_or(DRAIN_TIMEOUT, toml::Spanned::into_inner),
        };
        if let Some(health) = &health
            && timing.health_timeout <= timing.heartbeat_interval
        {
            section.problem_at(
                "health_timeout",
                &health.span(),
                format!(
                    "{} is not above heartbeat_interval ({}): every peer would be unhealthy between \
                     two heartbeats; it must be longer, three times is usual",
                    units::format_duration(timing.health_timeout),
                    units::format_duration(timing.heartbeat_interval),
                ),
            );
        }
        timing
    }
}
