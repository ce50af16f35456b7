//! The sending half of an endpoint: turns of dirty lanes, GSO batches, timers, and the end of
//! lanes.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_proto::{CID_LEN, LaneError};

use super::Endpoint;
use crate::core::busy_poll;
use crate::core::event::yield_now;
use crate::core::task::contained;
use crate::core::turn;
use crate::quic::handshake::Handshake;
use crate::quic::lane::Lane;
use crate::quic::transmit::{Batch, Filled, Ready};
use crate::sys::timer::FineTimer;

/// Resolution of the runtime's timers.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// Nearer deadlines than this, which are those of pacing, use the fine timer. Others may be a step
/// late.
const FINE_BELOW: Duration = Duration::from_millis(4);

/// How long a socket goes without GSO after the kernel has refused it.
const GSO_PAUSE: Duration = Duration::from_secs(1);

/// GSO batches that one lane may send before the next lane gets its turn.
const BATCHES_PER_TURN: usize = 4;

/// Whether GSO may be the cause of a failed send: other errors have other causes, such as a network
/// that is gone.
fn may_be_gso(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO))
}

/// Wakes the flush task whenever the fine timer fires, for as long as there is one.
async fn wake_flush(timer: Rc<FineTimer>, endpoint: Weak<Endpoint>) {
    while timer.fired().await.is_ok() {
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        if endpoint.closing.get() && endpoint.lanes.borrow().is_empty() {
            return;
        }
        endpoint.fine_timer_at.set(None);
        endpoint.flush.set();
    }
}

impl Endpoint {
    pub(super) async fn flush_task(self: Rc<Self>) {
        let mut lanes = VecDeque::new();
        loop {
            if self.closing.get() && self.lanes.borrow().is_empty() {
                self.stopped.set();
                self.close_all_tls();
                *self.owner.borrow_mut() = None;
                if let Some(Some(timer)) = self.fine_timer.get() {
                    // Its task finds the endpoint gone, or at its end. If this fails, the task ends
                    // with the runtime.
                    let _failed = timer.set(Duration::ZERO);
                }
                return;
            }
            if self.dirty.borrow().is_empty() {
                self.wait_for_work().await;
            }
            let mut batch = self.batch.take().unwrap_or_default();
            if contained(self.send_kept(&mut batch)).await.is_err() {
                // The lane is broken when its own flush finds it interrupted.
                batch = Box::default();
            }
            let mut now = Instant::now();
            self.fire_timers(now);
            self.flush_delayed_acks(now);
            std::mem::swap(&mut lanes, &mut *self.dirty.borrow_mut());
            while let Some(key) = lanes.pop_front() {
                let lane = self.lanes.borrow().get(&key).cloned();
                if let Some(lane) = lane {
                    lane.dirty.set(false);
                    lane.bare_fin.set(false);
                    lane.unsent.flushed();
                    let flush = self.flush_lane(&lane, &mut batch, now);
                    if contained(flush).await.is_err() {
                        batch = Box::default();
                        self.lane_panicked(&lane);
                    }
                }
                if turn::share_is_used() {
                    yield_now().await;
                    now = Instant::now();
                    self.fire_timers(now);
                    self.flush_delayed_acks(now);
                }
            }
            self.batch.set(Some(batch));
            if self.dirty.borrow().is_empty() {
                self.flush_first.set(false);
            } else {
                yield_now().await;
            }
        }
    }

    /// Waits for a dirty lane or the earliest deadline.
    async fn wait_for_work(self: &Rc<Self>) {
        // This is checked before anything that costs a system call.
        if poll_fn(|cx| Poll::Ready(self.flush.poll(cx).is_ready())).await {
            return;
        }
        let fine = self.timers.borrow().next();
        let soon = self.delayed_acks.borrow().next();
        let Some(at) = [fine, soon].into_iter().flatten().min() else {
            self.flush.wait().await;
            return;
        };
        let now = Instant::now();
        if at <= now {
            yield_now().await;
            return;
        }
        if let Some(fine) = fine.filter(|fine| *fine < now + FINE_BELOW) {
            self.set_fine_timer(fine, fine - now);
        }
        if self.woke_by_event.get() && self.flush.woke_last() {
            busy_poll::turn_over(&self.counters, now, at);
        }
        self.sleeps_until.set(Some(at));
        // This also waits beside the fine timer: should that fail, the lanes are merely late.
        let mut sleep = pin!(crate::core::time::sleep_until(at));
        let by_event = poll_fn(|cx| {
            if self.flush.poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            sleep.as_mut().poll(cx).map(|()| false)
        })
        .await;
        // Where the deadline may have woken this task, what the event says of others is not known.
        self.woke_by_event.set(by_event && Instant::now() < at);
        self.sleeps_until.set(None);
    }

