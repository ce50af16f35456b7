//! Typed access to one table of the file.
//!
//! A [`Section`] answers each question about a key with a checked value or with `None`; if it
//! returns `None` for a key that exists, it has put the reason into the report. It remembers which
//! keys were asked for, and [`Section::finish`] reports every other one: the code that reads a
//! section is also the list of its keys.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::report::Report;
use crate::suggest;
use crate::units;

/// One table of the file, present or not.
pub(crate) struct Section<'a> {
    report: &'a Report<'a>,
    /// Full name, as in `server.listeners[0]`; empty for the file itself.
    name: String,
    content: Content<'a>,
    /// Where the section starts; for an absent one, where the nearest present one around it starts.
    span: Range<usize>,
    known: RefCell<Vec<&'static str>>,
    known_strays: RefCell<Vec<&'static str>>,
}

#[derive(Clone, Copy)]
enum Content<'a> {
    Present(&'a DeTable<'a>),
    Absent,
    /// The section exists, but is not a table. That has been reported, so nothing in it is reported
    /// as missing.
    Broken,
}

impl<'a> Section<'a> {
    pub(crate) fn root(report: &'a Report<'a>, table: &'a DeTable<'a>) -> Self {
        Self::new(report, String::new(), Content::Present(table), 0..0)
    }

    fn new(report: &'a Report<'a>, name: String, content: Content<'a>, span: Range<usize>) -> Self {
        Self {
            report,
            name,
            content,
            span,
            known: RefCell::default(),
            known_strays: RefCell::default(),
        }
    }

    pub(crate) fn report(&self) -> &'a Report<'a> {
        self.report
    }

    /// Whether the file has this section, in whatever form.
    pub(crate) fn is_present(&self) -> bool {
        !matches!(self.content, Content::Absent)
    }

