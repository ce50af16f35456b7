//! Logging: to standard error, as text or JSON, by a thread of its own
//! ([`crate::core::log_queue`]).
//!
//! Whatever happens to standard error does not affect code that logs: there is no wait, no error,
//! no panic.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::core::log_queue::LogQueue;
use crate::process::exit::Failure;
use crate::process::log_level;
use crate::process::warnings::Warnings;

/// How long the end of the process waits for the last lines to be written.
pub(crate) const FLUSH_AT_END: Duration = Duration::from_secs(2);

/// How long an end at once waits for the last lines to be written.
pub(crate) const FLUSH_AT_ONCE: Duration = Duration::from_millis(500);

/// How long one wait for room in standard error lasts, if somebody made it non-blocking.
const ROOM_WAIT_SECONDS: i64 = 1;

/// Options of the log.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogOptions {
    /// error, warn, info, debug or trace; or per module, as `info,qmux_dp::quic=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", global = true,
        value_parser = log_level::parse)]
    pub(crate) log_level: String,
    /// One line of text per event, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub(crate) log_format: LogFormat,
}

/// The format of a log event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

static QUEUE: LazyLock<LogQueue> = LazyLock::new(LogQueue::new);

/// The warnings that the status page shows.
static WARNINGS: Warnings = Warnings::new();

/// Whether the queue has its writer.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts logging for the whole process.
///
/// # Errors
/// If the level cannot be understood, or the thread that writes cannot be started.
pub(crate) fn start(options: &LogOptions) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&options.log_level).map_err(|error| {
        Failure::Input(format!(
            "--log-level {}: {error}; allowed are error, warn, info, debug, trace, or module=level pairs",
            options.log_level
        ))
    })?;
    let writer = std::thread::Builder::new()
        .name("log".into())
        .spawn(|| QUEUE.write_to(&mut StandardError, Duration::ZERO, tell_of_missing))
        .map_err(|error| Failure::Running(format!("thread of the log: {error}")))?;
    QUEUE.is_written_by(writer.thread().clone());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines)
        .with_ansi(io::stderr().is_terminal())
        // It would report on standard error, and panic if that is gone.
        .log_internal_errors(false)
        .with_target(false);
    match options.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    STARTED.store(true, Ordering::Release);
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Writes the error by which the program ends, whatever the log's level, in the format of the log.
pub(crate) fn say_last(error: &dyn Display, format: LogFormat) {
    match format {
        LogFormat::Text => say(&format!("qmux-dp: {error}")),
        LogFormat::Json => say(&as_json(&error.to_string(), SystemTime::now())),
    }
}

/// A line of the log in JSON, with the keys that the subscriber gives those of events.
fn as_json(error: &str, now: SystemTime) -> String {
    let line = serde_json::json!({
        "timestamp": humantime::format_rfc3339_micros(now).to_string(),
        "level": tracing::Level::ERROR.as_str(),
        "message": error,
    });
    line.to_string()
}

/// Prints one line on standard error, whatever the log's level.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    if STARTED.load(Ordering::Acquire) {
        QUEUE.push(line.as_bytes());
    } else {
        // There is nobody left to complain to.
        let _lost = StandardError.write_all(line.as_bytes());
    }
}

/// Waits until what was logged is written, but no longer than `at_most`.
pub(crate) fn flush(at_most: Duration) {
    if STARTED.load(Ordering::Acquire) {
        QUEUE.flush(at_most);
    }
}

/// Number of lines of the log that were dropped for want of room, and of those that could not be
/// written.
pub(crate) fn lost() -> (u64, u64) {
    (QUEUE.dropped(), QUEUE.failed())
}

/// The last warnings and errors, the oldest first.
pub(crate) fn last_warnings() -> Vec<String> {
    WARNINGS.lines()
}

fn tell_of_missing(lines: u64) {
    tracing::warn!(
        lines,
        "log lines are missing before this one: standard error was full, or too slow for them"
    );
}

/// Logs a panic, in place of the standard library's hook, which writes to standard error itself.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    tracing::error!(
        thread = thread.name(),
        place = panic.location().map(tracing::field::display),
        "panic: {}{backtrace}",
        words(panic.payload())
    );
}

fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(owned).unwrap_or("without a message")
}

/// Makes the writers that the subscriber writes an event to.
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { warns: false }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        Line {
            warns: *event.level() <= tracing::Level::WARN,
        }
    }
}

/// A writer that the subscriber writes an event to, with one call.
struct Line {
    /// Whether it is a warning or an error.
    warns: bool,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        QUEUE.push(bytes);
        if self.warns {
            WARNINGS.note(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error itself. Writing waits for room, even if another process has made it non-blocking.
pub(crate) struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(rustix::stdio::stderr(), bytes) {
                Err(rustix::io::Errno::AGAIN) => wait_for_room(),
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_for_room() {
    let stderr = rustix::stdio::stderr();
    let pause = Timespec {
        tv_sec: ROOM_WAIT_SECONDS,
        tv_nsec: 0,
    };
    // Whatever the result is, the next write tells more.
    let _ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&pause));
}
