//! Metrics of the services that this process offers as a client, each with the label `service`: as
//! many values as the configuration has services, whatever visitors or servers do.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::client::services::{Service, Services};

/// The services of the client role.
#[derive(Debug)]
pub(super) struct ServiceMetrics(pub(super) Arc<Services>);

/// A name, an explanation, and the function that returns the value.
type Known = (&'static str, &'static str, fn(&Service) -> u64);

const COUNTERS: [Known; 5] = [
    (
        "client_service_tcp_flows",
        "TCP flows that this client connected to the service.",
        |service| service.counts.tcp_flows.get(),
    ),
    (
        "client_service_udp_flows",
        "UDP flows that this client opened to the service.",
        |service| service.counts.udp_flows.get(),
    ),
    (
        "client_service_dials_failed",
        "TCP flows for which this client could not reach the service.",
        |service| service.counts.dials_failed.get(),
    ),
    (
        "client_service_flows_without_port",
        "Flows refused because no port of the service belongs to their traffic port.",
        |service| service.counts.flows_without_port.get(),
    ),
    (
        "client_service_checks_failed",
        "Checks of the service that failed.",
        |service| service.counts.checks_failed.get(),
    ),
];

impl Collector for ServiceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for service in self.0.all() {
                let labels = [("service", service.name())];
                ConstCounter::new(value(service)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "1 while this client reaches the service, as far as it knows: by TCP, or if the service speaks UDP alone, by what its visitors meet.";
        let now = Instant::now();
        let mut family =
            encoder.encode_descriptor("client_service_healthy", help, None, MetricType::Gauge)?;
        for service in self.0.all() {
            let labels = [("service", service.name())];
            let value = if service.is_up(now) { 1.0 } else { 0.0 };
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
