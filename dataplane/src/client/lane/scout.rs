//! The scout: a probe that finds out whether QUIC gets through to a server, without disturbing any
//! lane.
//!
//! It completes a handshake from a port of its own, and leaves. The first packets of a handshake
//! are as large as every path of QUIC must carry in both directions (RFC 9000, section 14.1), so
//! packets of that size get through if it completes. Larger ones are probed by the lane itself.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_proto::LaneError;

use super::attempt;
use crate::client::ClientCore;
use crate::client::servers::server::ServerState;
use crate::core::time;

/// A handshake that takes longer counts as a failure.
const PATIENCE: Duration = Duration::from_secs(3);

/// Number of questions that must be answered after the handshake, one after the other: a path that
/// loses most packets may let a handshake through.
const QUESTIONS: u32 = 3;

/// Pause between two checks for an answer.
const LOOK: Duration = Duration::from_millis(20);

/// Probes whether QUIC gets through.
pub(super) async fn quic_passes(core: &Rc<ClientCore>, server: &Arc<ServerState>) -> bool {
    let Ok(lane) = attempt::dial_scout(core, server) else {
        return false;
    };
    let asked = async {
        if lane.established().await.is_err() {
            return false;
        }
        for _ in 0..QUESTIONS {
            let heard = lane.packets_received();
            lane.ping();
            while lane.packets_received() == heard {
                if !lane.is_open() {
                    return false;
                }
                time::sleep(LOOK).await;
            }
        }
        true
    };
    let began = Instant::now();
    let passes = time::timeout(PATIENCE, asked).await.unwrap_or(false);
    lane.close(LaneError::Shutdown, "");
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::debug!(%server, passes, took_ms, "tried whether QUIC gets through");
    passes
}