    /// Whether the file has `key`, right or wrong.
    pub(crate) fn has(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    /// The full name of a key of this section.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// Reports a problem about this section as a whole.
    pub(crate) fn problem(&self, message: impl Into<String>) {
        self.report.problem(self.name.clone(), &self.span, message);
    }

    /// Reports a problem about one key's value.
    pub(crate) fn problem_at(&self, key: &str, span: &Range<usize>, message: impl Into<String>) {
        self.report.problem(self.key(key), span, message);
    }

    /// Reports a problem with the value of `key`, of which nothing must be repeated.
    pub(crate) fn unquoted_problem_at(
        &self,
        key: &str,
        span: &Range<usize>,
        message: impl Into<String>,
    ) {
        let key = self.key(key);
        self.report.unquoted_problem(key, span, message);
    }

    /// Reports `key` as missing unless the file has it; `allowed` says what it should be.
    pub(crate) fn require(&self, key: &'static str, allowed: &str) {
        if !matches!(self.content, Content::Broken) && !self.has(key) {
            self.report.problem(
                self.key(key),
                &self.span,
                format!("is missing; it must be {allowed}"),
            );
        }
    }

    /// Reports an array that exists, but is empty.
    pub(crate) fn refuse_empty_array(&self, key: &'static str, allowed: &str) {
        if let Some(value) = self.find(key)
            && matches!(value.as_ref(), DeValue::Array(array) if array.is_empty())
        {
            self.problem_at(
                key,
                &value.span(),
                format!("is empty; it must be {allowed}"),
            );
        }
    }

    /// Warns of a key that exists, usually because it has no effect.
    pub(crate) fn warn_unused(&self, key: &'static str, why: &str) {
        if let Some(value) = self.find(key) {
            self.report.warning(&self.key(key), &value.span(), why);
        }
    }

    /// The place of a key that is unknown here, but deserves a message of its own.
    pub(crate) fn stray(&self, key: &'static str) -> Option<Range<usize>> {
        let Content::Present(table) = self.content else {
            return None;
        };
        let (found, _) = table.get_key_value(key)?;
        self.known_strays.borrow_mut().push(key);
        Some(found.span())
    }

    /// A table inside this one.
    pub(crate) fn table(&self, key: &'static str) -> Section<'a> {
        let (content, span) = match (self.content, self.find(key)) {
            (Content::Broken, _) => (Content::Broken, self.span.clone()),
            (_, None) => (Content::Absent, self.span.clone()),
            (_, Some(value)) => match value.as_ref() {
                DeValue::Table(table) => (Content::Present(table), value.span()),
                other => {
                    self.wrong_type(
                        key,
                        &value.span(),
                        other,
                        &format!("a table, as in [{}]", self.key(key)),
                    );
                    (Content::Broken, value.span())
                }
            },
        };
        Self::new(self.report, self.key(key), content, span)
    }

    /// The tables of an array of tables; none if it is absent.
    pub(crate) fn tables(&self, key: &'static str) -> Vec<Section<'a>> {
        let name = self.key(key);
        let form = format!("an array of tables, each starting with [[{name}]]");
        let Some(value) = self.find(key) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value.as_ref() else {
            self.wrong_type(key, &value.span(), value.as_ref(), &form);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let content = match element.as_ref() {
                DeValue::Table(table) => Content::Present(table),
                other => {
                    self.wrong_type(key, &element.span(), other, &form);
                    Content::Broken
                }
            };
            sections.push(Self::new(
                self.report,
                format!("{name}[{index}]"),
                content,
                element.span(),
            ));
        }
        sections
    }

    pub(crate) fn string(&self, key: &'static str, allowed: &str) -> Option<Spanned<&'a str>> {
        let value = self.find(key)?;
        if let DeValue::String(text) = value.as_ref() {
            return Some(Spanned::new(value.span(), text));
        }
        self.wrong_type(key, &value.span(), value.as_ref(), allowed);
        None
    }

    /// Reads a string that must not be empty.
    pub(crate) fn filled_string(
        &self,
        key: &'static str,
        allowed: &str,
    ) -> Option<Spanned<&'a str>> {
        let text = self.string(key, allowed)?;
        if !text.get_ref().trim().is_empty() {
            return Some(text);
        }
        self.problem_at(key, &text.span(), format!("is empty; it must be {allowed}"));
        None
    }

    /// Reads the strings of an array; `allowed` says what the whole should be. An element of
    /// another type is reported and left out.
    pub(crate) fn strings(
        &self,
        key: &'static str,
        allowed: &str,
    ) -> Option<Spanned<Vec<Spanned<&'a str>>>> {
        let value = self.find(key)?;
        let DeValue::Array(array) = value.as_ref() else {
            self.wrong_type(key, &value.span(), value.as_ref(), allowed);
            return None;
        };
        let mut texts = Vec::new();
        for (index, element) in array.iter().enumerate() {
            match element.as_ref() {
                DeValue::String(text) => texts.push(Spanned::new(element.span(), text.as_ref())),
                other => {
                    let key = format!("{key}[{index}]");
                    self.wrong_type(&key, &element.span(), other, "a string");
                }
            }
        }
        Some(Spanned::new(value.span(), texts))
    }

    pub(crate) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.find(key)?;
        let allowed = "true or false";
        match value.as_ref() {
            DeValue::Boolean(boolean) => return Some(*boolean),
            // The environment has nothing but strings.
            DeValue::String(text) if self.report.is_expanded(&value.span()) => {
                if let Ok(boolean) = text.trim().parse() {
                    return Some(boolean);
                }
                let message = format!("is no boolean; it must be {allowed}");
                self.problem_at(key, &value.span(), message);
            }
            other => self.wrong_type(key, &value.span(), other, allowed),
        }
        None
    }

    /// Reads one of a few words.
    pub(crate) fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<Spanned<T>> {
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        let allowed = words.join(" or ");
        let text = self.string(key, &allowed)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| word == text.get_ref()) {
            return Some(Spanned::new(text.span(), *choice));
        }
        let meant = suggest::nearest(text.get_ref(), choices.iter().map(|(word, _)| *word))
            .map(|word| format!(" (did you mean {word:?}?)"))
            .unwrap_or_default();
        self.problem_at(
            key,
            &text.span(),
            format!(
                "{:?} is not known{meant}; it must be {allowed}",
                text.get_ref()
            ),
        );
        None
    }

