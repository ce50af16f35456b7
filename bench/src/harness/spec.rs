//! Which tunnels are measured, as given on the command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No tunnel: visitors reach the service itself.
    Raw,
    /// This project's.
    QmuxDp,
    /// The same with its lanes over TLS instead of QUIC.
    QmuxDpTls,
    /// The baseline with quinn's defaults.
    QuinnDp,
    /// The baseline with qmux-dp's settings, and cubic: what it is best with where little is lost.
    QuinnDpTuned,
    /// The same with quinn's BBR, for links that lose packets.
    QuinnDpBbr,
    /// rathole in plain text.
    Rathole,
    /// rathole with its noise transport.
    RatholeNoise,
}

const KINDS: [(&str, Kind); 8] = [
    ("raw", Kind::Raw),
    ("qmux-dp", Kind::QmuxDp),
    ("qmux-dp-tls", Kind::QmuxDpTls),
    ("quinn-dp", Kind::QuinnDp),
    ("quinn-dp-tuned", Kind::QuinnDpTuned),
    ("quinn-dp-bbr", Kind::QuinnDpBbr),
    ("rathole", Kind::Rathole),
    ("rathole-noise", Kind::RatholeNoise),
];

impl Kind {
    fn program_name(self) -> Option<&'static str> {
        match self {
            Self::Raw => None,
            Self::QmuxDp | Self::QmuxDpTls => Some("qmux-dp"),
            Self::QuinnDp | Self::QuinnDpTuned | Self::QuinnDpBbr => Some("quinn-dp"),
            Self::Rathole | Self::RatholeNoise => Some("rathole"),
        }
    }

    /// Whether it is configured by dp.toml.
    pub fn reads_dp_toml(self) -> bool {
        !matches!(self, Self::Raw | Self::Rathole | Self::RatholeNoise)
    }

    /// The congestion control that it gets unless it is told another. quinn's BBR is experimental
    /// and varies by a factor of three between runs on loopback, where cubic does not.
    pub(super) fn congestion_control(self) -> Option<&'static str> {
        match self {
            Self::QuinnDpTuned => Some("cubic"),
            Self::QuinnDpBbr => Some("bbr2"),
            _ => None,
        }
    }

    /// Whether the baseline gets qmux-dp's settings.
    pub(super) fn is_tuned(self) -> bool {
        matches!(self, Self::QuinnDpTuned | Self::QuinnDpBbr)
    }
}

/// One tunnel under test: `KIND`, `LABEL=KIND` or `LABEL=KIND:PROGRAM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What reports call it.
    pub label: String,
    /// What it is.
    pub kind: Kind,
    program: Option<PathBuf>,
}

/// Why a tunnel was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// There is no such kind.
    #[error("unknown tunnel {0:?}; there are {known}", known = KINDS.map(|(name, _)| name).join(", "))]
    UnknownKind(String),
    /// The label is empty.
    #[error("{0:?} has an empty label; write LABEL=KIND or LABEL=KIND:PROGRAM")]
    EmptyLabel(String),
    /// A program was named where there is none.
    #[error("{0:?} names a program, but raw means that there is none")]
    RawProgram(String),
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (label, rest) = match text.split_once('=') {
            Some((label, rest)) => (Some(label), rest),
            None => (None, text),
        };
        let (name, program) = match rest.split_once(':') {
            Some((name, program)) => (name, Some(PathBuf::from(program))),
            None => (rest, None),
        };
        let Some((_, kind)) = KINDS.into_iter().find(|(known, _)| *known == name) else {
            return Err(SpecError::UnknownKind(name.to_owned()));
        };
        let label = label.unwrap_or(name);
        if label.is_empty() {
            return Err(SpecError::EmptyLabel(text.to_owned()));
        }
        if kind == Kind::Raw && program.is_some() {
            return Err(SpecError::RawProgram(text.to_owned()));
        }
        Ok(Self {
            label: label.to_owned(),
            kind,
            program,
        })
    }
}

impl Spec {
    /// Whether a program was named, which may be another build than this one.
    pub fn names_program(&self) -> bool {
        self.program.is_some()
    }

    /// The program of this tunnel: the one that was named, else one beside this program, else one
    /// in `PATH`. `None` if there is none or needs to be none.
    pub fn program(&self, beside: &Path) -> Option<PathBuf> {
        if let Some(program) = &self.program {
            return Some(program.clone());
        }
        let name = self.kind.program_name()?;
        let built = beside.join(name);
        if built.is_file() {
            return Some(built);
        }
        qmux_harness::find(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_its_own_label() {
        let spec: Spec = "quinn-dp-tuned".parse().expect("a tunnel");
        assert_eq!(
            (spec.label.as_str(), spec.kind),
            ("quinn-dp-tuned", Kind::QuinnDpTuned)
        );
        assert_eq!(spec.program, None);
    }

    #[test]
    fn two_builds_of_one_kind_have_labels() {
        let spec: Spec = "before=qmux-dp:/tmp/old/qmux-dp".parse().expect("a tunnel");
        assert_eq!((spec.label.as_str(), spec.kind), ("before", Kind::QmuxDp));
        let program = spec.program(Path::new("/nowhere"));
        assert_eq!(program, Some(PathBuf::from("/tmp/old/qmux-dp")));
    }

    #[test]
    fn mistakes_are_named() {
        let error = "wireguard".parse::<Spec>().expect_err("no such kind");
        assert!(error.to_string().contains("rathole-noise"), "{error}");
        let error = "=raw".parse::<Spec>().expect_err("no label");
        assert_eq!(error, SpecError::EmptyLabel("=raw".into()));
        assert!("raw:/bin/true".parse::<Spec>().is_err());
    }
}
