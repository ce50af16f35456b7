//! What both roles have in common: times, files, addresses.

use std::path::Path;
use std::time::Duration;

use super::draft::Draft;
use super::go;
use super::yaml::{Mapping, Scalar};
use crate::address;
use crate::units;

/// Takes a duration that is not zero; QMux reads zero as the default.
pub(super) fn duration(
    from: &mut Mapping<'_>,
    key: &str,
    draft: &mut Draft,
) -> Option<(Scalar, Duration)> {
    let scalar = from.scalar(key, &mut draft.notes)?;
    match go::duration(&scalar.text) {
        Some(Duration::ZERO) => None,
        Some(duration) => Some((scalar, duration)),
        None => {
            let message = format!(
                "{:?} is no duration that qmux-dp has; it was left out",
                scalar.text
            );
            draft.notes.push(scalar.note(message));
            None
        }
    }
}

/// Takes a number.
pub(super) fn number(
    from: &mut Mapping<'_>,
    key: &str,
    draft: &mut Draft,
) -> Option<(Scalar, u64)> {
    let scalar = from.scalar(key, &mut draft.notes)?;
    if let Some(number) = go::unsigned(&scalar.text) {
        return Some((scalar, number));
    }
    let message = format!(
        "{:?} is no number that qmux-dp has; it was left out",
        scalar.text
    );
    draft.notes.push(scalar.note(message));
    None
}

/// Takes a boolean.
pub(super) fn boolean(
    from: &mut Mapping<'_>,
    key: &str,
    draft: &mut Draft,
) -> Option<(Scalar, bool)> {
    let scalar = from.scalar(key, &mut draft.notes)?;
    if let Some(boolean) = go::boolean(&scalar.text) {
        return Some((scalar, boolean));
    }
    let message = format!(
        "{:?} is neither true nor false; it was left out",
        scalar.text
    );
    draft.notes.push(scalar.note(message));
    None
}

/// Brings `value` into `range`, with a note if it lies outside.
pub(super) fn clamped<T: Copy + PartialOrd>(
    scalar: &Scalar,
    value: T,
    (least, most): (T, T),
    show: impl Fn(T) -> String,
    draft: &mut Draft,
) -> T {
    let nearest = if value < least {
        least
    } else if value > most {
        most
    } else {
        return value;
    };
    let message = format!(
        "{} is outside of what qmux-dp has, {} to {}; it became {}",
        show(value),
        show(least),
        show(most),
        show(nearest)
    );
    draft.notes.push(scalar.note(message));
    nearest
}

/// Copies the heartbeat interval and the health timeout.
pub(super) fn timing(from: &mut Mapping<'_>, draft: &mut Draft) {
    let heartbeat = duration(from, "heartbeat_interval", draft);
    // Older versions of QMux call it health_check_timeout.
    let key = if from.has("health_timeout") {
        "health_timeout"
    } else {
        "health_check_timeout"
    };
    let health = duration(from, key, draft);
    if let Some(scalar) = from.scalar("health_check_interval", &mut draft.notes) {
        draft
            .notes
            .push(scalar.note("has no counterpart: health is checked all the time"));
    }
    let show = units::format_duration;
    let heartbeat = heartbeat.map(|(scalar, interval)| {
        let range = (Duration::from_millis(50), Duration::from_secs(3_600));
        clamped(&scalar, interval, range, show, draft)
    });
    let health = health.map(|(scalar, timeout)| {
        let range = (Duration::from_millis(100), units::DAY);
        let timeout = clamped(&scalar, timeout, range, show, draft);
        let interval = heartbeat.unwrap_or_default();
        if timeout > interval {
            return timeout;
        }
        let message = format!(
            "{} is not above heartbeat_interval; it became {}",
            show(timeout),
            show(interval * 3)
        );
        draft.notes.push(scalar.note(message));
        interval * 3
    });
    if let Some(interval) = heartbeat {
        draft.duration("heartbeat_interval", interval);
    }
    if let Some(timeout) = health {
        draft.duration("health_timeout", timeout);
    }
}

