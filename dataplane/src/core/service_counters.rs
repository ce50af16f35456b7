//! Counters of a service on one core: one writer, as with those of the core itself.

use super::counters::counters;

counters! {
    /// What one core counts for one service. It is part of the core's own counters as well.
    ServiceCounters:
    /// TCP visitors accepted.
    visitors,
    /// TCP visitors reset without having been served, for any reason.
    visitors_refused,
    /// Bytes of TCP visitors into the tunnel.
    tcp_bytes_in,
    /// Bytes from the tunnel to TCP visitors.
    tcp_bytes_out,
    /// UDP flows opened.
    udp_flows,
    /// Bytes of UDP visitors' datagrams for a client.
    udp_bytes_in,
    /// Bytes of datagrams from the tunnel for UDP visitors.
    udp_bytes_out,
}
