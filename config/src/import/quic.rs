//! QMux's transport settings: under `quic` in a client's file, in each listener of a server's.

use std::time::Duration;

use super::carry;
use super::draft::Draft;
use super::yaml::{Mapping, Scalar};
use crate::quic::{INCOMING_STREAMS_MAX, Quic, RECEIVE_WINDOW_BYTES_MAX, RECEIVE_WINDOW_BYTES_MIN};
use crate::units;

/// QMux's idle timeout where none is given.
const QMUX_MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

type Found<T> = Option<(Scalar, T)>;

/// The settings of one mapping.
#[derive(Default)]
pub(super) struct Settings {
    /// Initial and maximal size of the stream's window, then of the connection's.
    windows: [Found<u64>; 4],
    max_incoming_streams: Found<u64>,
    keep_alive_period: Found<Duration>,
    handshake_idle_timeout: Found<Duration>,
    max_idle_timeout: Found<Duration>,
    allow_0rtt: Found<bool>,
}

const WINDOW_KEYS: [&str; 4] = [
    "initial_stream_receive_window",
    "max_stream_receive_window",
    "initial_connection_receive_window",
    "max_connection_receive_window",
];

impl Settings {
    /// Takes the settings out of `from`.
    pub(super) fn take(from: &mut Mapping<'_>, draft: &mut Draft) -> Self {
        let window = |from: &mut Mapping<'_>, key: &str, draft: &mut Draft| {
            let (scalar, bytes) =
                carry::number(from, key, draft).filter(|(_, bytes)| *bytes > 0)?;
            let range = (RECEIVE_WINDOW_BYTES_MIN, RECEIVE_WINDOW_BYTES_MAX);
            let bytes = carry::clamped(&scalar, bytes, range, units::format_size, draft);
            Some((scalar, bytes))
        };
        let streams = carry::number(from, "max_incoming_streams", draft).filter(|(_, it)| *it > 0);
        let streams = streams.map(|(scalar, count)| {
            let range = (1, INCOMING_STREAMS_MAX.unsigned_abs());
            let count = carry::clamped(&scalar, count, range, |it| it.to_string(), draft);
            (scalar, count)
        });
        Self {
            windows: WINDOW_KEYS.map(|key| window(from, key, draft)),
            max_incoming_streams: streams,
            keep_alive_period: time(from, "keep_alive_period", (100, 1_200_000), draft),
            handshake_idle_timeout: time(from, "handshake_idle_timeout", (100, 300_000), draft),
            max_idle_timeout: time(from, "max_idle_timeout", (300, 3_600_000), draft),
            allow_0rtt: carry::boolean(from, "allow_0rtt", draft),
        }
    }

    /// Fills settings that are missing here from `other`, those of a later listener, with a note,
    /// because they hold for all listeners. Settings that differ are noted too.
    pub(super) fn merge(&mut self, other: Self, draft: &mut Draft) {
        for (mine, theirs) in self.windows.iter_mut().zip(other.windows) {
            keep_first(mine, theirs, units::format_size, draft);
        }
        let show = units::format_duration;
        keep_first(
            &mut self.max_incoming_streams,
            other.max_incoming_streams,
            |it| it.to_string(),
            draft,
        );
        keep_first(
            &mut self.keep_alive_period,
            other.keep_alive_period,
            show,
            draft,
        );
        keep_first(
            &mut self.handshake_idle_timeout,
            other.handshake_idle_timeout,
            show,
            draft,
        );
        keep_first(
            &mut self.max_idle_timeout,
            other.max_idle_timeout,
            show,
            draft,
        );
        self.merge_0rtt(other.allow_0rtt, draft);
    }

    /// Merges the setting of early data: if one listener has turned it off, it is off for all.
    fn merge_0rtt(&mut self, other: Found<bool>, draft: &mut Draft) {
        let first = self.allow_0rtt.as_ref().map(|(_, allow)| *allow);
        match other {
            Some((scalar, false)) if first != Some(false) => {
                draft.notes.push(
                    scalar
                        .note("listeners share one setting here; it became false for all of them"),
                );
                self.allow_0rtt = Some((scalar, false));
            }
            other => keep_first(&mut self.allow_0rtt, other, |it| it.to_string(), draft),
        }
    }

    /// Writes `[quic]`.
    pub(super) fn write(self, draft: &mut Draft) {
        draft.section("[quic]");
        let [
            initial_stream,
            max_stream,
            initial_connection,
            max_connection,
        ] = self.windows;
        for (keys, initial, max) in [
            ((WINDOW_KEYS[0], WINDOW_KEYS[1]), initial_stream, max_stream),
            (
                (WINDOW_KEYS[2], WINDOW_KEYS[3]),
                initial_connection,
                max_connection,
            ),
        ] {
            write_window(keys, initial, max, draft);
        }
        if let Some((_, count)) = self.max_incoming_streams {
            draft.plain("max_incoming_streams", count);
        }
        write_idle(self.keep_alive_period, self.max_idle_timeout, draft);
        if let Some((_, timeout)) = self.handshake_idle_timeout {
            draft.duration("handshake_idle_timeout", timeout);
        }
        if let Some((_, allow)) = self.allow_0rtt {
            draft.plain("allow_0rtt", allow);
        }
    }
}

