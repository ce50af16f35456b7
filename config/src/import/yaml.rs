//! A view of the YAML that remembers which keys were asked for, so that the others can be noted.

use saphyr::{MarkedYaml, YamlData, YamlLoader};
use saphyr_parser::Parser;

use super::{ImportError, Note};

/// Parses a text, of which the first document counts. Scalars stay as they are written; their type
/// depends on the key, as in Go.
pub(super) fn parse(text: &str) -> Result<MarkedYaml<'_>, ImportError> {
    let syntax = |error: &saphyr::ScanError| ImportError::Syntax {
        line: error.marker().line(),
        column: error.marker().col() + 1,
        message: error.info().to_owned(),
    };
    let mut loader: YamlLoader<'_, MarkedYaml<'_>> = YamlLoader::default();
    loader.early_parse(false);
    Parser::new_from_str(text)
        .load(&mut loader, false)
        .map_err(|error| syntax(&error))?;
    if let Some(error) = loader.error() {
        return Err(syntax(error));
    }
    loader
        .into_documents()
        .into_iter()
        .next()
        .ok_or(ImportError::NoRole)
}

/// A mapping of the YAML, and its full name.
pub(super) struct Mapping<'a> {
    name: String,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    key: String,
    line: usize,
    value: &'a MarkedYaml<'a>,
}

/// A scalar, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) text: String,
}

impl Scalar {
    /// A note about this scalar.
    pub(super) fn note(&self, message: impl Into<String>) -> Note {
        Note {
            line: Some(self.line),
            key: self.key.clone(),
            message: message.into(),
        }
    }
}

impl<'a> Mapping<'a> {
    /// The document itself, if it is a mapping.
    pub(super) fn root(node: &'a MarkedYaml<'a>) -> Option<Self> {
        Self::new(String::new(), node)
    }

    fn new(name: String, node: &'a MarkedYaml<'a>) -> Option<Self> {
        let YamlData::Mapping(mapping) = untagged(node) else {
            return None;
        };
        let entries = mapping
            .iter()
            .map(|(key, value)| Entry {
                key: text(key).unwrap_or("?").to_owned(),
                line: key.span.start.line(),
                value,
            })
            .collect();
        Some(Self { name, entries })
    }

    /// Whether `key` is there and has not been taken.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| matches(&entry.key, key))
    }

    fn take(&mut self, key: &str) -> Option<Entry<'a>> {
        let index = self
            .entries
            .iter()
            .position(|entry| matches(&entry.key, key))?;
        Some(self.entries.remove(index))
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// Takes a scalar. The result is `None` for an absent one and a null, as in Go, and for
    /// something else, which is noted.
    pub(super) fn scalar(&mut self, key: &str, notes: &mut Vec<Note>) -> Option<Scalar> {
        let entry = self.take(key)?;
        let full = self.full(&entry.key);
        match text(entry.value) {
            Some(value) if is_null(entry.value) => {
                debug_assert!(value.len() <= 4, "one of YAML's words for null");
                None
            }
            Some(value) => Some(Scalar {
                key: full,
                line: entry.line,
                text: value.to_owned(),
            }),
            None => {
                notes.push(Note {
                    line: Some(entry.line),
                    key: full,
                    message: "is not a plain value; it was left out".to_owned(),
                });
                None
            }
        }
    }

    /// Takes a mapping. The result is empty for an absent one, and for something else, which is
    /// noted.
    pub(super) fn mapping(&mut self, key: &str, notes: &mut Vec<Note>) -> Mapping<'a> {
        let empty = |name| Mapping {
            name,
            entries: Vec::new(),
        };
        let Some(entry) = self.take(key) else {
            return empty(self.full(key));
        };
        let name = self.full(&entry.key);
        if let Some(mapping) = Mapping::new(name.clone(), entry.value) {
            return mapping;
        }
        if !is_null(entry.value) {
            notes.push(Note {
                line: Some(entry.line),
                key: name.clone(),
                message: "is not a mapping; it was left out".to_owned(),
            });
        }
        empty(name)
    }

    /// Takes a list of mappings.
    pub(super) fn mappings(&mut self, key: &str, notes: &mut Vec<Note>) -> Vec<Mapping<'a>> {
        let Some(entry) = self.take(key) else {
            return Vec::new();
        };
        let name = self.full(&entry.key);
        let mut left_out = |name: String, line| {
            notes.push(Note {
                line: Some(line),
                key: name,
                message: "is not what QMux reads there; it was left out".to_owned(),
            });
        };
        let YamlData::Sequence(sequence) = untagged(entry.value) else {
            if !is_null(entry.value) {
                left_out(name, entry.line);
            }
            return Vec::new();
        };
        let mut mappings = Vec::new();
        for (index, element) in sequence.iter().enumerate() {
            let name = format!("{name}[{index}]");
            match Mapping::new(name.clone(), element) {
                Some(mapping) => mappings.push(mapping),
                None => left_out(name, element.span.start.line()),
            }
        }
        mappings
    }

    /// Notes everything that was not taken, with `why` instead of the usual words.
    pub(super) fn note_rest(self, why: &str, notes: &mut Vec<Note>) {
        for entry in &self.entries {
            let key = self.full(&entry.key);
            notes.push(Note {
                line: Some(entry.line),
                key,
                message: why.to_owned(),
            });
        }
    }

    /// Notes everything that was not taken as unknown.
    pub(super) fn finish(self, notes: &mut Vec<Note>) {
        self.note_rest(
            "is not a key of QMux that is known here; it was left out",
            notes,
        );
    }
}

/// Whether a key in the file is the one that is asked for. QMux writes some keys with underscores
/// and some without; both are accepted here.
fn matches(found: &str, asked: &str) -> bool {
    found
        .replace('_', "")
        .eq_ignore_ascii_case(&asked.replace('_', ""))
}

fn untagged<'a, 'b>(node: &'a MarkedYaml<'b>) -> &'a YamlData<'b, MarkedYaml<'b>> {
    match &node.data {
        YamlData::Tagged(_, inner) => untagged(inner),
        data => data,
    }
}

fn text<'a>(node: &'a MarkedYaml<'_>) -> Option<&'a str> {
    match untagged(node) {
        YamlData::Representation(text, _, _) => Some(text.as_ref()),
        YamlData::Value(value) => value.as_str(),
        _ => None,
    }
}

fn is_null(node: &MarkedYaml<'_>) -> bool {
    match untagged(node) {
        YamlData::Representation(text, saphyr::ScalarStyle::Plain, _) => {
            matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL")
        }
        YamlData::Value(value) => value.is_null(),
        _ => false,
    }
}
