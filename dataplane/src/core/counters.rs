//! Counters of a core: one writer (the core), any reader, no lock and no read-modify-write.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only its core writes.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning core may call this: it is a plain load and store.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Adds one.
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// The value as last seen by this thread.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$about:meta])+ $counters:ident: $($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        $(#[$about])+
        #[derive(Debug, Default)]
        #[repr(align(128))] // Two cache lines: the counters of two cores never share one.
        pub(crate) struct $counters {
            $($(#[doc = $doc])+ pub(crate) $name: $crate::core::counters::Counter,)+
        }

        impl $counters {
            /// Calls `each` with the name, the explanation and the value of every counter.
            pub(crate) fn for_each(&self, mut each: impl FnMut(&'static str, &'static str, u64)) {
                $(each(stringify!($name), concat!($($doc),+).trim_start(), self.$name.get());)+
            }
        }
    };
}
pub(crate) use counters;

counters! {
    /// What one core counts. Every drop, refusal, reset and fallback has its own counter.
    CoreCounters:
    /// UDP packets received that carry QUIC.
    quic_packets_received,
    /// Receive calls that brought at least one UDP packet that carries QUIC.
    quic_receive_batches,
    /// Times that packets of bulk on long paths were let gather for a moment before they were
    /// received.
    quic_receive_pauses,
    /// Turns of a lane whose acknowledgement was put off (ack delay): messages, and datagrams in
    /// bulk.
    quic_acknowledgements_deferred,
    /// UDP packets sent that carry QUIC.
    quic_packets_sent,
    /// Send calls for UDP packets that carry QUIC (one GSO batch each).
    quic_send_batches,
    /// Bytes of QUIC packets received.
    quic_bytes_received,
    /// Bytes of QUIC packets sent.
    quic_bytes_sent,
    /// Packets too large for the path (path MTU probes among them).
    quic_sends_too_large,
    /// Times that a lane followed its peer to another address.
    migrations,
    /// Addresses of lanes' peers that had to be validated, because they were new.
    paths_new,
    /// Addresses of lanes' peers that were validated: the peer receives there.
    paths_validated,
    /// Addresses of lanes' peers that were not validated in time; the lane went back to the last
    /// one that was.
    paths_failed,
    /// Paths suspected of not carrying large packets any more, whose MTU was searched for again.
    path_mtu_distrusted,
    /// Packets sent by registered lanes that were lost, as far as their heartbeats have reported.
    quic_packets_lost,
    /// Sends that failed for another reason than a full buffer.
    quic_sends_failed,
    /// Waits for room in a UDP socket's send buffer.
    quic_send_waits,
    /// TLS connections for lanes that began: by a handshake, or handed over by another core.
    tls_connections_opened,
    /// TLS connections for lanes that ended.
    tls_connections_ended,
    /// TLS connections ended because no lane had registered on them in time.
    tls_connections_unclaimed,
    /// TLS connections handed to the core whose lane they carry.
    tls_connections_handed_over,
    /// TLS connections that could not be handed over, and were closed.
    tls_handovers_dropped,
    /// TLS connections dialled by this client.
    tls_dials,
    /// TLS connections that this client dialled without success.
    tls_dials_failed,
    /// Times that a lane moved with its flows from UDP to TLS, or to another TLS connection.
    lanes_moved_to_tls,
    /// Times that a lane moved with its flows from a TLS connection that was over or silent to
    /// another one.
    lanes_moved_to_other_tls,
    /// Times that a client was told that most of what is sent to it over UDP is lost.
    lanes_losing_most,
    /// Times that a lane moved with its flows from TLS to UDP.
    lanes_moved_to_udp,
    /// Probes of whether QUIC gets through while lanes ride TLS.
    quic_probes,
    /// Lanes dialled over TLS beside QUIC, because QUIC was not heard.
    lanes_raced,
    /// TCP connections for lanes accepted.
    tls_accepted,
    /// TCP connections for lanes closed at once: too many were not claimed by a lane, or too many
    /// came per second.
    tls_refused,
    /// TLS handshakes for lanes that failed or took too long.
    tls_handshakes_failed,
    /// Packets on a TLS connection that were for another core than its first packet.
    tls_packets_astray,
    /// Packets that could not be sent because the TLS connection was over.
    tls_sends_lost,
    /// Waits for room in the socket of a TLS connection.
    tls_send_waits,
    /// Packets of no known connection.
    quic_packets_unknown,
    /// Packets of an unknown connection whose id was not issued here: noise, or somebody who
    /// replays a living lane of another server. They are not answered.
    quic_packets_foreign,
    /// Packets that QUIC could not parse, or that broke its rules.
    quic_packets_invalid,
    /// Packets of a lane that had no effect: they do not decrypt, are duplicates, or came after its
    /// end.
    quic_packets_ignored,
    /// Packets on a client's socket that did not come from its server.
    quic_packets_from_others,
    /// Packets of a lane that came from another address than the peer's while the peer was still
    /// heard at its old one; the lane stayed there.
    quic_packets_astray,
    /// Packets that reached a core that does not own their lane and were handed to the one that
    /// does.
    quic_packets_handed_over,
    /// Packets that should have been handed over to the core that owns their lane, but could not
    /// be.
    quic_packets_handover_dropped,
    /// QUIC packets for lanes of the process before this one that were passed on to it.
    quic_packets_passed_on,
    /// QUIC packets for the process before this one that were dropped, because it took them too
    /// slowly.
    quic_packets_pass_on_dropped,
    /// QUIC packets for the process before this one that were not passed on: they came by the
    /// thousand, with connection ids that are none of this server.
    quic_packets_pass_on_refused,
    /// QUIC packets passed on by the successor that a core had no room for.
    quic_packets_passed_on_dropped,
    /// TLS connections closed because they were for lanes of the process before this one.
    tls_connections_for_predecessor,
    /// First packets of connections that do not decrypt, and so began none.
    initials_invalid,
    /// First packets of connections that were not answered: a core answers only so many in a
    /// second, in all and to one network.
    initials_dropped,
    /// Retry packets sent, because many handshakes began, or many lanes were not registered yet.
    retries_sent,
    /// Version negotiation packets sent.
    versions_negotiated,
    /// Answers to packets of unknown connections that could not be sent.
    stateless_answers_lost,
    /// Stateless resets sent for packets of unknown connections.
    stateless_resets_sent,
    /// Stateless resets not sent for packets of unknown connections, because there were too many.
    stateless_resets_suppressed,
    /// Handshakes refused because too many were incomplete.
    handshakes_refused,
    /// Handshakes refused because one network had begun so many that only places for others were
    /// left.
    handshakes_refused_network,
    /// Handshakes refused because more began per second than a core takes in all, or of one
    /// network.
    handshakes_refused_rate,
    /// Incomplete handshakes given up because another one needed their place.
    handshakes_displaced,
    /// Handshakes that failed or timed out.
    handshakes_failed,
    /// Handshakes completed in full, with certificates.
    handshakes_full,
    /// Handshakes completed by resuming an earlier session, without certificates.
    handshakes_resumed,
    /// Handshakes whose early data (0-RTT) the server accepted.
    early_data_accepted,
    /// Handshakes whose early data the server did not accept; its content was sent again. A server
    /// counts only those that it resumed.
    early_data_rejected,
    /// Session tickets made by this server.
    tickets_issued,
    /// Session tickets that no present key of this server opens; the handshake was a full one.
    tickets_refused,
    /// Times that the session ticket keys changed: by rotation, or because their file did.
    ticket_keys_rotated,
    /// Times that the file of session ticket keys had no good keys; the earlier ones stay in use.
    ticket_key_files_refused,
    /// Sessions that this client has kept, to resume them.
    sessions_kept,
    /// Sessions that this client could not use, or could not keep.
    sessions_unusable,
    /// Resumed sessions not let in, because the peer's certificate is not good any more.
    sessions_refused,
    /// Clients not let in because the CAs or revocation lists have changed since their handshake,
    /// and by these their certificate is not good, or is missing. They are told to try again.
    clients_outdated,
    /// Clients not let in because they did not prove that they know the token.
    tokens_refused,
    /// Clients not let in because their certificate, though good, belongs to none of those who may
    /// serve here.
    clients_not_admitted,
    /// Lanes established.
    lanes_opened,
    /// Lanes ended after they were established.
    lanes_ended,
    /// Lanes that this side closed although their peer had not acknowledged all bytes of flows that
    /// had ended.
    lanes_cut_off,
    /// Registrations accepted.
    registrations_accepted,
    /// Lanes whose client's id another instance took. They answered, and were told that they get no
    /// new flow.
    lanes_superseded,
    /// Lanes closed because another instance took their client's id and they did not answer.
    lanes_replaced,
    /// Lanes that get no new flow because their client may not serve here any more: its certificate
    /// has expired or was revoked, or its entry is gone or was changed.
    lanes_withdrawn,
    /// Registrations refused.
    registrations_refused,
    /// Registrations refused because another living instance has the client's id.
    registrations_duplicate,
    /// Registrations refused because the client has as many lanes as one may have.
    registrations_limited,
    /// Services that clients offered and that were not accepted, because there is none of that name
    /// at the door.
    services_unknown,
    /// Services that clients offered and that were not accepted, because the client may not serve
    /// them.
    services_not_allowed,
    /// Services that clients offered and that speak another protocol here.
    services_of_other_protocol,
    /// Refused lanes that were closed before their client could read why, because many others
    /// waited for that.
    refusals_cut_short,
    /// Clients that said that their service cannot be reached.
    services_down,
    /// Clients that said that their service can be reached again.
    services_up,
    /// Lanes whose client left unanswered what was sent, for a while or for ever; new flows go to
    /// other clients.
    lanes_silent,
    /// Lanes closed because nothing was heard within the health timeout.
    lanes_unhealthy,
    /// Lanes closed because their client had ended the TLS connection that they rode, and was not
    /// back in time on any lane.
    lanes_hung_up,
    /// Liveness probes of peers from which nothing was heard for a while, and of lanes that were
    /// alarmed.
    probes_sent,
    /// Alarms given because a liveness probe was not answered.
    probes_unanswered,
    /// Alarms given to all lanes of a peer because one has ended or is not answered, or another
    /// instance answers.
    lanes_alarmed,
    /// Lanes dialled beside one whose questions nobody had answered for two seconds.
    lanes_dialed_beside,
    /// Lanes that were given up because one dialled beside them was registered.
    lanes_taken_over,
    /// Lanes left to their last flows: their server drains or was removed, or there are too many
    /// lanes to it.
    lanes_left,
    /// Lanes that a client opened beyond one for each of its cores: its server had to hand over
    /// much, or is of a version that does not report that.
    lanes_grown,
    /// Lanes that a client gave up, or did not open, because little came through all of them.
    lanes_shrunk,
    /// Handshakes given up because the network reports that nobody listens at the address.
    handshakes_unreachable,
    /// Mail to the client role of another core that did not fit its mailbox.
    client_mail_dropped,
    /// Times that another core could not be told that a client was replaced (mailbox full).
    evictions_dropped,
    /// Times that another core could not be told to ask a client that may be gone (mailbox full).
    client_alarms_dropped,
    /// Times that another core could not be told the health of a service (mailbox full); its lanes
    /// report it with their next heartbeat.
    service_news_dropped,
    /// Heartbeats received.
    heartbeats_received,
    /// TCP visitors accepted.
    visitors_accepted,
    /// Failures to accept a TCP visitor (too few file descriptors, mostly).
    accepts_failed,
    /// TCP visitors accepted after the drain had begun, whose handshake was under way then.
    visitors_accepted_late,
    /// TCP visitors reset because the file descriptors that are left are not for visitors.
    visitors_refused_descriptors,
    /// TCP visitors reset because no client could serve them.
    visitors_refused,
    /// TCP visitors or flows not accepted because memory is used up and no flow stalls.
    visitors_refused_memory,
    /// TCP visitors reset because the lists or limits of their service do not let them in.
    visitors_refused_bounds,
    /// TCP visitors reset because they sent no valid PROXY header, which their service expects from
    /// where they come.
    visitors_refused_proxy_header,
    /// TCP visitors whose client left everything unanswered before there was any sign that it had
    /// anything of them. They were sent to another lane or client that answers, or reset if there
    /// is none.
    visitors_unheard,
    /// TCP visitors that one client refused, or did not answer, and that were sent to another one.
    visitors_retried,
    /// TCP visitors reset because a client refused them, or did not answer, and no other could be
    /// tried, or too much had been sent.
    visitors_retry_exhausted,
    /// TCP visitors of whom less was kept for a second attempt, because others hold the memory for
    /// it.
    retry_memory_short,
    /// TCP visitors or UDP flows handed to another core, because this one has no lane of the
    /// client.
    visitors_handed_over,
    /// TCP visitors that could not be handed over to the core of their client's lane, which had no
    /// room for one more.
    visitors_handover_dropped,
    /// Times that a TCP flow was woken because its lane had room for what it sends.
    stream_writers_woken,
    /// Times that a TCP flow had to wait before it could send, because memory is short and its peer
    /// has not acknowledged earlier data.
    stream_writers_held_back,
    /// TCP flows opened on lanes of this core.
    tcp_flows_opened,
    /// TCP flows that ended with both directions complete.
    tcp_flows_completed,
    /// TCP flows that ended by a reset from either side, a client's refusal or the end of their
    /// lane.
    tcp_flows_reset,
    /// TCP flows reset because the visitor or the service took nothing for the stall timeout.
    tcp_flows_stalled,
    /// Times that a TCP flow had to wait because the bandwidth that its service allows each visitor
    /// was used up.
    tcp_bandwidth_waits,
    /// TCP flows reset because no byte was moved in either direction for the idle timeout.
    tcp_flows_idle,
    /// TCP flows reset because memory was short and they had stalled longest.
    tcp_flows_ended_for_memory,
    /// TCP flows reset because their service was removed, or moved, and drain_timeout was over.
    tcp_flows_ended_drained,
    /// TCP flows reset because this client drains.
    tcp_flows_refused_draining,
    /// TCP flows whose service could not be reached.
    tcp_dials_failed,
    /// TCP flows refused by this client because they are for a service that it does not offer.
    tcp_flows_unknown_service,
    /// TCP flows refused by this client because no port of the service belongs to their traffic
    /// port.
    tcp_flows_without_port,
    /// TCP flows refused by this client for want of descriptors, ports or memory of its own
    /// machine.
    tcp_dials_refused_own_limits,
    /// Health checks that could not be made for want of descriptors, ports or memory of this
    /// machine; they say nothing about the service.
    service_checks_not_made,
    /// Health checks of services made.
    service_checks,
    /// Health checks of services that failed.
    service_checks_failed,
    /// Times that a core looked out for the next message for up to 0.1 ms before it went to sleep.
    busy_polls,
    /// Those of them during which nothing came.
    busy_polls_in_vain,
    /// Bytes from TCP sockets into the tunnel.
    tcp_bytes_in,
    /// Bytes from the tunnel to TCP sockets.
    tcp_bytes_out,
    /// FINs that were lost by QUIC and recovered by the control stream.
    fins_recovered,
    /// UDP flows opened.
    udp_flows_opened,
    /// UDP flows ended.
    udp_flows_ended,
    /// UDP flows ended because nothing passed within the session timeout, or within the shorter one
    /// for flows without an answer.
    udp_flows_expired,
    /// UDP flows whose service had not answered, ended because nothing passed within their timeout.
    udp_flows_unanswered,
    /// UDP flows that were not established, ended to make room for new ones because the table was
    /// full.
    udp_flows_evicted,
    /// UDP flows that were not established, ended to make room for new ones because their source
    /// address had too many.
    udp_flows_evicted_of_source,
    /// UDP flows ended because nobody listens at the service's address, and nobody ever had.
    udp_flows_refused,
    /// UDP flows dialled anew, because the service has another address or does not listen at the
    /// one that was tried.
    udp_flows_redialled,
    /// UDP flows that could not be dialled because this machine or process lacks descriptors, ports
    /// or memory.
    udp_dials_short,
    /// UDP flows refused by this client because they are for a service that it does not offer.
    udp_flows_unknown_service,
    /// UDP flows refused by this client because no port of the service belongs to their traffic
    /// port.
    udp_flows_without_port,
    /// UDP flows that a client could not serve and that began anew at another one.
    udp_flows_failed_over,
    /// UDP flows that a client could not serve and for which there was no other one.
    udp_failovers_exhausted,
    /// UDP flows moved to another lane because their own had been silent for a while.
    udp_flows_moved,
    /// UDP datagrams of visitors or services into the tunnel.
    udp_datagrams_in,
    /// UDP datagrams from the tunnel to visitors or services.
    udp_datagrams_out,
    /// Bytes of UDP payload into the tunnel.
    udp_bytes_in,
    /// Bytes of UDP payload from the tunnel.
    udp_bytes_out,
    /// Datagrams that were sent as several fragments.
    udp_datagrams_fragmented,
    /// Small datagrams that were sent together with others, in bundles.
    udp_datagrams_bundled,
    /// Bundles sent.
    udp_bundles_sent,
    /// Bundles received that could not be read to their end; the rest of each was dropped.
    udp_bundles_invalid,
    /// Datagrams reassembled from fragments.
    udp_datagrams_reassembled,
    /// Datagrams dropped because the lane's queue was full.
    udp_dropped_queue_full,
    /// Datagrams dropped because they were too large for the path and fragmentation is off.
    udp_dropped_too_large,
    /// Datagrams dropped because no client could serve them.
    udp_dropped_no_client,
    /// Datagrams of new visitors dropped because their service was removed, or has moved.
    udp_dropped_removed,
    /// Visitors' datagrams dropped because the core of their client's lane had no room for one
    /// more.
    udp_dropped_handover,
    /// Datagrams dropped because their flow is not known.
    udp_dropped_unknown_flow,
    /// Datagrams dropped because the local socket's buffer was full.
    udp_dropped_socket_full,
    /// Datagrams dropped because the local socket refused them.
    udp_dropped_socket_error,
    /// Datagrams dropped because a limit of flows was reached.
    udp_dropped_flow_limit,
    /// Visitors' datagrams dropped because the lists or limits of their service let them open no
    /// flow.
    udp_dropped_bounds,
    /// Datagrams of or for visitors dropped because the bandwidth that their service allows each
    /// visitor was used up.
    udp_dropped_bandwidth,
    /// Datagrams of new visitors dropped because flows hold as much memory as they may.
    udp_dropped_memory,
    /// Datagrams dropped because their lane is not registered, or its listener takes no UDP.
    udp_dropped_unregistered,
    /// Datagrams received on a lane and dropped because too many came before they could be read.
    udp_dropped_receive_queue,
    /// Datagrams dropped because their lane ended before they were sent.
    udp_dropped_lane_ended,
    /// Datagrams sent on a lane and lost on the way to its peer, as far as QUIC can tell.
    udp_datagrams_lost,
    /// Datagrams of new flows dropped because the server has not said yet which ports the service
    /// has.
    udp_dropped_before_answers,
    /// Datagrams of new flows dropped because too many flows wait for a socket.
    udp_dropped_opening,
    /// Datagrams or fragments that could not be decoded.
    udp_dropped_malformed,
    /// Incomplete datagrams given up, because a fragment was lost or a limit was reached.
    udp_dropped_incomplete,
    /// GSO sends that the kernel refused and that were repeated as single sends.
    gso_fallbacks,
    /// Panics: bugs of this program. Each has cost a flow, a lane or a task, and is logged once per
    /// place in the source.
    panics,
    /// Lanes ended because a panic has interrupted a change of their connection.
    lanes_broken,
    /// Mail taken from the mailbox.
    mail_received,
    /// Turns of the core's own clock, two a second. They stop when the core is stuck.
    beats,
    /// Errors of a core's own sockets that should not happen.
    internal_errors,
}
