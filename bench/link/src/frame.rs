//! The buffer of a packet.

use tun_rs::{ExpandBuffer, VIRTIO_NET_HDR_LEN};

/// Bytes in front of the packet, for the header that tells the kernel about segments
/// (virtio_net_hdr).
pub(super) const FRAME_OFFSET: usize = VIRTIO_NET_HDR_LEN;

/// The longest IP packet, in bytes: the kernel hands over and takes segments in pieces of this
/// size.
pub(super) const PACKET_BYTES_MAX: usize = 65_535;

/// The bytes that a coalesced frame may need; tun-rs asks for the offset twice.
const CAPACITY_MAX: usize = 2 * FRAME_OFFSET + PACKET_BYTES_MAX;

/// Buffers that grew beyond this by coalescing are not kept.
const KEPT_CAPACITY_MAX: usize = 16 * 1024;

/// The most buffers that are kept for use: more than a batch, so that a steady stream allocates
/// nothing.
const KEPT_FRAMES_MAX: usize = 4_096;

/// A packet with room for a header in front of it. It tells tun-rs that it may grow, and grows when
/// it does.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame(Vec<u8>);

impl Frame {
    /// Cuts the frame to the length of its packet.
    pub(super) fn set_packet_bytes(&mut self, bytes: usize) {
        self.0.truncate(FRAME_OFFSET + bytes);
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Frame {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl ExpandBuffer for Frame {
    fn buf_capacity(&self) -> usize {
        CAPACITY_MAX
    }

    fn buf_resize(&mut self, new_len: usize, value: u8) {
        self.0.resize(new_len, value);
    }

    fn buf_extend_from_slice(&mut self, src: &[u8]) {
        if self.0.capacity() < self.0.len() + src.len() {
            // The buffer grows once, rather than by doubling several times.
            self.0.reserve_exact(CAPACITY_MAX - self.0.len());
        }
        self.0.extend_from_slice(src);
    }
}

/// Frames that wait for use.
#[derive(Debug)]
pub(super) struct FramePool {
    frames: Vec<Frame>,
    frame_bytes: usize,
}

impl FramePool {
    /// Frames for packets of up to `packet_bytes`.
    pub(super) fn new(packet_bytes: usize) -> Self {
        Self {
            frames: Vec::new(),
            frame_bytes: FRAME_OFFSET + packet_bytes,
        }
    }

    /// A frame with room for a packet.
    pub(super) fn take(&mut self) -> Frame {
        let mut frame = self.frames.pop().unwrap_or_default();
        frame.0.resize(self.frame_bytes, 0);
        frame
    }

    /// Keeps a frame for later.
    pub(super) fn put(&mut self, frame: Frame) {
        if self.frames.len() < KEPT_FRAMES_MAX && frame.0.capacity() <= KEPT_CAPACITY_MAX {
            self.frames.push(frame);
        }
    }
}
