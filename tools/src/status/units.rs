//! Numbers in the form in which people read them.

/// A count with at most five characters.
pub(crate) fn count(value: f64) -> String {
    for (size, unit) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if value >= size {
            let size = if unit == "k" { 1e3 } else { size };
            return format!("{:.1}{unit}", value / size);
        }
    }
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// A number of bytes.
pub(crate) fn bytes(value: u64) -> String {
    count(value as f64) + "B"
}

/// A round trip time in microseconds.
pub(crate) fn rtt(us: u64) -> String {
    match us {
        0 => "-".into(),
        1..10_000 => format!("{:.2}ms", us as f64 / 1e3),
        _ => format!("{}ms", us / 1_000),
    }
}

/// A time in seconds, in the largest unit that fits.
pub(crate) fn time(seconds: u64) -> String {
    for (size, unit) in [(86_400, "d"), (3_600, "h"), (60, "min")] {
        if seconds >= size {
            return format!("{}{unit}", seconds / size);
        }
    }
    format!("{seconds}s")
}

/// The name of a service, also if it has none.
pub(crate) fn service(name: &str) -> &str {
    if name.is_empty() { "(nameless)" } else { name }
}

/// The word for whether something is up.
pub(crate) fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        let counts = [0.0, 7.25, 250.6, 9_999.0, 12_345.0, 2.5e6, 3e9].map(count);
        assert_eq!(counts, ["0", "7.2", "251", "9999", "12.3k", "2.5M", "3.0G"]);
        assert_eq!([rtt(0), rtt(450), rtt(25_900)], ["-", "0.45ms", "25ms"]);
        let times = [time(59), time(61), time(7_300), time(200_000)];
        assert_eq!(times, ["59s", "1min", "2h", "2d"]);
    }
}
