//! What was measured on and with: without it a number means nothing.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use procfs::{CpuInfo, Current as _, LoadAverage, Meminfo};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use super::spec::Spec;
use qmux_harness::Launch;

/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    /// What the cheapest system call takes (`getppid`), in ns: it differs by a factor of ten
    /// between machines.
    pub(crate) system_call_ns: f64,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    /// The largest buffers that sockets may ask for, in bytes: receive, send.
    pub(crate) socket_buffers_max: (u64, u64),
    /// The congestion control of the kernel's TCP, which raw connections and services have.
    pub(crate) tcp_congestion_control: String,
    /// The load average of the last minute before the measurement: what else ran.
    pub(crate) load_average_before: f64,
    /// The commit of the source, with a mark if the source differs from it.
    pub(crate) commit: String,
    pub(crate) versions: Vec<String>,
}

impl Machine {
    pub(crate) fn describe(specs: &[Spec], programs: &Path) -> Self {
        let cpu = CpuInfo::current().ok();
        let cpu = cpu.and_then(|it| cpu_name(&it.get_info(0)?));
        let mut files: Vec<_> = specs.iter().filter_map(|it| it.program(programs)).collect();
        files.extend(qmux_harness::find("iperf3"));
        files.dedup();
        Self {
            date: now(),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            cpu: cpu.unwrap_or_else(|| "unknown".into()),
            system_call_ns: system_call_ns(),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            memory_bytes: Meminfo::current().map_or(0, |it| it.mem_total),
            socket_buffers_max: (socket_buffer_max("rmem"), socket_buffer_max("wmem")),
            tcp_congestion_control: read_line("/proc/sys/net/ipv4/tcp_congestion_control"),
            load_average_before: load_average(),
            commit: commit(),
            versions: files.iter().filter_map(|file| version(file)).collect(),
        }
    }

    pub(crate) fn summary(&self) -> String {
        let (kind, gib, price) = (self.kind(), self.memory_bytes >> 30, self.system_call_ns);
        format!("{kind}, {gib} GiB, {price:.0} ns per getppid")
    }

    pub(crate) fn kind(&self) -> String {
        let Self {
            cpus, cpu, kernel, ..
        } = self;
        format!("{cpus} × {cpu}, Linux {kernel}")
    }
}

/// The name with the numbers of its kind, for clouds give CPUs of several kinds one name.
fn cpu_name(of_cpu: &HashMap<&str, &str>) -> Option<String> {
    let name = of_cpu.get("model name")?;
    let numbers = of_cpu.get("cpu family").zip(of_cpu.get("model"));
    Some(match numbers {
        Some((family, model)) => format!("{name} (family {family}, model {model})"),
        None => (*name).to_owned(),
    })
}

/// The price of a system call that does next to nothing: the best of some rounds, for what
/// disturbs one only adds to it.
fn system_call_ns() -> f64 {
    const CALLS: u32 = 10_000;
    const ROUNDS: usize = 20;
    let round = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(rustix::process::getppid());
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// The load average of the last minute, with the two digits that the kernel gives.
fn load_average() -> f64 {
    let one = LoadAverage::current().map_or(0.0, |it| f64::from(it.one));
    (one * 100.0).round() / 100.0
}

/// The largest receive (`rmem`) or send (`wmem`) buffer that a socket may ask for, in bytes.
pub(crate) fn socket_buffer_max(which: &str) -> u64 {
    let text = read_line(&format!("/proc/sys/net/core/{which}_max"));
    text.parse().unwrap_or_default()
}

/// The present date and the commit of the source, as a report describes its machine.
pub(crate) fn date_and_commit() -> (String, String) {
    (now(), commit())
}

fn now() -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let now = OffsetDateTime::now_utc().format(&format);
    now.unwrap_or_default()
}

fn read_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn git(words: &str) -> Option<String> {
    let launch = Launch::new("git", "git").args(["-C", env!("CARGO_MANIFEST_DIR")]);
    let output = launch.words(words).output(VERSION_LIMIT).ok()?;
    Some(output.trim().to_owned())
}

fn commit() -> String {
    let Some(commit) = git("rev-parse --short=10 HEAD").filter(|it| !it.is_empty()) else {
        return "unknown".into();
    };
    // What is not tracked was hardly built.
    match git("status --porcelain --untracked-files=no") {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}+changes"),
    }
}

fn version(program: &Path) -> Option<String> {
    let launch = Launch::new("a version", program).args(["--version"]);
    let output = launch.output(VERSION_LIMIT).ok()?;
    let name = program.file_name()?.to_string_lossy();
    Some(format!("{name} {}", version_in(&output, &name)?))
}

/// The version in what `--version` prints: in a line of its own name for rathole, else in the first
/// line, behind the program's name.
fn version_in<'a>(output: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    let named = lines.find_map(|line| line.strip_prefix("Build Version:"));
    let line = named.or_else(|| output.lines().find(|line| !line.trim().is_empty()))?;
    let line = line.trim();
    Some(line.strip_prefix(name).unwrap_or(line).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_described() {
        let it = Machine::describe(&[], Path::new("/nowhere"));
        assert!(it.cpus > 0 && it.memory_bytes > 0, "{it:?}");
        assert!(
            it.kernel.contains('.') && it.date.ends_with("UTC"),
            "{it:?}"
        );
        assert!(it.system_call_ns > 0.0, "{it:?}");
        assert!(it.load_average_before.to_string().len() <= 7, "{it:?}");
        assert!(it.summary().contains("ns per getppid"), "{it:?}");
    }

    #[test]
    fn kinds_of_cpus_with_one_name_are_told_apart() {
        let mut of_cpu = HashMap::from([("model name", "AMD EPYC")]);
        assert_eq!(cpu_name(&of_cpu).as_deref(), Some("AMD EPYC"));
        of_cpu.extend([("cpu family", "26"), ("model", "2")]);
        let name = cpu_name(&of_cpu);
        assert_eq!(name.as_deref(), Some("AMD EPYC (family 26, model 2)"));
    }

    #[test]
    fn versions_are_found() {
        let rathole = "rathole \n\nBuild Timestamp:     2026\nBuild Version:       0.5.0\n";
        for (output, name, wanted) in [
            ("qmux-dp 0.1.0\n", "qmux-dp", Some("0.1.0")),
            (
                "iperf 3.12 (cJSON)\nLinux x\n",
                "iperf3",
                Some("iperf 3.12 (cJSON)"),
            ),
            (rathole, "rathole", Some("0.5.0")),
            ("\n", "x", None),
        ] {
            assert_eq!(version_in(output, name), wanted);
        }
    }
}
