//! `[limits]`: the resources that flows may hold, the same for both roles.

use std::time::Duration;

use toml::de::DeValue;

use crate::section::Section;
use crate::units::{self, DAY};

/// The least memory that flows may be limited to, in bytes: a hundred flows of one 64 KiB block
/// each.
const MEMORY_BYTES_MIN: u64 = 8 << 20;
/// The most memory that flows may be limited to, in bytes: more is a mistake.
const MEMORY_BYTES_MAX: u64 = 1 << 42;
/// The most descriptors that may be kept from flows.
const DESCRIPTORS_RESERVED_MAX: i64 = 1 << 16;
/// The shortest time after which a peer that takes nothing counts as stalled, or a flow as idle: a
/// path may well be interrupted for a second.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// How much memory flows may hold in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Half of what the control group or, without one, the machine allows.
    Auto,
    /// This many bytes.
    Bytes(u64),
    /// No limit; a zero in the file.
    None,
}

/// The resources that flows may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all flows of the process: what was read and not yet written, queues, reassembly.
    /// Above this limit the flows that have stalled longest are ended first.
    pub memory: MemoryLimit,
    /// File descriptors that flows leave to the admin endpoint, to lanes and to files.
    pub descriptors_reserved: u32,
    /// A flow whose peer takes nothing for this long, although bytes wait for it, is reset; zero
    /// means never. A listener's own value takes precedence.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: MemoryLimit::Auto,
            // Enough for a lane's socket and a file or two for each of some dozen lanes, and some
            // scrapes.
            descriptors_reserved: 64,
            // Twice the 30 s after which most programs give up a peer that does not answer.
            stall_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    pub(crate) fn read(section: Section<'_>) -> Self {
        let defaults = Self::default();
        let reserved = section.integer("descriptors_reserved", 0..=DESCRIPTORS_RESERVED_MAX);
        let limits = Self {
            memory: read_memory(&section).unwrap_or(defaults.memory),
            descriptors_reserved: reserved
                .and_then(|reserved| u32::try_from(reserved.into_inner()).ok())
                .unwrap_or(defaults.descriptors_reserved),
            stall_timeout: read_stall_timeout(&section).unwrap_or(defaults.stall_timeout),
        };
        section.finish();
        limits
    }
}

fn read_memory(section: &Section<'_>) -> Option<MemoryLimit> {
    let key = "memory";
    if let Some(value) = section.any(key)
        && matches!(value.as_ref(), DeValue::String(text) if text == "auto")
    {
        return Some(MemoryLimit::Auto);
    }
    let value = section.size(key, 0..=MEMORY_BYTES_MAX)?;
    match *value.get_ref() {
        0 => Some(MemoryLimit::None),
        bytes if bytes < MEMORY_BYTES_MIN => {
            let (given, least) = (
                units::format_size(bytes),
                units::format_size(MEMORY_BYTES_MIN),
            );
            let message = format!(
                "{given} is too little; it must be \"auto\", \"0\", for no limit, or at least \
                 {least:?}"
            );
            section.problem_at(key, &value.span(), message);
            None
        }
        bytes => Some(MemoryLimit::Bytes(bytes)),
    }
}

/// Reads `stall_timeout` of `[limits]` or of a listener.
pub(crate) fn read_stall_timeout(section: &Section<'_>) -> Option<Duration> {
    read_timeout(section, "stall_timeout", DAY)
}

/// Reads a time after which a flow in which nothing moves ends; zero turns that off.
pub(crate) fn read_timeout(
    section: &Section<'_>,
    key: &'static str,
    most: Duration,
) -> Option<Duration> {
    let value = section.duration(key, Duration::ZERO..=most)?;
    let timeout = *value.get_ref();
    if timeout > Duration::ZERO && timeout < TIMEOUT_MIN {
        let least = units::format_duration(TIMEOUT_MIN);
        let message = format!(
            "is too short; it must be {:?}, which turns it off, or at least {least:?}",
            "0s"
        );
        section.problem_at(key, &value.span(), message);
        return None;
    }
    Some(timeout)
}
