//! What must be undone however this process ends.
//!
//! Drops undo it on the way out and after a panic; a signal ends the process without them, so a
//! thread waits for signals and does it instead. Child processes need no entry: the kernel kills
//! them with this process.

use std::fmt::Arguments;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::lock;
use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};

/// Exit code after a signal, as shells have it for the first of them, and that of a program whose
/// reader has gone.
const EXIT_SIGNAL: i32 = 128 + SIGINT;
const EXIT_PIPE: i32 = 128 + SIGPIPE;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    Directory(PathBuf),
    Namespace(String),
}

impl Undo {
    fn run(&self) {
        match self {
            // What cannot be deleted is reported by whoever finds it; there is nobody to tell at
            // the end.
            Self::Directory(path) => drop(std::fs::remove_dir_all(path)),
            Self::Namespace(name) => {
                let _ = Command::new("ip")
                    .args(["netns", "delete", name])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

static PENDING: Mutex<Vec<Undo>> = Mutex::new(Vec::new());

/// Undoes its entry when dropped.
#[derive(Debug)]
pub(crate) struct Guard(Undo);

impl Guard {
    pub(crate) fn new(undo: Undo) -> Self {
        lock(&PENDING).push(undo.clone());
        Self(undo)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.run();
        lock(&PENDING).retain(|undo| *undo != self.0);
    }
}

/// Undoes everything and ends the process.
fn end(code: i32) -> ! {
    for undo in lock(&PENDING).drain(..).rev() {
        undo.run();
    }
    std::process::exit(code);
}

/// From now on SIGINT, SIGTERM and SIGHUP undo everything and end the process.
pub(crate) fn on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .context("signal handlers")?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("qmux-bench: interrupted; ending what was started");
            end(EXIT_SIGNAL);
        }
    });
    Ok(())
}

/// What `say!` does.
pub(crate) fn print(words: Arguments<'_>) {
    let mut output = io::stdout().lock();
    match writeln!(output, "{words}").and_then(|()| output.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => end(EXIT_PIPE),
        Err(error) => {
            eprintln!("qmux-bench: printing: {error}");
            end(1);
        }
    }
}

/// `println!` that ends this process quietly where nobody reads any more, as behind `| head`.
macro_rules! say {
    ($($words:tt)*) => { $crate::harness::cleanup::print(format_args!($($words)*)) };
}
pub(crate) use say;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_guard_undoes_and_forgets() {
        let path = std::env::temp_dir().join(format!("qmux-bench-guard-{}", std::process::id()));
        std::fs::create_dir_all(path.join("inner")).expect("directory");
        let undo = Undo::Directory(path.clone());
        let guard = Guard::new(undo.clone());
        assert!(lock(&PENDING).contains(&undo));
        drop(guard);
        assert!(!path.exists());
        assert!(!lock(&PENDING).contains(&undo));
    }
}