/// Copies the path of a file, noting what relative ones are relative to.
pub(super) fn file(from: &mut Mapping<'_>, key: &str, draft: &mut Draft) -> bool {
    let Some(scalar) = from.scalar(key, &mut draft.notes) else {
        return false;
    };
    if scalar.text.is_empty() {
        return false;
    }
    if Path::new(&scalar.text).is_relative() {
        draft.notes.push(scalar.note(format!(
            "{:?} starts at the directory of the config file now; QMux started at the directory \
             that it was run in",
            scalar.text
        )));
    }
    draft.string(key, &scalar.text);
    true
}

/// Copies a string if it is there and not empty.
pub(super) fn string(from: &mut Mapping<'_>, key: &str, draft: &mut Draft) -> Option<Scalar> {
    let scalar = from.scalar(key, &mut draft.notes)?;
    if scalar.text.is_empty() {
        return None;
    }
    draft.string(key, &scalar.text);
    Some(scalar)
}

/// Copies an address to listen on. Go accepts `:8443` and names; an IP address is needed here.
pub(super) fn listen(
    from: &mut Mapping<'_>,
    key: &str,
    to_key: &str,
    draft: &mut Draft,
) -> Option<Scalar> {
    let scalar = from.scalar(key, &mut draft.notes)?;
    let (host, port) = scalar.text.rsplit_once(':').unwrap_or((&scalar.text, ""));
    let address = match host {
        "" => format!("[::]:{port}"),
        "localhost" => format!("127.0.0.1:{port}"),
        _ => scalar.text.clone(),
    };
    if address != scalar.text {
        draft
            .notes
            .push(scalar.note(format!("{:?} became {address:?}", scalar.text)));
    } else if address::parse_listen(&address).is_err() {
        draft
            .notes
            .push(scalar.note(format!("{address:?} is no IP address and port")));
    }
    draft.string(to_key, &address);
    Some(scalar)
}

/// Copies `[udp]` from the mappings of that name; contradictions among them are noted.
pub(super) fn udp(from: Vec<Mapping<'_>>, draft: &mut Draft) {
    let mut settled: Option<bool> = None;
    for mut mapping in from {
        let name = mapping.scalar("enable_fragmentation", &mut draft.notes);
        if let Some(scalar) = name {
            match (go::boolean(&scalar.text), settled) {
                (None, _) => {
                    draft
                        .notes
                        .push(scalar.note("is neither true nor false; it was left out"));
                }
                (Some(value), None) => settled = Some(value),
                (Some(value), Some(first)) if value != first => draft.notes.push(scalar.note(
                    format!("listeners share one setting here; the first one's, {first}, was kept"),
                )),
                _ => {}
            }
        }
        for key in [
            "fragment_assembler_shards",
            "enable_buffer_pooling",
            "read_buffer_size",
            "datagram_buffer_size",
        ] {
            if let Some(scalar) = mapping.scalar(key, &mut draft.notes) {
                draft
                    .notes
                    .push(scalar.note("has no counterpart: nothing is left to tune there"));
            }
        }
        mapping.finish(&mut draft.notes);
    }
    draft.section("[udp]");
    if let Some(value) = settled {
        draft.plain("enable_fragmentation", value);
    }
}

/// Notes every limit of a `capacity` mapping.
pub(super) fn capacity(from: &mut Mapping<'_>, draft: &mut Draft) {
    let capacity = from.mapping("capacity", &mut draft.notes);
    capacity.note_rest(
        "has no counterpart: what a client may take is bounded by [quic], see max_incoming_streams",
        &mut draft.notes,
    );
}

/// Copies an admin address.
pub(super) fn admin(from: &mut Mapping<'_>, draft: &mut Draft) {
    draft.section("[admin]");
    listen(from, "admin_address", "listen", draft);
}
