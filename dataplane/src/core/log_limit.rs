//! A bound on how often one thing is logged: a peer's fault must not fill the disk.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Lines that pass per [`WINDOW`].
const LINES_PER_WINDOW: u32 = 10;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts the lines of one kind of event on one core.
#[derive(Debug)]
pub(crate) struct LogLimit {
    since: Cell<Instant>,
    passed: Cell<u32>,
    suppressed: Cell<u64>,
}

impl LogLimit {
    /// A limit under which nothing was logged yet.
    pub(crate) fn new(now: Instant) -> LogLimit {
        LogLimit {
            since: Cell::new(now),
            passed: Cell::new(0),
            suppressed: Cell::new(0),
        }
    }

    /// Whether to log now. If so, the inner value is the number of lines that were suppressed since
    /// the last one that passed, as a field of the line; `None` is not printed.
    #[expect(
        clippy::option_option,
        reason = "the outer one says whether, the inner one is the field's value"
    )]
    pub(crate) fn pass(&self, now: Instant) -> Option<Option<u64>> {
        if now.duration_since(self.since.get()) >= WINDOW {
            self.since.set(now);
            self.passed.set(0);
        }
        if self.passed.get() >= LINES_PER_WINDOW {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.passed.set(self.passed.get() + 1);
        let suppressed = self.suppressed.take();
        Some((suppressed > 0).then_some(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[test]
    fn ten_lines_pass_then_the_rest_is_counted_until_the_next_window() {
        let start = Instant::now();
        let limit = LogLimit::new(start);
        let passed = (0..100).filter(|_| limit.pass(start).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.pass(start + WINDOW), Some(Some(90)));
        assert_eq!(limit.pass(start + WINDOW), Some(None));
    }

    #[test]
    fn nothing_suppressed_is_not_printed() {
        let start = Instant::now();
        let limit = LogLimit::new(start);
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(lines.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for now in [start; 12].into_iter().chain([start + WINDOW; 2]) {
                if let Some(suppressed) = limit.pass(now) {
                    tracing::warn!(suppressed, "it happened");
                }
            }
        });
        let text = String::from_utf8(lines.0.lock().expect("one thread").clone()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 12, "{text}");
        for (at, line) in lines.iter().enumerate() {
            assert_eq!(line.contains("suppressed=2"), at == 10, "{line}");
            assert_eq!(line.contains("suppressed"), at == 10, "{line}");
        }
    }

    /// The lines that were logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Lines;
        fn make_writer(&self) -> Lines {
            self.clone()
        }
    }
}