    pub(crate) fn integer(
        &self,
        key: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<Spanned<i64>> {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        let value = self.find(key)?;
        let Some(number) = self.number(value) else {
            self.wrong_type(key, &value.span(), value.as_ref(), &allowed);
            return None;
        };
        match number {
            Some(number) if range.contains(&number) => Some(Spanned::new(value.span(), number)),
            _ => {
                self.problem_at(
                    key,
                    &value.span(),
                    format!("is out of range; it must be {allowed}"),
                );
                None
            }
        }
    }

    /// The number of a value that is one by its type, or that comes from the environment, which has
    /// nothing but strings; within, `None` if it is not a whole number that fits.
    pub(crate) fn number(&self, value: &Spanned<DeValue<'_>>) -> Option<Option<i64>> {
        match value.as_ref() {
            DeValue::Integer(_) => Some(whole_number(value.as_ref())),
            DeValue::String(text) if self.report.is_expanded(&value.span()) => {
                Some(text.trim().parse().ok())
            }
            _ => None,
        }
    }

    pub(crate) fn duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Spanned<Duration>> {
        let value = self.find(key)?;
        match value.as_ref() {
            DeValue::String(text) => match units::parse_duration(text) {
                Some(duration) => {
                    self.in_range(key, value.span(), duration, &range, units::format_duration)
                }
                None => {
                    let message = format!(
                        "{text:?} is no duration; it must be {}",
                        units::DURATION_FORM
                    );
                    self.problem_at(key, &value.span(), message);
                    None
                }
            },
            // Nothing is nothing in any unit.
            DeValue::Integer(_) if whole_number(value.as_ref()) == Some(0) => {
                let zero = Duration::ZERO;
                self.in_range(key, value.span(), zero, &range, units::format_duration)
            }
            DeValue::Integer(number) => {
                let message = format!(
                    "a number needs a unit here: {:?} would be seconds",
                    format!("{number}s")
                );
                self.problem_at(key, &value.span(), message);
                None
            }
            other => {
                self.wrong_type(key, &value.span(), other, units::DURATION_FORM);
                None
            }
        }
    }

    /// Reads a size in bytes.
    pub(crate) fn size(
        &self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Spanned<u64>> {
        let value = self.find(key)?;
        let (bytes, shown) = match value.as_ref() {
            DeValue::String(text) => (units::parse_size(text), format!("{text:?}")),
            DeValue::Integer(number) => (
                whole_number(value.as_ref()).and_then(|bytes| u64::try_from(bytes).ok()),
                number.to_string(),
            ),
            other => {
                self.wrong_type(key, &value.span(), other, units::SIZE_FORM);
                return None;
            }
        };
        if let Some(bytes) = bytes {
            return self.in_range(key, value.span(), bytes, &range, units::format_size);
        }
        self.problem_at(
            key,
            &value.span(),
            format!("{shown} is no size; it must be {}", units::SIZE_FORM),
        );
        None
    }

    /// The value as it stands, for keys with a form of their own; `allowed` is for
    /// [`Section::wrong_type`].
    pub(crate) fn any(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.find(key)
    }

    /// Reports a value of the wrong type. It names the type only, because the value itself may be a
    /// secret.
    pub(crate) fn wrong_type(
        &self,
        key: &str,
        span: &Range<usize>,
        value: &DeValue<'_>,
        allowed: &str,
    ) {
        self.problem_at(
            key,
            span,
            format!("is {}; it must be {allowed}", type_name(value)),
        );
    }

    /// Reports every key that nobody asked for.
    pub(crate) fn finish(self) {
        let Content::Present(table) = self.content else {
            return;
        };
        let known = self.known.borrow();
        for (key, _) in table {
            let name: &str = key.get_ref();
            if known.contains(&name) || self.known_strays.borrow().contains(&name) {
                continue;
            }
            let hint = match suggest::nearest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean {meant:?}? "),
                None => elsewhere(name)
                    .map(|full| format!("did you mean {full:?}? "))
                    .unwrap_or_default(),
            };
            let place = if self.name.is_empty() {
                "the file".to_owned()
            } else {
                format!("[{}]", self.name)
            };
            let message = format!("unknown key; {hint}{place} may hold {}", known.join(", "));
            self.report.problem(self.key(name), &key.span(), message);
        }
    }

    fn find(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        match self.content {
            Content::Present(table) => table.get(key),
            Content::Absent | Content::Broken => None,
        }
    }

    fn in_range<T: Copy + PartialOrd>(
        &self,
        key: &str,
        span: Range<usize>,
        value: T,
        range: &RangeInclusive<T>,
        show: impl Fn(T) -> String,
    ) -> Option<Spanned<T>> {
        if range.contains(&value) {
            return Some(Spanned::new(span, value));
        }
        let (least, most) = (show(*range.start()), show(*range.end()));
        let message = format!(
            "{} is out of range; it must be from {least:?} to {most:?}",
            show(value)
        );
        self.problem_at(key, &span, message);
        None
    }
}

impl fmt::Debug for Section<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Section")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The full name of a key that exists in another section.
fn elsewhere(name: &str) -> Option<&'static str> {
    crate::keys::KEYS
        .iter()
        .copied()
        .find(|full| full.rsplit('.').next() == Some(name))
}

/// An integer's value, if it fits.
pub(crate) fn whole_number(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
