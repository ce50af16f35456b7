//! `${NAME}` in a string of the file stands for the value of an environment variable. `$${` is a
//! literal `${`.
//!
//! Variables are replaced after the file was parsed, so that a value cannot bring keys or quotes of
//! its own with it; and only once, so that a value that contains `${` stays as it is.

use std::borrow::Cow;
use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::report::Report;

/// The most bytes that one string may become: the longest file that a key names may have as many.
const EXPANDED_BYTES_MAX: usize = 1 << 20;

/// Which strings of a file are expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Every one.
    Whole,
    /// Those of the section with this name.
    Section(&'static str),
}

/// Expands the strings of a part of `root`. Returns false if one cannot be: then the report says
/// which and why.
pub(crate) fn strings(
    root: &mut DeTable<'_>,
    part: Part,
    report: &Report<'_>,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> bool {
    let walk = Walk {
        report,
        environment,
    };
    match part {
        Part::Whole => walk.table(root, ""),
        Part::Section(name) => {
            let mut entries = root.iter_mut();
            let found = entries.find(|(key, _)| key.get_ref() == name);
            found.is_none_or(|(_, value)| walk.value(value, name))
        }
    }
}

struct Walk<'a> {
    report: &'a Report<'a>,
    environment: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Walk<'_> {
    fn table(&self, table: &mut DeTable<'_>, name: &str) -> bool {
        let mut all = true;
        for (key, value) in table.iter_mut() {
            let key: &str = key.get_ref();
            let full = if name.is_empty() {
                key.to_owned()
            } else {
                format!("{name}.{key}")
            };
            all &= self.value(value, &full);
        }
        all
    }

    fn value(&self, value: &mut Spanned<DeValue<'_>>, key: &str) -> bool {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => self.table(table, key),
            DeValue::Array(array) => {
                let mut all = true;
                for (index, element) in array.iter_mut().enumerate() {
                    all &= self.value(element, &format!("{key}[{index}]"));
                }
                all
            }
            DeValue::String(text) if text.contains("${") => {
                match expand(text, self.environment) {
                    Ok(expanded) => *text = Cow::Owned(expanded),
                    Err(message) => {
                        self.report.problem(key, &span, message);
                        return false;
                    }
                }
                true
            }
            _ => true,
        }
    }
}

/// The text with its variables replaced; or why that cannot be done, without a word of the text
/// itself, which may be a secret.
fn expand(text: &str, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(plain) = before.strip_suffix('$') {
            out.push_str(plain);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let (name, behind) = variable(after)?;
        let value = environment(name).ok_or_else(|| {
            format!(
                "the environment variable {name} is not set; set it, or write $${{ where the text \
                 is to have ${{ itself"
            )
        })?;
        let value = value
            .to_str()
            .ok_or_else(|| format!("the environment variable {name} is not UTF-8 text"))?;
        if out.len() + value.len() + behind.len() > EXPANDED_BYTES_MAX {
            return Err(format!(
                "the environment variable {name} makes it longer than {} KiB",
                EXPANDED_BYTES_MAX >> 10
            ));
        }
        out.push_str(value);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// The variable's name at the front of what follows `${`, and the text behind its brace.
fn variable(after: &str) -> Result<(&str, &str), String> {
    let end = after
        .bytes()
        .position(|byte| !(byte.is_ascii_alphanumeric() || byte == b'_'))
        .unwrap_or(after.len());
    let (name, behind) = after.split_at(end);
    let starts_well = name
        .bytes()
        .next()
        .is_some_and(|byte| !byte.is_ascii_digit());
    match behind.strip_prefix('}') {
        Some(behind) if starts_well => Ok((name, behind)),
        _ => Err(
            "holds ${ without the name of an environment variable and }; it must be as in \
             ${NAME}, or $${ where the text is to have ${ itself"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(name: &str) -> Option<OsString> {
        match name {
            "A" => Some("one".into()),
            "_b2" => Some("${A}".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        }
    }

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, &known)
    }

    #[test]
    fn variables_are_replaced_once_and_two_dollars_stand_for_one() {
        for (text, value) in [
            ("plain $ and } and {", "plain $ and } and {"),
            ("${A}", "one"),
            ("<${A}|${EMPTY}|${A}>", "<one||one>"),
            ("${_b2}", "${A}"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("a$${", "a${"),
            ("$$", "$$"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_variable_or_not_set_is_told() {
        for (text, part) in [
            ("${B}", "variable B is not set"),
            ("x${}", "without the name"),
            ("${A", "without the name"),
            ("${1A}", "without the name"),
            ("${A B}", "without the name"),
            ("${", "without the name"),
        ] {
            let message = expanded(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_written_with_two_dollars(text in ".*") {
            // `${` needs another dollar only where none precedes it.
            let text = text.replace('$', "");
            let written = format!("{text}$${{{text}");
            prop_assert_eq!(expanded(&written), Ok(format!("{text}${{{text}")));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[${}A_b2 ]*") {
            let _ = expanded(&text);
        }
    }
}
