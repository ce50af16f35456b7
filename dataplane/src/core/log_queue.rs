//! Lines on their way to a log, of the program or of its flows: a bounded queue, and the one thread
//! that writes.
//!
//! Whoever logs must not wait for the reader of the log. A pipe that nobody reads, a terminal that
//! is stopped, or a full disk would otherwise hold up a core with all its flows. So a line is put
//! into a queue without a lock. If there is no room, or the line cannot be written, it is dropped
//! and counted, and the log says how many lines are missing as soon as one can be written again.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

/// The most lines that wait. At debug level a busy core writes some ten thousand a second; this
/// bridges the moments in which a healthy reader does not come to read.
const LINES_MAX: usize = 8_192;

/// The most bytes that wait: as many lines of 512 bytes, which few lines reach.
const BYTES_MAX: usize = LINES_MAX * 512;

/// Pause between two checks, at the end of the process, whether everything is written.
const FLUSH_POLL: Duration = Duration::from_millis(1);

/// The queue.
#[derive(Debug)]
pub(crate) struct LogQueue {
    lines: ArrayQueue<Box<[u8]>>,
    lines_max: usize,
    bytes: AtomicUsize,
    /// Lines that were put in, and lines among them that are written or have failed.
    taken: AtomicU64,
    settled: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Lines that were dropped or failed and that the log has not reported yet.
    untold: AtomicU64,
    writer: OnceLock<Thread>,
}

impl LogQueue {
    /// An empty queue without a writer.
    pub(crate) fn new() -> LogQueue {
        LogQueue::with_room_for(LINES_MAX)
    }

    fn with_room_for(lines_max: usize) -> LogQueue {
        LogQueue {
            lines: ArrayQueue::new(lines_max),
            lines_max,
            bytes: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            writer: OnceLock::new(),
        }
    }

