//! The service's UDP side: counts packets, or sends them back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context as _, Result};
use qmux_udp::{BatchSocket, SendBatch};
use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::harness::lock;

use super::wire::{PacketHeader, PacketKind};

/// Socket buffers asked for, in bytes; the system may give less. This side must not be the one that
/// loses packets.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// How many of them arrived after one with a higher number.
    pub(crate) reordered: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// The run whose packets are counted; packets of other runs are late ones of an earlier run.
    run: AtomicU16,
    /// The run that was counted last; once per batch.
    counted: Mutex<Run>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Run {
    number: u16,
    counts: Counts,
    /// The number of the packet after the highest.
    next: u64,
}

impl Run {
    fn count(&mut self, header: PacketHeader, bytes: usize) {
        self.counts.packets += 1;
        self.counts.bytes += bytes as u64;
        self.counts.reordered += u64::from(header.number < self.next);
        self.next = self.next.max(header.number + 1);
    }
}

/// A UDP service that runs. It ends when dropped.
#[derive(Debug)]
pub(crate) struct UdpSink {
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

impl UdpSink {
    /// Starts it on an address, in the calling thread's network namespace.
    pub(super) fn start(address: SocketAddr) -> Result<Self> {
        let bound = bind(address).with_context(|| format!("UDP socket on {address}"));
        let (runtime, socket) = bound?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(&socket, &for_thread) => {}
                    _dropped = stopped => {}
                }
            });
        });
        Ok(Self {
            shared,
            _stop: stop,
        })
    }

    /// From now on only packets of a new run count. Returns its number.
    pub(crate) fn begin_run(&self) -> u16 {
        let last = self.shared.run.fetch_add(1, Ordering::Relaxed);
        last.wrapping_add(1)
    }

    /// What has arrived of the present run so far.
    pub(crate) fn counts(&self) -> Counts {
        let run = *lock(&self.shared.counted);
        if run.number == self.shared.run.load(Ordering::Relaxed) {
            return run.counts;
        }
        Counts::default()
    }
}

/// A UDP socket with large buffers, and the runtime that it lives on.
pub(super) fn bind(address: SocketAddr) -> io::Result<(Runtime, BatchSocket)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // The system may give smaller buffers; every report says what it gave.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let context = runtime.enter();
    let socket = BatchSocket::new(socket.into())?;
    drop(context);
    Ok((runtime, socket))
}

struct Echo {
    to: SocketAddr,
    from: Option<IpAddr>,
    payload: Vec<u8>,
}

async fn serve(socket: &BatchSocket, shared: &Shared) {
    let mut run = Run::default();
    let mut echoes: Vec<Echo> = Vec::new();
    let mut batch = SendBatch::new();
    while socket.readable().await.is_ok() {
        let present = shared.run.load(Ordering::Relaxed);
        if run.number != present {
            run = Run {
                number: present,
                ..Run::default()
            };
        }
        // An error is the answer to an earlier echo, whose receiver is gone.
        let _ = socket.try_receive(|packet| match PacketHeader::read(packet.payload) {
            Some(header) if header.kind == PacketKind::Echo => echoes.push(Echo {
                to: packet.source,
                from: packet.local_ip,
                payload: packet.payload.to_vec(),
            }),
            Some(header) if header.run == run.number => run.count(header, packet.payload.len()),
            _ => {}
        });
        *lock(&shared.counted) = run;
        for echo in echoes.drain(..) {
            let _ = batch.push(socket, echo.to, echo.from, &echo.payload).await;
        }
        let _ = batch.flush(socket).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_packets_are_told_from_lost_ones() {
        let mut run = Run::default();
        let kind = PacketKind::Count;
        for number in [0, 1, 4, 3, 5] {
            run.count(
                PacketHeader {
                    kind,
                    run: 1,
                    number,
                },
                10,
            );
        }
        let wanted = Counts {
            packets: 5,
            bytes: 50,
            reordered: 1,
        };
        assert_eq!(run.counts, wanted);
    }

    #[test]
    fn a_run_that_has_not_begun_has_no_counts() {
        let sink = UdpSink::start(([127, 0, 0, 1], 0).into()).expect("a sink");
        assert_eq!(sink.begin_run(), 1);
        assert_eq!(sink.counts(), Counts::default());
    }
}
