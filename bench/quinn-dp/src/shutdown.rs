//! Shutdown by signals: the first SIGTERM or SIGINT starts draining, the second one exits at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

/// Tells every task when draining starts.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Listens for signals. It must be called within the Tokio runtime.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            for draining in [false, true] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if draining {
                    warn!("second signal: exiting at once");
                    std::process::exit(i32::from(crate::EXIT_FAILED));
                }
                info!("draining; a second signal exits at once");
                // This fails if there is no receiver: then everything has ended already.
                let _ended = stop.send(true);
            }
        });
        Ok(Self(stopped))
    }

    /// Waits until draining starts.
    pub(crate) async fn started(&mut self) {
        // This never fails, because the sender lives until the second signal.
        let _gone = self.0.wait_for(|stopping| *stopping).await;
    }

    pub(crate) fn has_started(&self) -> bool {
        *self.0.borrow()
    }
}
