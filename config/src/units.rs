//! Durations and sizes in the notation of `dp.toml`, read and written.

use std::time::Duration;

/// The unit of the shortest limits.
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
/// The unit of most limits.
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// The longest time that anything here may take, unless a limit says otherwise.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How a duration is to be written, for messages.
pub(crate) const DURATION_FORM: &str =
    r#"a duration with its unit, as in "10s", "1h30m" or "500ms""#;
/// How a size is to be written, for messages.
pub(crate) const SIZE_FORM: &str = r#"a number of bytes or a size with its unit, as in "16MiB""#;

/// Reads a duration such as `10s` or `1h 30m`. Units run from nanoseconds to days.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    match text.trim() {
        // Nothing is nothing in any unit.
        "0" => Some(Duration::ZERO),
        text => humantime::parse_duration(text).ok(),
    }
}

/// Writes a duration so that [`parse_duration`] reads the same one back, without the blanks between
/// its parts.
pub(crate) fn format_duration(duration: Duration) -> String {
    // The largest unit is the day: humantime's years and months are averages, which nobody expects
    // in a config file.
    const DAY_S: u64 = 24 * 60 * 60;
    let days = duration.as_secs() / DAY_S;
    let rest = duration - Duration::from_secs(days * DAY_S);
    let mut text = String::new();
    if days > 0 {
        text = format!("{days}d");
    }
    if days == 0 || rest > Duration::ZERO {
        text.push_str(
            &humantime::format_duration(rest)
                .to_string()
                .replace(' ', ""),
        );
    }
    text
}

/// Reads a size such as `16MiB`, `1.5 GB` or `4096`, in bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    text.trim()
        .parse::<bytesize::ByteSize>()
        .ok()
        .map(|size| size.as_u64())
}

/// Writes a size in the largest binary unit that divides it, so that [`parse_size`] reads the same
/// one back.
pub(crate) fn format_size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    UNITS
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{bytes}B"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_written_as_people_write_them() {
        for (seconds, text) in [
            (0, "0s"),
            (10, "10s"),
            (300, "5m"),
            (5_400, "1h30m"),
            (86_400, "1d"),
            (604_800, "7d"),
        ] {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(format_duration(Duration::from_millis(1_500)), "1s500ms");
    }

    #[test]
    fn sizes_use_the_largest_unit_that_is_exact() {
        for (bytes, text) in [
            (0, "0B"),
            (1_200, "1200B"),
            (1_024, "1KiB"),
            (16 << 20, "16MiB"),
            (3 << 30, "3GiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn a_duration_without_a_unit_or_with_a_sign_is_refused() {
        for text in [
            "",
            "10",
            "-5s",
            "ten seconds",
            "5 parsecs",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_size_that_is_no_number_is_refused() {
        for text in ["", "-1", "MiB", "16 parsecs", "1..5MiB"] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_duration_survives_the_round_trip(seconds in 0_u64..=1 << 40, nanos in 0_u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn every_size_survives_the_round_trip(bytes in any::<u64>(), shift in 0_u32..64) {
            let bytes = bytes >> shift << (shift / 2);
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in ".*") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
