//! Metrics that are not counters: histograms of what cores have measured, and the expiry of
//! certificates.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::core::{Cluster, histogram};
use crate::process::certificates::{CertificateView, Certificates, Kind};

/// The histograms, of all cores together.
#[derive(Debug)]
pub(super) struct Histograms(pub(super) Arc<Cluster>);

impl Collector for Histograms {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut result = Ok(());
        let cores = self.0.histograms.iter().map(|core| &**core);
        histogram::for_each(cores, |name, help, total| {
            if result.is_ok() {
                let encoded = encoder.encode_descriptor(name, help, None, MetricType::Histogram);
                let (sum, count, buckets) = (total.sum(), total.count(), total.buckets());
                result = encoded.and_then(|mut family| {
                    family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
                });
            }
        });
        result
    }
}

/// The expiry of each certificate and each revocation list.
#[derive(Debug)]
pub(super) struct Expiries([(&'static str, &'static str, Vec<CertificateView>); 2]);

impl Expiries {
    pub(super) fn of(certificates: &Certificates) -> Expiries {
        Expiries([
            (
                "certificate_expiry_seconds",
                "When the file's first certificate expires, in seconds since 1970.",
                certificates.views(Kind::Certificates),
            ),
            (
                "revocation_list_expiry_seconds",
                "When the file's first list of revoked certificates is to be replaced by the next \
                 one, in seconds since 1970.",
                certificates.views(Kind::RevocationLists),
            ),
        ])
    }
}

impl Collector for Expiries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, views) in &self.0 {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for view in views {
                let labels = [("file", view.file.as_str())];
                let value = ConstGauge::new(view.expiry_s as f64);
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
