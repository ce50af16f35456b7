//! Suggestions for misspelled words: the nearest of the known ones.

/// A word counts as mistyped if it needs at most one edit per this many letters of the longer word.
const LETTERS_PER_EDIT: usize = 3;

/// The candidate that `word` was probably meant to be, if any is near enough.
///
/// Case, underscores and hyphens do not count, so that QMux's `maxidletimeout` finds
/// `max_idle_timeout`.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = plain(word);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let known = plain(candidate);
            let edits = strsim::damerau_levenshtein(&wanted, &known);
            let edits_max =
                (wanted.chars().count().max(known.chars().count()) / LETTERS_PER_EDIT).max(1);
            let prefix =
                wanted.len() >= 4 && (known.starts_with(&wanted) || known.ends_with(&wanted));
            (edits <= edits_max || prefix).then_some((edits, candidate))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn plain(word: &str) -> String {
    word.chars()
        .filter(|character| !matches!(character, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 5] = [
        "heartbeat_interval",
        "health_timeout",
        "drain_timeout",
        "max_idle_timeout",
        "token",
    ];

    #[test]
    fn typing_mistakes_find_their_key() {
        for (typed, meant) in [
            ("heartbeat_intervall", "heartbeat_interval"),
            ("helath_timeout", "health_timeout"),
            ("maxidletimeout", "max_idle_timeout"),
            ("Drain-Timeout", "drain_timeout"),
            ("tokne", "token"),
            ("heartbeat", "heartbeat_interval"),
        ] {
            assert_eq!(nearest(typed, KEYS), Some(meant), "{typed}");
        }
    }

    #[test]
    fn a_word_far_from_all_gets_no_suggestion() {
        for typed in ["compression", "x", "", "timeout_of_nothing_at_all"] {
            assert_eq!(nearest(typed, KEYS), None, "{typed}");
        }
    }
}
