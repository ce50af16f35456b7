//! What each signal means to a process that serves.
//!
//! A signal that nobody handles ends a process silently, with all its flows. So those that
//! operators, terminals and tools send by habit are handled, and answered by a line in the log. The
//! handlers are installed before anything else begins.

use std::ffi::c_int;
use std::time::Instant;

use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::core::log_limit::LogLimit;
use crate::process::{access_log, logging};

/// All signals that are handled; SIGPIPE is ignored by Rust's runtime. SIGXFSZ comes when a file,
/// mostly the log, reaches the largest size allowed: the write fails as well, and that is counted.
const TAKEN: [c_int; 8] = [
    SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGXFSZ,
];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stop,
    Reload,
    Succeed,
    Nothing,
    /// Nothing is done or logged, because a log line about the signal would cause the next one.
    NothingSaid,
}

impl Wish {
    fn of(signal: c_int) -> Wish {
        match signal {
            SIGTERM | SIGINT | SIGQUIT => Wish::Stop,
            SIGHUP => Wish::Reload,
            SIGUSR2 => Wish::Succeed,
            SIGXFSZ => Wish::NothingSaid,
            _ => Wish::Nothing,
        }
    }
}

/// Calls `stop` for the first signal that asks for it; the second one ends the process at once.
/// Calls `reload`, which returns whether a reload can be done, and `succeed`, for a successor, for
/// each signal that asks for them.
///
/// # Errors
/// If the handlers or their thread cannot be installed.
pub(crate) fn listen(
    stop: impl Fn() + Send + 'static,
    reload: impl Fn() -> bool + Send + 'static,
    succeed: impl Fn() -> bool + Send + 'static,
) -> std::io::Result<()> {
    let mut signals = Signals::new(TAKEN)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let log = LogLimit::new(Instant::now());
            let mut stopping = false;
            for signal in signals.forever() {
                match Wish::of(signal) {
                    Wish::Stop if stopping => {
                        tracing::warn!("second signal: ending at once");
                        access_log::flush(logging::FLUSH_AT_ONCE);
                        logging::flush(logging::FLUSH_AT_ONCE);
                        std::process::exit(1);
                    }
                    Wish::Stop => {
                        stopping = true;
                        stop();
                    }
                    Wish::NothingSaid => {}
                    wish @ Wish::Reload => {
                        access_log::reopen();
                        if !reload() {
                            say_ignored(signal, wish, &log);
                        }
                    }
                    Wish::Succeed if succeed() => {}
                    wish @ (Wish::Succeed | Wish::Nothing) => say_ignored(signal, wish, &log),
                }
            }
        })?;
    Ok(())
}

fn say_ignored(signal: c_int, wish: Wish, log: &LogLimit) {
    let Some(suppressed) = log.pass(Instant::now()) else {
        return;
    };
    let signal = signal_name(signal).unwrap_or("another signal");
    if wish == Wish::Reload {
        tracing::warn!(
            signal,
            suppressed,
            "signal ignored: this process has no config file to read again, or is told too often"
        );
    } else if wish == Wish::Succeed {
        tracing::warn!(
            signal,
            suppressed,
            "signal ignored: to start a successor of this process, set handover in [server]"
        );
    } else {
        tracing::warn!(
            signal,
            suppressed,
            "signal ignored: it means nothing to this program; SIGTERM stops it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_signals_stop_and_none_that_is_taken_kills() {
        let stops = TAKEN
            .into_iter()
            .filter(|signal| Wish::of(*signal) == Wish::Stop);
        assert_eq!(stops.collect::<Vec<_>>(), [SIGTERM, SIGINT, SIGQUIT]);
        assert_eq!(Wish::of(SIGHUP), Wish::Reload);
    }
}
