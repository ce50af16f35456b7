//! What `qmux-dp demo --once` prints.

use hdrhistogram::Histogram;

use super::traffic::Measured;
use crate::output;

const BYTES_PER_GB: f64 = 1e9;

/// Prints the report on standard output.
pub(super) fn print(measured: &Measured) {
    let seconds = measured.bulk_time.as_secs_f64();
    let gigabits = measured.bulk_bytes as f64 * 8.0 / BYTES_PER_GB / seconds;
    output::line("");
    output::line(format_args!(
        "TCP  throughput    {gigabits:.2} Gbit/s each way at the same time ({:.2} GB echoed in {seconds:.2} s, every byte compared)",
        measured.bulk_bytes as f64 / BYTES_PER_GB
    ));
    output::line(format_args!(
        "TCP  64 B ping     {}",
        percentiles(&measured.pings)
    ));
    output::line(format_args!(
        "TCP  connect+echo  {}",
        percentiles(&measured.connects)
    ));
    output::line(format_args!(
        "UDP  echo          {}; {} datagrams of {} to {} bytes, {} sent again",
        percentiles(&measured.datagrams),
        measured.datagrams.len(),
        measured.datagram_sizes.first().unwrap_or(&0),
        measured.datagram_sizes.last().unwrap_or(&0),
        measured.datagrams_lost
    ));
    output::line("");
    output::line("every byte came back right");
}

fn percentiles(times: &Histogram<u64>) -> String {
    let micros = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e3;
    format!(
        "p50 {:.0} µs, p99 {:.0} µs, max {:.0} µs",
        micros(0.5),
        micros(0.99),
        times.max() as f64 / 1e3
    )
}
