//! The writer of the access log: a thread of its own, to standard error or into a file.
//!
//! A file is opened when the log is configured, so that whoever asks for it is told what is wrong
//! with it; the thread takes it over when it has written what came before. What cannot be written
//! (because the disk is full) is lost and counted, and the log of the program says once that this
//! has begun and once that it is over.
//!
//! The thread itself opens a file again, so a file system that answers nobody costs lines, which
//! are counted, and never holds up the handling of signals. Nobody opens, writes or closes a file
//! while the orders are locked.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qmux_config::AccessLog as Setting;

use super::exit::Failure;
use super::logging::StandardError;
use crate::server::AccessLog;

/// How long further lines are gathered after one that was written: flows that end in crowds then
/// wake the thread twenty times a second and not once each.
const LINGER: Duration = Duration::from_millis(50);

/// Mode of a new log file: its owner and group may read it, because it names visitors.
const FILE_MODE: u32 = 0o640;

/// The access log of this process.
static LOG: LazyLock<Arc<AccessLog>> = LazyLock::new(|| Arc::new(AccessLog::off()));

/// The orders to the thread.
static ORDERS: Mutex<Orders> = Mutex::new(Orders {
    setting: Setting::Off,
    next: None,
    again: false,
    has_writer: false,
});

/// Where lines are written, and where they are to be written.
#[derive(Debug)]
struct Orders {
    /// The setting that was set last.
    setting: Setting,
    /// The target that the thread is to take over.
    next: Option<Target>,
    /// Whether it is to open its file again.
    again: bool,
    /// Whether the thread has been started.
    has_writer: bool,
}

/// The target of lines.
#[derive(Debug)]
enum Target {
    Nothing,
    StandardError,
    File(File, PathBuf),
}

fn orders() -> MutexGuard<'static, Orders> {
    ORDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log, for those whose flows end.
pub(crate) fn shared() -> Arc<AccessLog> {
    Arc::clone(&LOG)
}

/// A target for lines that has been opened.
#[derive(Debug)]
pub(crate) struct Prepared(Option<(Setting, Target)>);

impl Prepared {
    /// Writes lines to this target from now on.
    pub(crate) fn take_up(self) {
        let Some((setting, next)) = self.0 else {
            return;
        };
        // Lines are made only while there is a target for them.
        let is_on = setting != Setting::Off;
        if !is_on {
            LOG.switch(false);
        }
        let superseded = {
            let mut orders = orders();
            orders.setting = setting;
            orders.again = false;
            orders.next.replace(next)
        };
        drop(superseded);
        if is_on {
            LOG.switch(true);
        }
        LOG.queue().wake();
    }
}

/// Opens a target for lines. Nothing changes yet.
///
/// # Errors
/// If the file cannot be opened, or the thread cannot be started.
pub(crate) fn prepare(setting: &Setting) -> Result<Prepared, Failure> {
    if orders().setting == *setting {
        return Ok(Prepared(None));
    }
    let next = open(setting)?;
    let mut orders = orders();
    if !orders.has_writer {
        start_writer()?;
        orders.has_writer = true;
    }
    Ok(Prepared(Some((setting.clone(), next))))
}

/// Orders the writer to open the file again, which may have been renamed or removed. If it cannot
/// be opened, lines go on into the open one. This does not wait.
pub(crate) fn reopen() {
    let mut orders = orders();
    if matches!(orders.setting, Setting::File(_)) {
        orders.again = true;
        LOG.queue().wake();
    }
}

/// Waits until the lines of flows that have ended are written, but no longer than `at_most`.
pub(crate) fn flush(at_most: Duration) {
    if LOG.is_on() {
        LOG.queue().flush(at_most);
    }
}

/// Number of lines that were dropped for want of room, and of those that could not be written.
pub(crate) fn lost() -> (u64, u64) {
    (LOG.queue().dropped(), LOG.queue().failed())
}

/// Whether a start could write to this target. Makes no file.
///
/// # Errors
/// If the log cannot be written. The message says what is wrong, and what would be right.
pub(crate) fn probe(setting: &Setting) -> Result<(), Failure> {
    let Setting::File(path) = setting else {
        return Ok(());
    };
    if path.exists() {
        return open(setting).map(drop);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let writable = rustix::fs::access(directory, rustix::fs::Access::WRITE_OK);
    if directory.is_dir() && writable.is_ok() {
        return Ok(());
    }
    let why = match writable {
        Err(error) => io::Error::from(error).to_string(),
        Ok(()) => "it is not a directory".into(),
    };
    let why = format!("{}: {why}", directory.display());
    Err(unusable(path, &why))
}

fn unusable(path: &Path, why: &str) -> Failure {
    let why = format!(
        "{} cannot be opened to append to it ({why}); it must be \"off\", \"stderr\" or a file in \
         a directory that this user may write to",
        path.display()
    );
    Failure::of_key("server.access_log", why)
}

fn open(setting: &Setting) -> Result<Target, Failure> {
    let path = match setting {
        Setting::Off => return Ok(Target::Nothing),
        Setting::Stderr => return Ok(Target::StandardError),
        Setting::File(path) => path,
    };
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(FILE_MODE);
    // Opening a named pipe that nobody reads would wait, so it is an error.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).and_then(|file| {
        // The thread may wait for the reader of a pipe; then lines are dropped, and counted.
        rustix::io::ioctl_fionbio(&file, false)?;
        Ok(file)
    });
    match file {
        Ok(file) => Ok(Target::File(file, path.clone())),
        Err(error) => Err(unusable(path, &error.to_string())),
    }
}

