//! The metrics as text: OpenMetrics for clients that ask for it, Prometheus' older format for all
//! others.
//!
//! Every value is read from its owner on request; nothing is collected in between.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::measurements::{Expiries, Histograms};
use super::service_metrics::ServiceMetrics;
use super::services::ServiceStates;
use super::status_json::commit;
use crate::core::counters::CoreCounters;
use crate::core::{Cluster, memory};
use crate::process::status::Status;
use crate::process::{access_log, logging};
use crate::server::ServerShared;
use crate::sys::process;

/// The prefix of each of our own names.
const PREFIX: &str = "qmux_dp";

/// The format of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Version 1.0.0.
    OpenMetrics,
    /// Version 0.0.4.
    Prometheus,
}

impl Format {
    /// The format for the values of a request's Accept headers.
    pub(super) fn wanted_by<'a>(mut accept: impl Iterator<Item = &'a str>) -> Format {
        if accept.any(|value| value.contains("application/openmetrics-text")) {
            Format::OpenMetrics
        } else {
            Format::Prometheus
        }
    }

    /// The content type of the answer.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// All metrics as text.
///
/// # Errors
/// None that can happen when writing to memory.
pub(super) fn encode(status: &Status, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics(status.started.1)));
    let ours = registry.sub_registry_with_prefix(PREFIX);
    ours.register_collector(Box::new(StateMetrics::of(status)));
    ours.register_collector(Box::new(Counters(Arc::clone(&status.cluster))));
    ours.register_collector(Box::new(Histograms(Arc::clone(&status.cluster))));
    ours.register_collector(Box::new(Expiries::of(&status.certificates)));
    ours.register_collector(Box::new(LogMetrics));
    if let Some(client) = &status.client {
        let services = Arc::clone(&client.settings().services);
        ours.register_collector(Box::new(ServiceMetrics(services)));
    }
    let mut text = String::with_capacity(64 << 10);
    match format {
        Format::OpenMetrics => text::encode(&mut text, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut text, &registry)?,
    }
    Ok(text)
}

/// One value of a family.
pub(super) fn gauge(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: f64,
) -> fmt::Result {
    ConstGauge::new(value).encode(family.encode_family(labels)?)
}

/// A gauge without labels.
fn lone_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> fmt::Result {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(family)
}

// ---- counters ----

/// The counters of the cores.
#[derive(Debug)]
struct Counters(Arc<Cluster>);

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let columns: Vec<Vec<u64>> = self.0.counters.iter().map(|core| values(core)).collect();
        let mut row = 0;
        let mut result = Ok(());
        CoreCounters::default().for_each(|name, help, _| {
            if result.is_ok() {
                let values = columns.iter().map(|column| column[row]);
                result = counter(&mut encoder, name, help, values);
            }
            row += 1;
        });
        result
    }
}

fn values(counters: &CoreCounters) -> Vec<u64> {
    let mut values = Vec::new();
    counters.for_each(|_, _, value| values.push(value));
    values
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    per_core: impl Iterator<Item = u64>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (core, value) in per_core.enumerate() {
        ConstCounter::new(value).encode(family.encode_family(&[("core", core)])?)?;
    }
    Ok(())
}

// ---- the log ----

/// The counters of lines of the log, which belong to no core.
#[derive(Debug)]
struct LogMetrics;

impl Collector for LogMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (dropped, failed) = logging::lost();
        let (access_dropped, access_failed) = access_log::lost();
        let known = [
            (
                "access_log_lines_dropped",
                "Lines of the access log dropped because it is written too slowly.",
                access_dropped,
            ),
            (
                "access_log_lines_failed",
                "Lines of the access log that could not be written, as on a full disk.",
                access_failed,
            ),
            (
                "log_lines_dropped",
                "Lines of the log dropped because standard error takes them too slowly.",
                dropped,
            ),
            (
                "log_lines_failed",
                "Lines of the log lost because standard error is closed, full or broken.",
                failed,
            ),
        ];
        for (name, help, value) in known {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(family)?;
        }
        Ok(())
    }
}

// ---- state ----

