//! The one who writes the access log: a thread of its own, to standard error or into a file.
//!
//! A file is opened where the log is set or reopened, so that whoever asks for it hears what is wrong
//! with it; the thread takes it over when it has written what came before. What cannot be written
//! (the disk is full) is lost and counted, and the log of the program says once that it is so and
//! once that it is over.

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

/// How long further lines gather behind one that was written: flows that end in crowds then wake the
/// thread twenty times a second and not once each.
const LINGER: Duration = Duration::from_millis(50);

/// Whoever may read the log of a new file: its owner and group, as it names visitors.
const FILE_MODE: u32 = 0o640;

/// The log of this process.
static LOG: LazyLock<Arc<AccessLog>> = LazyLock::new(|| Arc::new(AccessLog::off()));

/// What the thread is told.
static ORDERS: Mutex<Orders> = Mutex::new(Orders {
    setting: Setting::Off,
    next: None,
    has_writer: false,
});

/// Where lines go, and where they are to go.
#[derive(Debug)]
struct Orders {
    /// What was set last.
    setting: Setting,
    /// What the thread is to take over.
    next: Option<Target>,
    /// The thread has been started.
    has_writer: bool,
}

/// What lines are written to.
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

/// Another place for lines, which is open.
#[derive(Debug)]
pub(crate) struct Prepared(Option<(Setting, Target)>);

impl Prepared {
    /// Lines go there from now on.
    pub(crate) fn take_up(self) {
        let Some((setting, next)) = self.0 else {
            return;
        };
        let mut orders = orders();
        LOG.switch(setting != Setting::Off);
        orders.setting = setting;
        orders.next = Some(next);
        LOG.queue().wake();
    }
}

/// Opens a place for lines. Nothing changes yet.
///
/// # Errors
/// If the file cannot be opened, or the thread cannot be had.
pub(crate) fn prepare(setting: &Setting) -> Result<Prepared, Failure> {
    let mut orders = orders();
    if orders.setting == *setting {
        return Ok(Prepared(None));
    }
    let next = open(setting).map_err(Failure::Input)?;
    if !orders.has_writer {
        start_writer()?;
        orders.has_writer = true;
    }
    Ok(Prepared(Some((setting.clone(), next))))
}

/// Opens the file again, which may have been renamed or removed. If it cannot be opened, lines go on
/// into the one that is open.
pub(crate) fn reopen() {
    let mut orders = orders();
    if !matches!(orders.setting, Setting::File(_)) {
        return;
    }
    match open(&orders.setting) {
        Ok(next) => {
            orders.next = Some(next);
            LOG.queue().wake();
            tracing::info!(file = %orders.setting, "the access log was opened again");
        }
        Err(why) => tracing::error!("{why}; lines go on into the file that was open before"),
    }
}

/// Waits until the lines of flows that have ended are written, for `at_most` so long.
pub(crate) fn flush(at_most: Duration) {
    if LOG.is_on() {
        LOG.queue().flush(at_most);
    }
}

/// Lines that were dropped for want of room, and those that could not be written.
pub(crate) fn lost() -> (u64, u64) {
    (LOG.queue().dropped(), LOG.queue().failed())
}

/// Whether a start could write there. Makes no file.
///
/// # Errors
/// What is wrong, and what would be right.
pub(crate) fn probe(setting: &Setting) -> Result<(), Failure> {
    let Setting::File(path) = setting else {
        return Ok(());
    };
    if path.exists() {
        return open(setting).map(drop).map_err(Failure::Input);
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
    Err(Failure::Input(unusable(
        path,
        &format!("{}: {why}", directory.display()),
    )))
}

fn unusable(path: &Path, why: &str) -> String {
    format!(
        "server.access_log: {} cannot be opened to append to it ({why}); it must be \"off\", \
         \"stderr\" or a file in a directory that this user may write to",
        path.display()
    )
}

fn open(setting: &Setting) -> Result<Target, String> {
    let path = match setting {
        Setting::Off => return Ok(Target::Nothing),
        Setting::Stderr => return Ok(Target::StandardError),
        Setting::File(path) => path,
    };
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(FILE_MODE);
    // A named pipe that nobody reads would hold up whoever opens it: so it is an error.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).and_then(|file| {
        // The thread may wait for whoever reads a pipe: then lines are dropped, and counted.
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

/// The thread's end of it.
struct Out {
    target: Target,
    /// The last write has failed, and that was said.
    is_broken: bool,
}

impl Out {
    fn take_over(&mut self) {
        if let Some(next) = orders().next.take() {
            self.target = next;
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

    /// Lets go of a file that lines do not go into any more, also while none come.
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
            Err(why) => why,
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
}
