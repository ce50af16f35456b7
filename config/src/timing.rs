//! The times that both roles have: heartbeats, health, draining.

use std::time::Duration;

use crate::section::Section;
use crate::units::{self, DAY, MILLISECOND, SECOND};

/// Default time between two heartbeats: as in QMux.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Default time without a heartbeat after which a peer is unhealthy: as in QMux, two lost ones are
/// no reason.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Default time for open flows to end: as long as orchestrators usually wait before they kill.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Heartbeats, health, draining.
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
        let timing = Self {
            heartbeat_interval: heartbeat
                .as_ref()
                .map_or(HEARTBEAT_INTERVAL, |it| *it.get_ref()),
            health_timeout: health.as_ref().map_or(HEALTH_TIMEOUT, |it| *it.get_ref()),
            drain_timeout: drain.as_ref().map_or(DRAIN_TIMEOUT, |it| *it.get_ref()),
        };
        if timing.health_timeout <= timing.heartbeat_interval {
            let health_shown = units::format_duration(timing.health_timeout);
            let heartbeat_shown = units::format_duration(timing.heartbeat_interval);
            match (&health, &heartbeat) {
                (Some(health), _) => section.problem_at(
                    "health_timeout",
                    &health.span(),
                    format!(
                        "{health_shown} is not above heartbeat_interval ({heartbeat_shown}): every \
                         peer would be unhealthy between two heartbeats; it must be longer, three \
                         times is usual"
                    ),
                ),
                (None, Some(heartbeat)) => section.problem_at(
                    "heartbeat_interval",
                    &heartbeat.span(),
                    format!(
                        "{heartbeat_shown} is not below health_timeout ({health_shown} by default): \
                         every peer would be unhealthy between two heartbeats; it must be shorter, \
                         or health_timeout longer"
                    ),
                ),
                (None, None) => unreachable!("the defaults are in order"),
            }
        }
        timing
    }
}
