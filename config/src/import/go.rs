//! Scalars as QMux reads them: Go's durations, YAML's numbers and booleans.

use std::time::Duration;

/// Reads a Go duration such as `1h30m`, `1.5h`, `100ms` or `0`. A bare number is nanoseconds, as
/// for QMux's YAML reader. Negative ones are `None`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(nanos) = unsigned(text) {
        return Some(Duration::from_nanos(nanos));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|it: char| !(it.is_ascii_digit() || it == '.'))?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|it: char| it.is_ascii_digit() || it == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        total = total.checked_add(part(number, unit_nanos(unit)?)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// `number` times `unit_nanos`; what is less than a nanosecond is cut off, as in Go.
fn part(number: &str, unit_nanos: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut nanos = whole.checked_mul(unit_nanos)?;
    let mut place = unit_nanos;
    for digit in fraction.chars() {
        // Exact while the unit divides by ten, which covers every digit down to nanoseconds but
        // for hours and minutes (3,600 and 60): for those the remainder is below a nanosecond.
        let value = u64::from(digit.to_digit(10)?);
        nanos = nanos.checked_add(value * place / 10)?;
        place /= 10;
    }
    Some(Duration::from_nanos(nanos))
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Reads a whole number as YAML writes it: decimal, `0x`, `0o`, `0b`, with underscores.
pub(super) fn unsigned(text: &str) -> Option<u64> {
    let plain = text.replace('_', "");
    let (digits, radix) = match plain.get(..2) {
        Some("0x") => (&plain[2..], 16),
        Some("0o") => (&plain[2..], 8),
        Some("0b") => (&plain[2..], 2),
        _ => (plain.as_str(), 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// Reads a boolean; QMux's YAML reader also accepts the words of YAML 1.1.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_mean_what_they_mean_in_go() {
        for (text, millis) in [
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("1m0.5s", 60_500),
            (".5s", 500),
            ("1.s", 1_000),
            ("+2s", 2_000),
            ("0", 0),
            ("2000000000", 2_000),
            ("1h0m0s", 3_600_000),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        assert_eq!(duration("1µs"), Some(Duration::from_micros(1)));
        for text in [
            "",
            "-1s",
            "10",
            "1d",
            "s",
            ".s",
            "1h30",
            "ten",
            "99999999999h",
        ] {
            let refused = duration(text);
            assert!(refused.is_none() || text == "10", "{text}: {refused:?}");
        }
    }

    #[test]
    fn numbers_and_booleans_are_read_as_yaml() {
        for (text, number) in [
            ("0", 0),
            ("1_000", 1_000),
            ("0x10", 16),
            ("0o17", 15),
            ("0b11", 3),
        ] {
            assert_eq!(unsigned(text), Some(number));
        }
        for text in ["", "-1", "1.5", "0x", "+-1", "ten"] {
            assert_eq!(unsigned(text), None, "{text}");
        }
        assert_eq!(boolean("True"), Some(true));
        assert_eq!(boolean("off"), Some(false));
        assert_eq!(boolean("1"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "([0-9.+_-]|\\PC|[hmsnµu]){0,30}") {
            let _ = (duration(&text), unsigned(&text), boolean(&text));
        }
    }
}
