//! `--log-level`: levels, and levels of modules.
//!
//! The filter's own parser takes every word that is not a level for the name of a module, and then
//! shows that module alone: a misspelled level would silence the program. Here a word must be a
//! level, and a module needs one.

/// The levels, from the fewest lines to the most.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks the argument, which the filter then interprets.
///
/// # Errors
/// The first part that is neither a level nor `module=level`, with what may have been
/// meant.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    for part in text.split(',').map(str::trim) {
        let level = match part.rsplit_once('=') {
            Some((module, level)) if !module.trim().is_empty() => level,
            Some(_) => return Err(format!("{part:?} names no module before its level")),
            None => part,
        };
        if LEVELS
            .iter()
            .all(|known| !known.eq_ignore_ascii_case(level))
        {
            return Err(unknown(part, level));
        }
    }
    Ok(text.to_owned())
}

fn unknown(part: &str, level: &str) -> String {
    let lower = level.to_lowercase();
    // Others call `warn` `warning`.
    let longer = || LEVELS.into_iter().find(|known| lower.starts_with(known));
    let meant = qmux_config::nearest(level, LEVELS).or_else(longer);
    let hint = match (meant, part == level && part.contains("::")) {
        (Some(meant), _) => format!("; did you mean {meant}?"),
        (None, true) => format!("; a module needs a level, as {part}=debug"),
        (None, false) => String::new(),
    };
    format!(
        "{level:?} is no level{hint}; allowed are {}, alone or per module, as \
        info,qmux_dp::quic=debug",
        LEVELS.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_pairs_are_taken() {
        for good in [
            "info",
            "INFO",
            "off",
            "info,qmux_dp::quic=debug",
            "some_module=error",
            "qmux_dp[span{field=1}]=debug",
        ] {
            assert_eq!(parse(good).as_deref(), Ok(good));
            let filter = tracing_subscriber::EnvFilter::try_new(good);
            assert!(filter.is_ok(), "{good}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_what_was_meant() {
        for (bad, said) in [
            ("inof", "did you mean info?"),
            ("warning", "did you mean warn?"),
            ("info,dbug", "did you mean debug?"),
            ("qmux_dp=inof", "did you mean info?"),
            ("qmux_dp::quic", "as qmux_dp::quic=debug"),
            ("", "is no level"),
            ("info,", "is no level"),
            ("=debug", "names no module"),
            ("qmux_dp=", "is no level"),
            ("quiet", "allowed are off, error"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
