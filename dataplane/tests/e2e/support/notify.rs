//! A service manager: what a program sends to its NOTIFY_SOCKET.

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::wait::PATIENCE;

/// Receives notifications for as long as it lives.
pub(crate) struct ServiceManager {
    /// A directory in /tmp, because a socket's path must be short.
    dir: TempDir,
    lines: Receiver<String>,
}

impl ServiceManager {
    pub(crate) fn start() -> Self {
        let dir = TempDir::with_prefix("notify-").expect("directory");
        let socket = UnixDatagram::bind(dir.path().join("socket")).expect("bound");
        let (sender, lines) = mpsc::channel();
        // Always read, because a full queue holds the sender up. Ends when nobody wants the lines
        // any more.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .expect("timeout");
            loop {
                let read = socket.recv(&mut bytes).unwrap_or(0);
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                if text
                    .lines()
                    .any(|line| sender.send(line.to_owned()).is_err())
                {
                    return;
                }
                if read == 0 && sender.send(String::new()).is_err() {
                    return;
                }
            }
        });
        Self { dir, lines }
    }

    /// The value of NOTIFY_SOCKET.
    pub(crate) fn socket(&self) -> String {
        let path = self.dir.path().join("socket");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Waits for a line that `matches`.
    pub(crate) fn wait_for(&self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("not notified within {PATIENCE:?}: {what}"));
            if matches(&line) {
                return line;
            }
        }
    }

    /// All lines of the next `time`.
    pub(crate) fn lines_within(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut lines = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            lines.extend(self.lines.recv_timeout(left).ok());
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}