    /// Puts a line in, with its line feed, or drops it if there is no room. It never waits.
    pub(crate) fn push(&self, line: &[u8]) {
        let waiting = self.bytes.fetch_add(line.len(), Ordering::AcqRel);
        self.taken.fetch_add(1, Ordering::AcqRel);
        if waiting + line.len() > BYTES_MAX || self.lines.push(line.into()).is_err() {
            self.bytes.fetch_sub(line.len(), Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.untold.fetch_add(1, Ordering::Relaxed);
            self.settled.fetch_add(1, Ordering::AcqRel);
        }
        self.wake();
    }

    /// Whether no line waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Number of lines that were dropped for want of room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Number of lines that could not be written.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written or dropped, but no longer than `at_most`.
    pub(crate) fn flush(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let waiting = || self.settled.load(Ordering::Acquire) < self.taken.load(Ordering::Acquire);
        while waiting() && Instant::now() < deadline {
            thread::sleep(FLUSH_POLL);
        }
    }

    /// Names the thread that will call [`Self::write_to`]; to be called before anything is pushed.
    pub(crate) fn is_written_by(&self, writer: Thread) {
        // There is only one thread that writes.
        let _first = self.writer.set(writer);
    }

    /// Wakes the writer, so that it flushes its output even if there is no line.
    pub(crate) fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Writes lines to `out` for ever, on this thread, and flushes it when there are no more.
    /// `tell` is to log how many lines are missing at this place. After a line it lets further ones
    /// gather for `linger`, because waking this thread costs the core that pushes a system call,
    /// and nothing while it is awake.
    pub(crate) fn write_to(&self, out: &mut impl Write, linger: Duration, tell: impl Fn(u64)) {
        let mut torn = false;
        let mut has_written = false;
        loop {
            if let Some(line) = self.lines.pop() {
                self.write_one(&line, out, &mut torn, &tell);
                has_written = true;
                continue;
            }
            // `out` reports itself what it cannot write.
            let _said = out.flush();
            if std::mem::take(&mut has_written) && !linger.is_zero() {
                thread::sleep(linger);
            } else {
                // A thread that has pushed since then has unparked this one, so this does not park.
                thread::park();
            }
        }
    }

    fn write_one(&self, line: &[u8], out: &mut impl Write, torn: &mut bool, tell: impl Fn(u64)) {
        let result = write_line(line, out, torn);
        self.bytes.fetch_sub(line.len(), Ordering::AcqRel);
        if result.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.untold.fetch_add(1, Ordering::Relaxed);
        } else if self.untold.load(Ordering::Relaxed) > 0 && self.has_room() {
            tell(self.untold.swap(0, Ordering::Relaxed));
        }
        self.settled.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether a report about missing lines is likely to be taken in, and not to be followed by
    /// another one at once.
    fn has_room(&self) -> bool {
        self.lines.len() <= self.lines_max / 2
            && self.bytes.load(Ordering::Acquire) <= BYTES_MAX / 2
    }
}

/// Writes the line, after the end of an earlier one of which only a part could be written.
fn write_line(line: &[u8], out: &mut impl Write, torn: &mut bool) -> io::Result<()> {
    if *torn {
        out.write_all(b"\n")?;
        *torn = false;
    }
    let mut rest = line;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                rest = &rest[written..];
                *torn = !rest.is_empty();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A writer that takes a line when it is told to, with the result that it is told.
    struct Reader {
        orders: mpsc::Receiver<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // If nobody gives orders any more, the reader takes every line.
            self.orders.recv().unwrap_or(Ok(()))?;
            self.written.lock().expect("written").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Orders = mpsc::Sender<io::Result<()>>;
    type Written = Arc<Mutex<Vec<u8>>>;

    /// A queue with a writer that waits for orders, and what it has written.
    fn started(lines_max: usize) -> (Arc<LogQueue>, Orders, Written) {
        started_with(lines_max, Duration::ZERO)
    }

    fn started_with(lines_max: usize, linger: Duration) -> (Arc<LogQueue>, Orders, Written) {
        let queue = Arc::new(LogQueue::with_room_for(lines_max));
        let (order, orders) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut reader = Reader {
            orders,
            written: Arc::clone(&written),
        };
        let (writing, for_telling) = (Arc::clone(&queue), Arc::clone(&queue));
        let writer = thread::spawn(move || {
            writing.write_to(&mut reader, linger, |lost| {
                for_telling.push(format!("{lost} lost\n").as_bytes());
            });
        });
        queue.is_written_by(writer.thread().clone());
        (queue, order, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().expect("written").clone()).expect("text")
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_is_told_what_is_missing() {
        let (queue, order, written) = started(10);
        for line in 0..1_000 {
            queue.push(format!("line {line}\n").as_bytes());
        }
        let dropped = queue.dropped();
        // Ten lines wait, and the writer may hold one.
        assert!((989..=990).contains(&dropped), "{dropped}");
        drop(order);
        queue.flush(PATIENCE);
        queue.push(b"last\n");
        queue.flush(PATIENCE);
        let text = text(&written);
        assert!(text.starts_with("line 0\nline 1\n"), "{text}");
        assert!(text.contains(&format!("{dropped} lost\n")), "{text}");
        assert!(text.ends_with("last\n"), "{text}");
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
        assert_eq!((queue.dropped(), queue.failed()), (dropped, 0));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told_of_once_they_can() {
        let (queue, order, written) = started(10);
        for _ in 0..3 {
            let full = io::Error::from_raw_os_error(libc::ENOSPC);
            order.send(Err(full)).expect("the writer lives");
            queue.push(b"in vain\n");
        }
        queue.flush(PATIENCE);
        assert_eq!((queue.failed(), text(&written).as_str()), (3, ""));
        drop(order);
        queue.push(b"room again\n");
        queue.flush(PATIENCE);
        assert_eq!(text(&written), "room again\n3 lost\n");
    }

    #[test]
    fn a_writer_that_lingers_writes_every_line_all_the_same() {
        let (queue, order, written) = started_with(10, Duration::from_millis(1));
        drop(order);
        for line in 0..100 {
            queue.push(format!("{line}\n").as_bytes());
            queue.flush(PATIENCE);
        }
        assert_eq!(text(&written).lines().count(), 100);
    }

    #[test]
    fn the_end_waits_for_a_reader_that_stands_still_only_so_long() {
        let (queue, _order, _) = started(10);
        queue.push(b"nobody reads this\n");
        // It returns at all.
        queue.flush(Duration::from_millis(10));
    }

    #[test]
    fn a_line_of_which_only_a_part_was_written_is_ended_before_the_next_one() {
        struct Full(Vec<u8>, usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let room = self.1.saturating_sub(self.0.len()).min(bytes.len());
                if room == 0 {
                    return Err(io::Error::from_raw_os_error(libc::ENOSPC));
                }
                self.0.extend(&bytes[..room]);
                Ok(room)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut disk, mut torn) = (Full(Vec::new(), 9), false);
        assert!(write_line(b"first\n", &mut disk, &mut torn).is_ok());
        assert!(write_line(b"second\n", &mut disk, &mut torn).is_err());
        assert!(write_line(b"third\n", &mut disk, &mut torn).is_err());
        disk.1 = 100;
        assert!(write_line(b"fourth\n", &mut disk, &mut torn).is_ok());
        assert_eq!(disk.0, b"first\nsec\nfourth\n");
    }
}
