//! The options that every measurement has.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::harness::site::Overrides;
use crate::harness::spec::Spec;
use crate::harness::tunnel::Placement;
use crate::load::latency::Period;

use crate::commands::path::Path;

/// The tunnels that are measured if nothing else is asked for, as far as they are installed.
const TUNNELS_DEFAULT: &str = "raw quinn-dp quinn-dp-tuned qmux-dp rathole rathole-noise";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Tunnels: raw, qmux-dp, qmux-dp-tls (lanes over TLS), quinn-dp, quinn-dp-tuned,
    /// quinn-dp-bbr, rathole, rathole-noise, each as KIND, LABEL=KIND or LABEL=KIND:PROGRAM
    /// [default: those that are there]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) tunnels: Vec<Spec>,
    /// Tunnels that ratios refer to [default: the first one]
    #[arg(long, value_name = "LABELS")]
    baseline: Option<List<String>>,
    /// Only cases whose name contains one of these, or is one of these with = in front
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cases: Vec<String>,
    /// Cores of each side of a tunnel
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) cores: usize,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub(crate) repeats: usize,
    /// Seconds of each run
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = duration)]
    pub(crate) seconds: f64,
    /// Seconds before each of them that are not measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = duration)]
    pub(crate) warm_up: f64,
    /// What lies between the sides: loopback, veth[:MTU] or
    /// link:NAME[,loss-percent=1,delay-ms=20,…]
    #[arg(long, value_name = "PATH", default_value = "loopback")]
    pub(crate) path: Path,
    /// Which CPUs server and client get
    #[arg(long, value_enum, default_value = "apart")]
    pub(crate) placement: Placement,
    /// Where qmux-dp and quinn-dp are [default: where qmux-bench is]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// A line for [quic] in both sides' dp.toml, to try a setting out
    #[arg(long, value_name = "LINE")]
    quic: Vec<String>,
    /// A line for [udp] in both sides' dp.toml
    #[arg(long, value_name = "LINE")]
    udp: Vec<String>,
    /// A line for [client] in the client's dp.toml
    #[arg(long, value_name = "LINE")]
    client: Vec<String>,
    /// Write JSON, Markdown and charts
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Values of an option, with commas between them, each of them once: a case that there is twice
/// would have one name with two results.
#[derive(Clone, Debug)]
pub(crate) struct List<T>(Vec<T>);

impl<T> std::ops::Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: FromStr<Err: fmt::Display> + PartialEq + fmt::Display> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split(',').map(|it| {
            let wrong = |error| format!("{it:?}: {error}");
            it.parse().map_err(wrong)
        });
        let values = parsed.collect::<Result<Vec<T>, _>>()?;
        match repeated(&values) {
            Some(twice) => Err(format!("{twice} is given twice; once is enough")),
            None => Ok(Self(values)),
        }
    }
}

/// The first of these that is there before already.
pub(crate) fn repeated<T: PartialEq>(values: &[T]) -> Option<&T> {
    let mut numbered = values.iter().enumerate();
    let found = numbered.find(|(at, value)| values[..*at].contains(value));
    found.map(|(_, value)| value)
}

/// A mistake on the command line that shows only when all of it is known.
#[derive(Clone, Debug)]
pub(crate) struct Mistake(pub(crate) String);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!("{text:?} must be a whole number from 1")),
    }
}

/// The longest run: a day.
const SECONDS_MAX: f64 = 86_400.0;

fn duration(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{text:?} must be a number from 0 to {SECONDS_MAX}")),
    }
}

impl Common {
    pub(crate) fn specs(&self) -> Result<Vec<Spec>> {
        let programs = self.programs();
        let is_there = |spec: &Spec| {
            spec.kind.is_raw() || spec.program(&programs).is_some_and(|it| it.is_file())
        };
        if self.tunnels.is_empty() {
            let specs = TUNNELS_DEFAULT.split(' ').map(str::parse);
            return Ok(specs.flatten().filter(is_there).collect());
        }
        for (index, spec) in self.tunnels.iter().enumerate() {
            let (label, programs) = (&spec.label, programs.display());
            ensure!(
                is_there(spec),
                Mistake(format!(
                    "--tunnels: the program of {label} is neither in {programs} nor in PATH"
                ))
            );
            let mut before = self.tunnels[..index].iter();
            ensure!(
                before.all(|it| it.label != *label),
                Mistake(format!(
                    "--tunnels: two are called {label}; write LABEL=KIND:PROGRAM"
                ))
            );
        }
        Ok(self.tunnels.clone())
    }

    /// The same with tunnels alone, for what is counted of processes: without a tunnel there are
    /// none.
    pub(crate) fn with_processes(&self, what: &str) -> Result<Self> {
        if let Some(Spec { label, .. }) = self.tunnels.iter().find(|it| it.kind.is_raw()) {
            bail!(Mistake(format!(
                "--tunnels: {label} has no process whose {what} could be counted"
            )));
        }
        let mut common = self.clone();
        common.tunnels = self.specs()?;
        common.tunnels.retain(|spec| !spec.kind.is_raw());
        ensure!(
            !common.tunnels.is_empty(),
            Mistake(format!(
                "--tunnels: there is no tunnel's program in {}; build them, or name them as \
                 KIND:PROGRAM",
                self.programs().display()
            ))
        );
        Ok(common)
    }

    pub(crate) fn baselines(&self, specs: &[Spec]) -> Result<Vec<String>> {
        let labels = specs.iter().map(|spec| spec.label.clone());
        let Some(baseline) = &self.baseline else {
            return Ok(labels.take(1).collect());
        };
        for wanted in baseline.iter() {
            ensure!(
                labels.clone().any(|label| label == *wanted),
                Mistake(format!("--baseline: {wanted} is not among the tunnels"))
            );
        }
        Ok(baseline.to_vec())
    }

    pub(crate) fn wants(&self, case: &str) -> bool {
        let matches = |part: &String| match part.strip_prefix('=') {
            Some(name) => case == name,
            None => case.contains(part.as_str()),
        };
        self.cases.is_empty() || self.cases.iter().any(matches)
    }

    pub(crate) fn programs(&self) -> PathBuf {
        let programs = self.programs.clone();
        programs.unwrap_or_else(qmux_harness::own_directory)
    }

    pub(crate) fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        for (section, lines) in [
            ("quic", &self.quic),
            ("udp", &self.udp),
            ("client", &self.client),
        ] {
            lines.iter().for_each(|line| overrides.add(section, line));
        }
        overrides
    }

    pub(crate) fn measure(&self) -> Duration {
        self.period().measure
    }

    pub(crate) fn warm_up(&self) -> Duration {
        self.period().warm_up
    }

    pub(crate) fn period(&self) -> Period {
        Period {
            warm_up: Duration::from_secs_f64(self.warm_up),
            measure: Duration::from_secs_f64(self.seconds),
        }
    }
}
