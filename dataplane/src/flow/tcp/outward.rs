//! The pump from the stream to the socket. It takes more from the stream only when the socket has
//! taken what came before.

use std::io;

use qmux_proto::FlowError;

use super::super::bandwidth::Direction;
use super::super::watch::Waits;
use super::{BYTES_PER_TURN, Flow, Stopped, TcpFlow};
use crate::buffer::{Block, BlockSize};
use crate::core::event::yield_now;
use crate::quic::lane::StreamRead;

impl Flow {
    pub(super) async fn stream_to_socket(&self, early: Vec<u8>, early_fin: bool) {
        // The reason is noted where it happens.
        let _early = self.pump_outward(early, early_fin).await;
    }

    async fn pump_outward(&self, early: Vec<u8>, early_fin: bool) -> Result<(), Stopped> {
        let TcpFlow {
            socket,
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        self.fin_read.set(early_fin);
        self.write_socket(&early, early_fin).await?;
        drop(early);
        let mut size = BlockSize::Small;
        let mut moved = 0;
        loop {
            let allowed = match self.fin_read.get() {
                true => 0,
                false => self.allowed(Direction::Out, self.outward()).await,
            };
            if self.fin_read.get() {
                if self.shuts_down() {
                    // If the connection is gone already, the other pump notices.
                    let _gone = socket.shutdown_write();
                }
                return Ok(());
            }
            let mut block = Block::take(size);
            let capacity = block.bytes().len().min(allowed);
            match lane.read(*stream, &mut block.bytes_mut()[..capacity], waiters) {
                StreamRead::Bytes(read, fin) => {
                    size = size.after(read, capacity);
                    self.fin_read.set(fin);
                    self.write_socket(&block.bytes()[..read], fin).await?;
                    moved += read;
                    if moved >= BYTES_PER_TURN && !fin {
                        moved = 0;
                        yield_now().await;
                    }
                }
                StreamRead::Blocked => {
                    drop(block);
                    moved = 0;
                    Self::wait(self.outward(), Waits::Stream, waiters.readable.wait()).await;
                }
                StreamRead::Reset(error) => {
                    self.abort(error);
                    return Err(Stopped);
                }
            }
        }
    }

    /// Whether the FIN of the stream is for the socket alone. If both directions have ended, the
    /// socket is closed next, and that sends the FIN.
    fn shuts_down(&self) -> bool {
        self.inward().get() != Waits::Over || self.stopped.get().is_some()
    }

    /// Gives all of `bytes` to the socket, the `last` ones of the stream or others.
    async fn write_socket(&self, mut bytes: &[u8], last: bool) -> Result<(), Stopped> {
        let TcpFlow {
            socket,
            lane,
            watch,
            ..
        } = &self.ends;
        let (own, given) = (self.own_bytes, self.bytes_out.get());
        if self.bytes_in.get() == 0 && holds_first_byte(own, given, bytes.len()) {
            // A server that has heard nothing of these bytes gives them to another client when this
            // one dies, and no service must get them twice. So the server hears of them first.
            lane.acknowledge_now().await;
            if lane.end().is_some() {
                self.abort(FlowError::Internal);
                return Err(Stopped);
            }
        }
        while !bytes.is_empty() {
            // A close may wait until the core's turn ends, and no bytes are to wait for it.
            let written = match last && self.shuts_down() {
                true => socket.try_write_last(bytes),
                false => socket.try_write(bytes),
            };
            match written {
                Ok(written) => {
                    watch.socket_took();
                    self.count_out(written as u64);
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch.socket_is_full();
                    // The write that follows finds an error again.
                    let _ready = Self::wait(self.outward(), Waits::Socket, socket.writable()).await;
                }
                // What the peer has sent may still be there to read. For EPIPE see `socket_failed`;
                // with any other error it is not complete.
                Err(error) => {
                    self.broken.set(error.kind() != io::ErrorKind::BrokenPipe);
                    self.cut_outward();
                    return Err(Stopped);
                }
            }
        }
        Ok(())
    }
}

/// Whether the first byte of the visitor is among the next `bytes` for the socket, which has got
/// `given` so far and gets `own` bytes before the visitor's.
fn holds_first_byte(own: u64, given: u64, bytes: usize) -> bool {
    given <= own && given + bytes as u64 > own
}

#[cfg(test)]
mod tests {
    use super::holds_first_byte;

    #[test]
    fn the_first_byte_of_a_visitor_is_told_from_those_before_and_behind_it() {
        assert!(holds_first_byte(0, 0, 1) && !holds_first_byte(0, 0, 0));
        assert!(!holds_first_byte(0, 1, 100));
        // A header of ours alone, and then the visitor's bytes; or both at once.
        assert!(!holds_first_byte(28, 0, 28) && holds_first_byte(28, 28, 1));
        assert!(holds_first_byte(28, 0, 29) && !holds_first_byte(28, 29, 1));
    }
}
