//! Which tunnels are measured, as given on the command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, ensure};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    name: &'static str,
    /// `None` if there is no tunnel: visitors reach the service itself.
    program: Option<&'static str>,
    /// A line of dp.toml that this kind has unless its key is set: section, key, value.
    pub(super) own: Option<(&'static str, &'static str, &'static str)>,
    /// Whether the baseline gets qmux-dp's settings.
    pub(super) is_tuned: bool,
}

impl Kind {
    const fn new(name: &'static str, program: Option<&'static str>) -> Self {
        Self {
            name,
            program,
            own: None,
            is_tuned: false,
        }
    }

    const fn with(mut self, section: &'static str, key: &'static str, value: &'static str) -> Self {
        self.own = Some((section, key, value));
        self
    }

    const fn tuned(mut self) -> Self {
        self.is_tuned = true;
        self
    }

    pub(crate) fn is_raw(&self) -> bool {
        self.program.is_none()
    }

    pub(super) fn is_qmux_dp(&self) -> bool {
        self.program == Some(QMUX_DP)
    }

    pub(super) fn is_rathole(&self) -> bool {
        self.program == Some("rathole")
    }

    /// Whether it is rathole with its noise transport rather than in plain text.
    pub(super) fn has_noise(&self) -> bool {
        self.name == NOISE
    }
}

const QMUX_DP: &str = "qmux-dp";
const NOISE: &str = "rathole-noise";

/// All of them. qmux-dp-tls has its lanes over TLS, rathole without a further word is in plain
/// text, and quinn-dp has quinn's defaults. Tuned, it has qmux-dp's settings, and cubic, for
/// quinn's BBR is experimental and varies by a factor of three between runs on loopback, where
/// cubic does not; with BBR it is for links that lose packets.
static KINDS: [Kind; 8] = [
    Kind::new("raw", None),
    Kind::new("qmux-dp", Some(QMUX_DP)),
    Kind::new("qmux-dp-tls", Some(QMUX_DP)).with("client.servers", "transport", "tls"),
    Kind::new("quinn-dp", Some("quinn-dp")),
    Kind::new("quinn-dp-tuned", Some("quinn-dp"))
        .with("quic", "congestion_control", "cubic")
        .tuned(),
    Kind::new("quinn-dp-bbr", Some("quinn-dp"))
        .with("quic", "congestion_control", "bbr2")
        .tuned(),
    Kind::new("rathole", Some("rathole")),
    Kind::new(NOISE, Some("rathole")),
];

/// One tunnel under test: `KIND`, `LABEL=KIND` or `LABEL=KIND:PROGRAM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub(crate) label: String,
    pub(crate) kind: &'static Kind,
    program: Option<PathBuf>,
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (label, rest) = text
            .split_once('=')
            .map_or((None, text), |(label, rest)| (Some(label), rest));
        let (name, program) = rest
            .split_once(':')
            .map_or((rest, None), |(name, program)| (name, Some(program.into())));
        let kind = KINDS.iter().find(|kind| kind.name == name);
        let kind = kind.with_context(|| {
            let known = KINDS.each_ref().map(|kind| kind.name).join(", ");
            format!("unknown tunnel {name:?}; there are {known}")
        })?;
        let label = label.unwrap_or(name).to_owned();
        ensure!(
            !label.is_empty(),
            "{text:?} has an empty label; write LABEL=KIND or LABEL=KIND:PROGRAM"
        );
        ensure!(
            !kind.is_raw() || program.is_none(),
            "{text:?} names a program, but raw means that there is none"
        );
        Ok(Self {
            label,
            kind,
            program,
        })
    }
}

impl Spec {
    /// Whether a program was named, which may be another build than this one.
    pub(crate) fn names_program(&self) -> bool {
        self.program.is_some()
    }

    /// The program of this tunnel: the one that was named, else one beside this program, else one
    /// in `PATH`. `None` if there is none or needs to be none.
    pub(crate) fn program(&self, beside: &Path) -> Option<PathBuf> {
        if let Some(program) = &self.program {
            return Some(program.clone());
        }
        let name = self.kind.program?;
        let built = Some(beside.join(name)).filter(|it| it.is_file());
        built.or_else(|| qmux_harness::find(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_its_own_label_and_two_builds_of_one_kind_have_others() {
        let program = "/tmp/old/qmux-dp";
        for (text, label, name, program) in [
            ("quinn-dp-tuned", "quinn-dp-tuned", "quinn-dp-tuned", None),
            (
                "before=qmux-dp:/tmp/old/qmux-dp",
                "before",
                "qmux-dp",
                Some(program),
            ),
        ] {
            let spec: Spec = text.parse().expect("a tunnel");
            assert_eq!((spec.label.as_str(), spec.kind.name), (label, name));
            assert_eq!(spec.program, program.map(PathBuf::from));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, wanted) in [
            ("wireguard", "rathole-noise"),
            ("=raw", "empty label"),
            ("raw:/bin/true", "names a program"),
        ] {
            let error = text.parse::<Spec>().expect_err("a mistake");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