    /// Sets the deadline of the lane's delayed acknowledgements: it is flushed at `due`, or a few
    /// milliseconds later.
    pub(in crate::quic) fn arm_delayed_acks(&self, lane: &Lane, due: Instant) {
        let mut armed = lane.acks_armed.get();
        self.delayed_acks
            .borrow_mut()
            .arm(lane.key(), Some(due), &mut armed);
        lane.acks_armed.set(armed);
        if self.sleeps_until.get().is_none_or(|until| due < until) {
            self.flush.set();
        }
    }

    /// Marks the lanes whose delayed acknowledgements are due, so that they are flushed.
    fn flush_delayed_acks(&self, now: Instant) {
        loop {
            let entry = self.delayed_acks.borrow_mut().pop_due(now);
            let Some((at, key)) = entry else { return };
            let lane = self.lanes.borrow().get(&key).cloned();
            let Some(lane) = lane.filter(|lane| lane.acks_armed.get() == Some(at)) else {
                continue;
            };
            lane.acks_armed.set(None);
            match lane.acks_due() {
                Some(due) if due <= now => lane.mark_dirty(),
                // Those have been sent, and there are others.
                Some(due) => self.arm_delayed_acks(&lane, due),
                None => {}
            }
        }
    }

    /// Sets the fine timer, if this endpoint has one, to wake the flush task at `at`, which is
    /// `after` from now.
    fn set_fine_timer(self: &Rc<Self>, at: Instant, after: Duration) {
        if self.fine_timer_at.replace(Some(at)) == Some(at) {
            return;
        }
        let timer = self.fine_timer.get_or_init(|| match FineTimer::new() {
            Ok(timer) => {
                let timer = Rc::new(timer);
                crate::core::task::spawn(wake_flush(Rc::clone(&timer), Rc::downgrade(self)));
                Some(timer)
            }
            Err(error) => {
                self.counters.internal_errors.increment();
                tracing::warn!(%error, "no fine timer; packets are paced in steps of a millisecond");
                None
            }
        });
        if let Some(timer) = timer
            && timer.set(after).is_err()
        {
            self.counters.internal_errors.increment();
        }
    }