/// Reads a time and brings it into a range of milliseconds.
fn time(
    from: &mut Mapping<'_>,
    key: &str,
    (least_ms, most_ms): (u64, u64),
    draft: &mut Draft,
) -> Found<Duration> {
    let (scalar, duration) = carry::duration(from, key, draft)?;
    let range = (
        Duration::from_millis(least_ms),
        Duration::from_millis(most_ms),
    );
    let duration = carry::clamped(&scalar, duration, range, units::format_duration, draft);
    Some((scalar, duration))
}

fn keep_first<T: Copy + PartialEq>(
    mine: &mut Found<T>,
    theirs: Found<T>,
    show: impl Fn(T) -> String,
    draft: &mut Draft,
) {
    match (&mine, theirs) {
        (None, Some((scalar, value))) => {
            let message = format!(
                "listeners share one setting here; {} holds for all of them",
                show(value)
            );
            draft.notes.push(scalar.note(message));
            *mine = Some((scalar, value));
        }
        (Some((_, first)), Some((scalar, value))) if *first != value => {
            let message = format!(
                "listeners share one setting here; the first one's, {}, was kept",
                show(*first)
            );
            draft.notes.push(scalar.note(message));
        }
        _ => {}
    }
}

fn write_window(
    (initial_key, max_key): (&str, &str),
    initial: Found<u64>,
    max: Found<u64>,
    draft: &mut Draft,
) {
    let max = max.map(|(_, bytes)| bytes);
    if let Some((scalar, bytes)) = initial {
        let fitting = bytes.min(max.unwrap_or(bytes));
        if fitting < bytes {
            let message = format!(
                "is above the maximum; it became {}",
                units::format_size(fitting)
            );
            draft.notes.push(scalar.note(message));
        }
        draft.size(initial_key, fitting);
    }
    if let Some(bytes) = max {
        draft.size(max_key, bytes);
    }
}

/// Writes the keep-alive period and the idle timeout. QMux's library limits the period to half of
/// the timeout; here that would be refused, so it is reduced to a third.
fn write_idle(period: Found<Duration>, timeout: Found<Duration>, draft: &mut Draft) {
    let mut timeout = timeout.map(|(_, timeout)| timeout);
    if let Some((scalar, mut period)) = period {
        if timeout.is_none() && period >= Quic::default().max_idle_timeout {
            timeout = Some(QMUX_MAX_IDLE_TIMEOUT);
            draft.notes.push(scalar.note(
                "needs a longer idle timeout than the default; max_idle_timeout became 5m, QMux's own",
            ));
        }
        let least = timeout.unwrap_or(Quic::default().max_idle_timeout);
        if period >= least {
            period = least / 3;
            let message = format!(
                "is not below the idle timeout; it became {}",
                units::format_duration(period)
            );
            draft.notes.push(scalar.note(message));
        }
        draft.duration("keep_alive_period", period);
    }
    if let Some(timeout) = timeout {
        draft.duration("max_idle_timeout", timeout);
    }
}