fn start_writer() -> Result<(), Failure> {
    let writer = std::thread::Builder::new()
        .name("access-log".into())
        .spawn(|| {
            let mut out = Out {
                target: Target::Nothing,
                is_broken: false,
            };
            LOG.queue().write_to(&mut out, LINGER, tell_of_missing);
        })
        .map_err(|error| Failure::Running(format!("thread of the access log: {error}")))?;
    LOG.queue().is_written_by(writer.thread().clone());
    Ok(())
}

fn tell_of_missing(lines: u64) {
    tracing::warn!(
        lines,
        "lines of the access log are missing: it could not be written, or not fast enough"
    );
}

/// The thread's end of the log.
struct Out {
    target: Target,
    /// Whether the last write has failed, which has been logged.
    is_broken: bool,
}

impl Out {
    fn take_over(&mut self) {
        let (next, again) = {
            let mut orders = orders();
            (orders.next.take(), std::mem::take(&mut orders.again))
        };
        if let Some(next) = next {
            self.target = next;
        }
        if again {
            self.open_again();
        }
    }

    fn open_again(&mut self) {
        let Target::File(_, path) = &self.target else {
            return;
        };
        match open(&Setting::File(path.clone())) {
            Ok(again) => {
                tracing::info!(file = %path.display(), "the access log was opened again");
                self.target = again;
            }
            Err(why) => tracing::error!("{why}; lines go on into the file that was open before"),
        }
    }

    fn note(&mut self, result: &io::Result<usize>) {
        match (result, &self.target) {
            (Err(error), Target::File(_, path))
                if !self.is_broken && error.kind() != io::ErrorKind::Interrupted =>
            {
                self.is_broken = true;
                tracing::error!(
                    file = %path.display(), %error,
                    "the access log cannot be written; its lines are lost until it can"
                );
            }
            (Ok(_), Target::File(_, path)) if self.is_broken => {
                self.is_broken = false;
                tracing::info!(file = %path.display(), "the access log can be written again");
            }
            _ => {}
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take_over();
        let result = match &mut self.target {
            Target::Nothing => Ok(bytes.len()),
            Target::StandardError => StandardError.write(bytes),
            Target::File(file, _) => file.write(bytes),
        };
        self.note(&result);
        result
    }

    /// Closes a file that lines are not written to any more, even while no lines come.
    fn flush(&mut self) -> io::Result<()> {
        self.take_over();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        match open(&Setting::File(path.into())) {
            Err(why) => why.to_string(),
            Ok(_) => panic!("{} is opened", path.display()),
        }
    }

    #[test]
    fn what_cannot_be_appended_to_is_refused_with_what_would_be_right() {
        let dir = tempfile::tempdir().expect("a directory");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("a named pipe");
        for path in [dir.path(), &pipe, &dir.path().join("missing/file")] {
            let why = refused(path);
            assert!(why.contains("server.access_log"), "{why}");
            assert!(why.contains("\"stderr\""), "{why}");
            assert!(probe(&Setting::File(path.into())).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_file_is_appended_to_and_a_probe_makes_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let setting = Setting::File(path.clone());
        assert!(probe(&setting).is_ok());
        assert!(!path.exists());
        for text in ["one\n", "two\n"] {
            match open(&setting) {
                Ok(Target::File(mut file, _)) => file.write_all(text.as_bytes()).expect("room"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "one\ntwo\n");
        assert!(probe(&setting).is_ok());
    }

    #[test]
    fn a_file_is_opened_again_by_the_thread_that_writes_and_whoever_asks_does_not_wait() {
        const LINE_BYTES: usize = 200_000;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let (mode, kind) = (rustix::fs::Mode::RWXU, rustix::fs::FileType::Fifo);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).expect("a named pipe");
        let mut reader = File::options();
        reader.read(true).custom_flags(libc::O_NONBLOCK);
        let mut reader = reader.open(&path).expect("the pipe");
        let setting = Setting::File(path.clone());
        prepare(&setting).expect("a log").take_up();
        // No pipe takes all of it.
        let mut line = vec![b'x'; LINE_BYTES];
        line.push(b'\n');
        LOG.queue().push(&line);
        let mut read = 0;
        let mut read_some = || read_into(&mut reader, &mut read);
        while read_some() == 0 {
            std::thread::yield_now();
        }
        // The thread waits for us now, as it does for a disk that does not answer.
        std::fs::rename(&path, dir.path().join("rotated.log")).expect("renamed");
        reopen();
        assert!(!path.exists(), "nobody but the thread opens it");
        while read_some() <= LINE_BYTES {
            std::thread::yield_now();
        }
        while !path.exists() {
            std::thread::yield_now();
        }
        LOG.queue().push(b"after\n");
        while std::fs::read(&path).expect("there") != b"after\n" {
            std::thread::yield_now();
        }
    }

    /// Reads what is in a pipe; returns how much that was, with what was `read` before.
    fn read_into(pipe: &mut File, read: &mut usize) -> usize {
        match io::Read::read(pipe, &mut [0; 4_096]) {
            Ok(bytes) => *read += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        *read
    }
}