    pub(super) fn fire_timers(self: &Rc<Self>, now: Instant) {
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some((at, key)) = due else { return };
            let lane = self.lanes.borrow().get(&key).cloned();
            let Some(lane) = lane else { continue };
            if lane.armed.get() != Some(at) {
                continue; // An earlier entry has been here meanwhile, and has armed the timer again.
            }
            lane.armed.set(None);
            self.contain_for(&lane, || self.fire_timer(&lane, now));
            lane.mark_dirty();
            if turn::share_is_used() {
                return; // The others are still due when the flush task comes back.
            }
        }
    }

    fn fire_timer(&self, lane: &Rc<Lane>, now: Instant) {
        let (timed_out, overdue) = {
            let mut conn = lane.conn.borrow_mut();
            let is_due = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
            let overdue = is_due(lane.admission_deadline.get());
            if overdue {
                lane.admission_deadline.set(None);
                lane.given_up.set(true);
                // `Done` means that it is closing already.
                let _closing = conn.close(true, LaneError::Unauthenticated.code(), b"");
            }
            // The flush that comes next tells the peer that the lane closes. If a timer made it
            // probe first, it might never (see `transmit::CLOSING_PACKETS_MAX`).
            let closes = lane.closes.get() || overdue;
            let timed_out = !closes && is_due(conn.timeout_instant());
            if timed_out {
                conn.on_timeout();
            }
            (timed_out, overdue)
        };
        if timed_out {
            lane.timed_out(now);
        }
        if lane.path_due(now) {
            self.counters.paths_failed.increment();
        }
        if timed_out && lane.suspects_packet_size() {
            self.counters.path_mtu_distrusted.increment();
        }
        if timed_out || overdue {
            lane.dispatch(now);
        }
    }

    async fn flush_lane(self: &Rc<Self>, lane: &Rc<Lane>, batch: &mut Batch, now: Instant) {
        if lane.conn.was_interrupted() {
            self.break_lane(lane);
            return;
        }
        lane.closes.set(false);
        let segments = self.segments(now);
        self.note_path(lane);
        lane.close_bundle();
        if lane.hurries.get() {
            self.send_again(lane);
        }
        for round in 1.. {
            if !batch.carries() && self.must_wait_for_tls(lane) {
                break;
            }
            let filled = batch.fill(lane, segments);
            self.send(lane, batch).await;
            if let Some(ready) = batch.ready() {
                lane.note_sent(&ready);
            }
            if filled == Filled::All {
                break;
            }
            if round >= BATCHES_PER_TURN && !batch.carries() {
                lane.mark_dirty();
                break;
            }
        }
        lane.note_blocked();
        lane.wake_room_waiters_after_flush();
        self.keep_connection_ids(lane);
        if lane.note_end() {
            self.remove(lane);
            return;
        }
        // The time is always in the future: a deadline that stays due must not keep the core from
        // everything else, and a release is never now.
        let soonest = Instant::now() + TIMER_STEP;
        let deadline = [
            lane.conn.borrow().timeout_instant(),
            lane.admission_deadline.get(),
            lane.path_deadline(),
        ]
        .into_iter()
        .flatten()
        .map(|deadline| deadline.max(soonest))
        .chain(lane.release_at.get())
        .min();
        let mut armed = lane.armed.get();
        self.timers
            .borrow_mut()
            .arm(lane.key(), deadline, &mut armed);
        lane.armed.set(armed);
    }

    /// The number of packets that may go with one call.
    pub(super) fn segments(&self, now: Instant) -> usize {
        match self.no_gso_until.get() {
            Some(until) if now < until => 1,
            _ => self.socket.gso_segments(),
        }
    }

    pub(super) fn count_sent(&self, ready: &Ready<'_>) {
        self.counters.quic_send_batches.increment();
        self.counters.quic_packets_sent.add(ready.packets() as u64);
        self.counters.quic_bytes_sent.add(ready.bytes.len() as u64);
    }

    fn note_path(&self, lane: &Lane) {
        let changes = lane.note_path();
        self.counters
            .udp_dropped_too_large
            .add(changes.datagrams_dropped as u64);
    }

    /// The lane has moved to another path: sends the last unanswered packet there, if that much may
    /// be sent.
    fn send_again(self: &Rc<Self>, lane: &Lane) {
        let Some(packet) = lane.unanswered_packet() else {
            return;
        };
        let way = lane.way();
        let (bytes, segment) = (&packet[..], packet.len());
        if lane.send_budget(segment).is_none_or(|room| room < segment) {
            return;
        }
        lane.spend(segment);
        if let Some(id) = way.tls {
            self.send_tls(
                id,
                &Ready {
                    bytes,
                    segment,
                    way,
                    turned_round: false,
                },
            );
        } else if self
            .socket
            .try_send(bytes, segment, way.peer, way.local)
            .is_err()
        {
            self.counters.quic_sends_failed.increment();
        }
    }

    pub(super) async fn send(self: &Rc<Self>, lane: &Lane, batch: &Batch) {
        let Some(ready) = batch.ready() else { return };
        if let Some(id) = ready.way.tls {
            self.send_tls(id, &ready);
            return;
        }
        let (to, from_ip) = (ready.way.peer, ready.way.local);
        loop {
            match self
                .socket
                .try_send(ready.bytes, ready.segment, to, from_ip)
            {
                Ok(()) => return self.count_sent(&ready),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.quic_send_waits.increment();
                    if self.socket.writable().await.is_err() {
                        self.counters.quic_sends_failed.increment();
                        return;
                    }
                }
                // A path MTU probe that the local interface already refuses, which quiche sees as
                // lost. Or that interface has a smaller MTU than it had.
                Err(error) if quinn_udp::is_msg_size_err(&error) => {
                    self.counters.quic_sends_too_large.increment();
                    if !self.accepts {
                        // The error is also queued on the socket, which would stay ready for ever.
                        self.stop_hearing_unreachable();
                    }
                    if ready.segment <= lane.packet_bytes_max() && lane.distrust_packet_size() {
                        self.counters.path_mtu_distrusted.increment();
                    }
                    return;
                }
                // This is the network's answer to an earlier packet.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.counters.quic_sends_failed.increment();
                    self.socket_error(&error);
                    return;
                }
                // EINVAL or EIO: the device, or this one destination, cannot do GSO.
                Err(error) if ready.segment < ready.bytes.len() && may_be_gso(&error) => {
                    if self.counters.gso_fallbacks.get() == 0 {
                        tracing::warn!(%error, %to, "the kernel refuses GSO; sending single packets, which is slower");
                    }
                    self.counters.gso_fallbacks.increment();
                    self.no_gso_until.set(Some(Instant::now() + GSO_PAUSE));
                    for packet in ready.bytes.chunks(ready.segment) {
                        // QUIC repeats what is lost here.
                        let sent = self.socket.try_send(packet, packet.len(), to, from_ip);
                        if sent.is_err() {
                            self.counters.quic_sends_failed.increment();
                        }
                    }
                    return;
                }
                Err(error) => {
                    self.counters.quic_sends_failed.increment();
                    if !self.accepts {
                        lane.unreachable();
                    }
                    tracing::debug!(%error, %to, "send failed");
                    self.socket_error(&error);
                    return;
                }
            }
        }
    }

    /// Issues spare connection ids, which a change of address needs, and forgets retired ones.
    fn keep_connection_ids(&self, lane: &Rc<Lane>) {
        let mut conn = lane.conn.borrow_mut();
        while let Some(retired) = conn.retired_scid_next() {
            if let Ok(id) = <[u8; CID_LEN]>::try_from(retired.as_ref()) {
                self.by_cid.borrow_mut().remove(&id);
            }
        }
        if !conn.is_established() {
            return;
        }
        if let Some(id) = lane.initial_id.borrow_mut().take() {
            self.by_initial.borrow_mut().remove(&id);
        }
        if !lane.counted_opened.replace(true) {
            self.counters.lanes_opened.increment();
            Handshake::of(&conn).count(&self.counters);
            if !self.accepts {
                self.admitted(lane);
                self.stop_hearing_unreachable();
            }
        }
        while conn.scids_left() > 0 {
            // The address is the one at which the client has begun, wherever it has moved: packets
            // of a lane that is gone come there.
            let local_ip = self.local_ip(lane.first_way().local);
            let id = self.new_cid(local_ip);
            let reset_token = self
                .reset_key
                .as_ref()
                .map_or_else(rand::random, |key| key.token(&id, local_ip));
            if conn
                .new_scid(&quiche::ConnectionId::from_ref(&id), reset_token, false)
                .is_err()
            {
                break;
            }
            self.by_cid.borrow_mut().insert(id, Rc::clone(lane));
        }
    }

    /// Stops counting the lane among those of strangers.
    pub(in crate::quic) fn admitted(&self, lane: &Lane) {
        if lane.counted_unadmitted.replace(false)
            && let Some(admission) = &self.admission
        {
            admission.borrow_mut().give_back(lane.key());
        }
    }

    pub(super) fn remove(&self, lane: &Rc<Lane>) {
        self.forget(lane);
        if lane.counted_opened.get() {
            self.counters.lanes_ended.increment();
        } else {
            self.counters.handshakes_failed.increment();
        }
    }

    /// Forgets a lane that has ended: its place, its number and its connection ids are free.
    pub(super) fn forget(&self, lane: &Rc<Lane>) {
        self.lanes.borrow_mut().remove(&lane.key());
        self.close_tls_of(lane.key());
        for id in lane.conn.borrow().source_ids() {
            if let Ok(id) = <&[u8; CID_LEN]>::try_from(id.as_ref()) {
                self.by_cid.borrow_mut().remove(id);
            }
        }
        if let Some(id) = lane.initial_id.borrow_mut().take() {
            self.by_initial.borrow_mut().remove(&id);
        }
        self.admitted(lane);
    }
}
