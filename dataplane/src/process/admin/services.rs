//! The metrics of each service: its clients, and the traffic of its visitors.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::exposition::gauge;
use crate::core::service_counters::ServiceCounters;
use crate::server::bounds::{Gate, RefusalCounters};
use crate::server::pool::service::PoolTotals;
use crate::server::{ServedService, ServerShared};

/// A name, an explanation, and the function that returns the value.
type Gauge = (&'static str, String, fn(&PoolTotals) -> usize);

/// One service: its labels, clients and counters.
#[derive(Debug)]
struct ServiceState {
    labels: Vec<(&'static str, String)>,
    totals: PoolTotals,
    counters: Vec<Arc<ServiceCounters>>,
    gate: Arc<Gate>,
}

/// The services whose metrics begin with the same prefix.
#[derive(Debug)]
pub(super) struct ServiceStates {
    /// What the names of the metrics begin with: `listener` or `service`.
    prefix: &'static str,
    states: Vec<ServiceState>,
}

impl ServiceStates {
    /// The services of listeners, labelled by the listener's index and addresses, and the services
    /// with names, labelled by their names.
    pub(super) fn of(server: &ServerShared) -> [ServiceStates; 2] {
        let state = |labels, service: &ServedService| ServiceState {
            labels,
            totals: service.pool.totals(),
            counters: service.counters.clone(),
            gate: Arc::clone(&service.gate),
        };
        let (named, nameless): (Vec<_>, Vec<_>) = server
            .services()
            .into_iter()
            .partition(|(_, it)| !it.name.is_empty());
        let listeners = nameless.into_iter().enumerate().map(|(index, (door, it))| {
            let quic_addr = door.quic_addrs.first().map(ToString::to_string);
            let labels = vec![
                ("listener", index.to_string()),
                ("quic_addr", quic_addr.unwrap_or_default()),
                ("traffic_addr", it.traffic().to_string()),
            ];
            state(labels, &it)
        });
        let named = named.into_iter();
        [
            ServiceStates {
                prefix: "listener",
                states: listeners.collect(),
            },
            ServiceStates {
                prefix: "service",
                states: named
                    .map(|(_, it)| state(vec![("service", it.name.clone())], &it))
                    .collect(),
            },
        ]
    }

    /// Encodes all metrics; nothing if there is no service.
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.states.is_empty() {
            return Ok(());
        }
        self.gauges(encoder)?;
        self.counters(encoder)?;
        self.refusals(encoder)
    }

    /// Encodes the number of refused visitors, by reason ([`RefusalCounters`]).
    fn refusals(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let name = format!("{}_refused", self.prefix);
        let help = "TCP visitors reset, and datagrams of UDP visitors dropped that got no flow, by reason.";
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for state in &self.states {
            for (reason, value) in state.refusals() {
                let mut labels = state.labels.clone();
                labels.push(("reason", reason.to_owned()));
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let what = self.prefix;
        let gauges: [Gauge; 5] = [
            (
                "clients",
                format!("Clients registered with the {what}."),
                |totals| totals.clients,
            ),
            (
                "clients_usable",
                "Registered clients that take new flows.".into(),
                |totals| totals.usable,
            ),
            (
                "clients_reachable",
                "Clients that take new flows, answer, and reach their service as far as is known."
                    .into(),
                |totals| totals.reachable,
            ),
            (
                "lanes",
                format!("Lanes registered with the {what}."),
                |totals| totals.lanes,
            ),
            (
                "flows",
                format!("Flows of the {what}'s visitors, TCP and UDP."),
                |totals| totals.flows,
            ),
        ];
        for (name, help, value) in gauges {
            let name = format!("{}_{name}", self.prefix);
            let mut family = encoder.encode_descriptor(&name, &help, None, MetricType::Gauge)?;
            for state in &self.states {
                gauge(&mut family, &state.labels, value(&state.totals) as f64)?;
            }
        }
        Ok(())
    }

    /// Encodes the sums over all cores, because there may be thousands of services.
    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sums: Vec<Vec<u64>> = self.states.iter().map(ServiceState::sums).collect();
        let mut row = 0;
        let mut result = Ok(());
        ServiceCounters::default().for_each(|name, help, _| {
            if result.is_ok() {
                let name = format!("{}_{name}", self.prefix);
                let rows = self.states.iter().zip(sums.iter().map(|sums| sums[row]));
                result = per_service(encoder, &name, help, rows);
            }
            row += 1;
        });
        result
    }
}

impl ServiceState {
    /// Number of visitors that were refused for each reason, on all cores.
    fn refusals(&self) -> Vec<(&'static str, u64)> {
        let mut sums = Vec::new();
        RefusalCounters::default().for_each(|reason, _, _| sums.push((reason, 0)));
        for core in self.gate.refusals() {
            let mut rows = sums.iter_mut();
            core.for_each(|_, _, value| {
                if let Some((_, sum)) = rows.next() {
                    *sum += value;
                }
            });
        }
        sums
    }

    fn sums(&self) -> Vec<u64> {
        let mut sums = Vec::new();
        for core in &self.counters {
            let mut row = 0;
            core.for_each(|_, _, value| {
                if sums.len() == row {
                    sums.push(0);
                }
                sums[row] += value;
                row += 1;
            });
        }
        sums
    }
}

fn per_service<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (&'a ServiceState, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (state, value) in rows {
        ConstCounter::new(value).encode(family.encode_family(&state.labels)?)?;
    }
    Ok(())
}