/// The state of the process.
#[derive(Debug)]
struct StateMetrics {
    ready: bool,
    draining: bool,
    uptime_seconds: f64,
    stuck: Vec<(usize, bool)>,
    longest_turns: Vec<Duration>,
    services: Vec<ServiceStates>,
    client_lanes: Option<usize>,
    client_lanes_wanted: Option<usize>,
    /// Lanes over TLS, of the client and of the server.
    lanes_over_tls: [Option<usize>; 2],
    /// Configurations taken up, taken up incompletely, and refused.
    reloads: [(&'static str, u64); 3],
}

impl StateMetrics {
    fn of(status: &Status) -> StateMetrics {
        let stuck = status.stuck_cores();
        let server = status.server.as_deref();
        StateMetrics {
            ready: status.not_ready(1).is_empty(),
            draining: status.readiness.is_draining(),
            uptime_seconds: status.started.0.elapsed().as_secs_f64(),
            stuck: (0..status.cluster.cores())
                .map(|core| (core, stuck.contains(&core)))
                .collect(),
            longest_turns: status.cluster.turns.iter().map(|turn| turn.get()).collect(),
            services: server.map_or_else(Vec::new, |server| ServiceStates::of(server).into()),
            client_lanes: status
                .client
                .is_some()
                .then(|| status.readiness.client_lanes()),
            client_lanes_wanted: status.client.as_ref().map(|client| client.lanes_wanted()),
            lanes_over_tls: [
                status.client.as_ref().map(|client| client.lanes_over_tls()),
                server.map(ServerShared::lanes_over_tls),
            ],
            reloads: [
                ("done", status.reloads.done.load(Ordering::Relaxed)),
                (
                    "incomplete",
                    status.reloads.incomplete.load(Ordering::Relaxed),
                ),
                ("refused", status.reloads.refused.load(Ordering::Relaxed)),
            ],
        }
    }
}

impl Collector for StateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        encoder
            .encode_descriptor("build", "Which program this is.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("commit", commit())])?;
        let flag = |value| if value { 1.0 } else { 0.0 };
        lone_gauge(
            encoder,
            "ready",
            "1 while /readyz says that visitors or flows are welcome.",
            flag(self.ready),
        )?;
        lone_gauge(
            encoder,
            "draining",
            "1 once the process has been told to stop.",
            flag(self.draining),
        )?;
        lone_gauge(
            encoder,
            "uptime_seconds",
            "Time since the start.",
            self.uptime_seconds,
        )?;
        lone_gauge(
            encoder,
            "memory_held_bytes",
            "Memory that flows hold.",
            memory::held_bytes() as f64,
        )?;
        lone_gauge(
            encoder,
            "memory_limit_bytes",
            "Memory that flows may hold; near it those that stall end, the most stalled first.",
            memory::limit_bytes() as f64,
        )?;
        let mut family = encoder.encode_descriptor(
            "reloads",
            "Configurations read again while running: taken up, taken up but not everywhere, or refused as unusable.",
            None,
            MetricType::Counter,
        )?;
        for (result, count) in self.reloads {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "core_stuck",
            "1 while the core makes no progress.",
            None,
            MetricType::Gauge,
        )?;
        for (core, stuck) in &self.stuck {
            gauge(&mut family, &[("core", *core)], flag(*stuck))?;
        }
        let mut family = encoder.encode_descriptor(
            "core_turn_max_seconds",
            "The longest time between two looks of the busy core at its timers, of the last one to two minutes.",
            None,
            MetricType::Gauge,
        )?;
        for (core, turn) in self.longest_turns.iter().enumerate() {
            gauge(&mut family, &[("core", core)], turn.as_secs_f64())?;
        }
        for services in &self.services {
            services.encode(encoder)?;
        }
        if let Some(lanes) = self.client_lanes {
            let help = "Lanes of this client that are registered with a server.";
            lone_gauge(encoder, "client_lanes", help, lanes as f64)?;
        }
        let names = ["client_lanes_over_tls", "server_lanes_over_tls"];
        for (name, lanes) in names.into_iter().zip(self.lanes_over_tls) {
            if let Some(lanes) = lanes {
                let help = "Lanes that TLS over TCP carries, because UDP does not get through.";
                lone_gauge(encoder, name, help, lanes as f64)?;
            }
        }
        if let Some(lanes) = self.client_lanes_wanted {
            let help = "Lanes that this client is to have to all servers: what lanes in [client] says, or what they are needed for.";
            lone_gauge(encoder, "client_lanes_wanted", help, lanes as f64)?;
        }
        Ok(())
    }
}

// ---- the process ----

/// The metrics that every Prometheus client library has for a process; contains its start.
#[derive(Debug)]
struct ProcessMetrics(SystemTime);

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let since_epoch = self.0.duration_since(SystemTime::UNIX_EPOCH);
        lone_gauge(
            encoder,
            "process_start_time_seconds",
            "Start of the process, in seconds since 1970.",
            since_epoch.map_or(0.0, |since| since.as_secs_f64()),
        )?;
        let cpu = encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time used by all threads.",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(process::cpu_time().as_secs_f64()).encode(cpu)?;
        let usage = process::usage();
        let known: [(&str, &str, Option<u64>); 3] = [
            (
                "process_resident_memory_bytes",
                "Resident memory.",
                usage.resident_bytes,
            ),
            (
                "process_open_fds",
                "Open file descriptors.",
                usage.open_files,
            ),
            (
                "process_max_fds",
                "File descriptors that may be open.",
                usage.open_files_max,
            ),
        ];
        for (name, help, value) in known {
            if let Some(value) = value {
                lone_gauge(encoder, name, help, value as f64)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::process::status::fixture::client_of_two_cores;

    #[test]
    fn every_counter_of_every_core_is_there_with_its_explanation() {
        let status = client_of_two_cores();
        status.cluster.counters[1].tcp_bytes_in.add(42);
        for format in [Format::OpenMetrics, Format::Prometheus] {
            let text = encode(&status, format).expect("into memory");
            let lines: Vec<&str> = text.lines().collect();
            CoreCounters::default().for_each(|name, help, _| {
                let value = if name == "tcp_bytes_in" { 42 } else { 0 };
                let wanted = format!("qmux_dp_{name}_total{{core=\"1\"}} {value}");
                assert!(lines.contains(&wanted.as_str()), "{wanted}\n{text}");
                assert!(help.ends_with('.') && text.contains(help), "{name}: {help}");
            });
            assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
        }
    }

    #[test]
    fn the_longest_turn_of_every_core_is_shown_in_seconds() {
        let status = client_of_two_cores();
        status.cluster.turns[1].note(Duration::from_millis(250));
        let text = encode(&status, Format::Prometheus).expect("into memory");
        for line in ["{core=\"0\"} 0.0", "{core=\"1\"} 0.25"] {
            let line = format!("qmux_dp_core_turn_max_seconds{line}");
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn histograms_count_the_values_of_all_cores_up_to_each_bound() {
        let status = client_of_two_cores();
        for (core, seconds) in [(0, 0.0004), (1, 0.002), (1, 100.0)] {
            status.cluster.histograms[core]
                .dial_seconds
                .observe(seconds);
        }
        let text = encode(&status, Format::Prometheus).expect("into memory");
        for line in [
            "# TYPE qmux_dp_dial_seconds histogram",
            "qmux_dp_dial_seconds_bucket{le=\"0.0005\"} 1",
            "qmux_dp_dial_seconds_bucket{le=\"0.0025\"} 2",
            "qmux_dp_dial_seconds_bucket{le=\"30\"} 2",
            "qmux_dp_dial_seconds_bucket{le=\"+Inf\"} 3",
            "qmux_dp_dial_seconds_count 3",
            "qmux_dp_dial_seconds_sum 100.0024",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_program_and_its_certificates_are_shown() {
        let text = encode(&client_of_two_cores(), Format::Prometheus).expect("into memory");
        let build = text
            .lines()
            .find(|line| line.starts_with("qmux_dp_build_info{"));
        let build = build.unwrap_or_else(|| panic!("{text}"));
        assert!(
            build.contains("version=\"") && build.contains("commit=\""),
            "{build}"
        );
        let expiry = "qmux_dp_certificate_expiry_seconds{file=";
        assert_eq!(text.lines().filter(|it| it.starts_with(expiry)).count(), 2);
    }

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        let prometheus_server = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        for (accept, expected) in [
            (prometheus_server, Format::OpenMetrics),
            ("text/plain", Format::Prometheus),
            ("*/*", Format::Prometheus),
        ] {
            assert_eq!(Format::wanted_by([accept].into_iter()), expected);
        }
        assert_eq!(Format::wanted_by([].into_iter()), Format::Prometheus);
    }

    #[test]
    fn the_process_shows_what_it_uses() {
        let text = encode(&client_of_two_cores(), Format::Prometheus).expect("into memory");
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_cpu_seconds_total",
            "process_start_time_seconds",
        ] {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            assert!(value.is_some_and(|value| value > 0.0), "{name}\n{text}");
        }
    }

    /// Measured beside those in `costs`: an answer of a machine with 64 cores. The cores notice
    /// only that their counters are read.
    #[test]
    #[ignore = "measures"]
    fn what_an_answer_costs() {
        let status = Status {
            cluster: Arc::new(Cluster::new(64)),
            ..client_of_two_cores()
        };
        let ns = crate::costs::each_ns(|| {
            std::hint::black_box(encode(&status, Format::Prometheus).expect("into memory"));
        });
        println!("/metrics of 64 cores: {:.0} µs", ns / 1e3);
    }
}
