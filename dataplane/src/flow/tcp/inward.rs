//! The pump from the socket to the stream. It reads no more than there is room for in the stream.

use std::collections::VecDeque;

use qmux_proto::FlowError;

use super::super::bandwidth::Direction;
use super::super::fill::{Next, Until, fill};
use super::super::watch::Waits;
use super::{BYTES_PER_TURN, Flow, Stopped, TcpFlow};
use crate::buffer::{Block, BlockSize, LARGE_BLOCK_BYTES, StreamBuf};
use crate::core::event::yield_now;
use crate::quic::lane::StreamRoom;

/// The part of [`Begun`](super::Begun) that concerns the pump from the socket.
pub(super) struct Beginning {
    pub(super) unsent: VecDeque<StreamBuf>,
    pub(super) ended: bool,
    pub(super) empty: bool,
    pub(super) first: Until,
}

impl Flow {
    pub(super) async fn socket_to_stream(&self, beginning: Beginning) {
        // The reason is noted where it happens.
        let _early = self.pump_inward(beginning).await;
    }

    async fn pump_inward(&self, beginning: Beginning) -> Result<(), Stopped> {
        let TcpFlow { socket, .. } = &self.ends;
        for bytes in beginning.unsent {
            self.write_stream(bytes, false).await?;
        }
        if beginning.ended {
            return self.finish_stream().await;
        }
        if beginning.empty {
            self.wait_for_socket().await;
        }
        let mut size = BlockSize::Small;
        let mut moved = 0;
        // Counts reads that have brought bytes: many connections have one message and then their
        // end.
        let mut messages = usize::from(self.bytes_in.get() > 0);
        loop {
            let allowed = self.allowed(Direction::In, self.inward()).await;
            let room = self.wait_for_room().await?.min(allowed);
            let mut block = Block::take(size.within(room));
            let capacity = block.bytes().len().min(room);
            let until = match (size, messages) {
                (BlockSize::Small, 0) => beginning.first,
                (BlockSize::Small, _) => Until::Short,
                _ => Until::Empty,
            };
            let (read, mut next) = fill(socket, &mut block.bytes_mut()[..capacity], until);
            if self.broken.get() && matches!(next, Next::Fin) {
                next = Next::Error;
            }
            messages += usize::from(read > 0);
            if matches!(next, Next::Fin) && messages == 1 && !self.fin_read.get() {
                self.closed_behind_first.set(true);
            }
            if read > 0 {
                self.count_in(read as u64);
                size = size.after(read, capacity);
                let fin = matches!(next, Next::Fin);
                self.write_stream(block.freeze(read), fin).await?;
                if fin {
                    return Ok(());
                }
            } else {
                drop(block);
            }
            match next {
                Next::More => {
                    moved += read;
                    if moved >= BYTES_PER_TURN {
                        moved = 0;
                        yield_now().await;
                    }
                }
                Next::Nothing => {
                    moved = 0;
                    if messages > 0 {
                        socket.acknowledge_at_once();
                    }
                    self.wait_for_socket().await;
                }
                Next::Fin => return self.finish_stream().await,
                Next::Error => {
                    self.abort(self.ends.reset_reason);
                    return Err(Stopped);
                }
            }
        }
    }

    /// Waits until the socket has something. The read that follows finds an error again.
    async fn wait_for_socket(&self) {
        let readable = self.ends.socket.readable();
        let _ready = Self::wait(self.inward(), Waits::Socket, readable).await;
    }

    /// Gives all of `bytes` to the stream. There was room a moment ago; if quiche takes less, this
    /// waits for more.
    async fn write_stream(&self, bytes: StreamBuf, fin: bool) -> Result<(), Stopped> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        let mut rest = Some(bytes);
        while let Some(bytes) = rest.take() {
            rest = match lane.write(*stream, bytes, fin, waiters) {
                Ok(rest) => rest,
                Err(error) => {
                    self.stop_inward(error);
                    return Err(Stopped);
                }
            };
            if rest.is_some() {
                self.wait_for_room().await?;
            }
        }
        Ok(())
    }

    /// Waits until the stream takes at least one byte. Returns how many it takes.
    async fn wait_for_room(&self) -> Result<usize, Stopped> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        let room = || match lane.room(*stream, LARGE_BLOCK_BYTES, waiters) {
            StreamRoom::Bytes(room) => Ok(Some(room)),
            StreamRoom::Blocked => Ok(None),
            StreamRoom::Stopped(error) => Err(error),
        };
        self.when_writable(room).await
    }

    async fn finish_stream(&self) -> Result<(), Stopped> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        let finish = || Ok(lane.finish(*stream, waiters)?.then_some(()));
        self.when_writable(finish).await
    }

    /// Tries until there is a result: each time that there is none, it waits until the stream may
    /// be written to. An error is the peer's reason: it wants no more, and what it had not taken
    /// yet is dropped.
    async fn when_writable<T>(
        &self,
        attempt: impl Fn() -> Result<Option<T>, FlowError>,
    ) -> Result<T, Stopped> {
        loop {
            match attempt() {
                Ok(Some(result)) => return Ok(result),
                Ok(None) => {
                    let writable = self.ends.waiters.writable.wait();
                    Self::wait(self.inward(), Waits::Stream, writable).await;
                }
                Err(error) => {
                    self.stop_inward(error);
                    return Err(Stopped);
                }
            }
        }
    }
}
