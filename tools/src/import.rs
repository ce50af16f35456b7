//! `qmux-ctl import`.

use std::fs;
use std::path::{Path, PathBuf};

use qmux_config::import::{self, ImportError};

use crate::failure::Failure;
use crate::output::{self, Readers};

/// The largest YAML, in bytes: a thousand times what anybody writes.
const YAML_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// QMux's server.yaml or client.yaml.
    #[arg(value_name = "QMUX.yaml")]
    yaml: PathBuf,
    /// The file to write; without it, the config goes to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it is there already.
    #[arg(long, requires = "out")]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let shown = args.yaml.display();
    let yaml = read(&args.yaml).map_err(|message| Failure::Input(format!("{shown}: {message}")))?;
    let target = args.out.as_deref().unwrap_or(Path::new("dp.toml"));
    let imported = import::import(&yaml, target).map_err(|error| {
        let separator = if matches!(error, ImportError::Syntax { .. }) {
            ":"
        } else {
            ": "
        };
        Failure::Input(format!("{shown}{separator}{error}"))
    })?;
    let report = || {
        for note in &imported.notes {
            match note.line {
                Some(line) => output::to_stderr(format_args!(
                    "{shown}:{line}: {}: {}",
                    note.key, note.message
                )),
                None => output::to_stderr(format_args!(
                    "{}: {}: {}",
                    target.display(),
                    note.key,
                    note.message
                )),
            }
        }
        if !imported.notes.is_empty() {
            output::to_stderr(format_args!(
                "notes on what did not carry over as it was: {}",
                imported.notes.len()
            ));
        }
    };
    let Some(path) = &args.out else {
        report();
        return output::to_stdout(&imported.toml);
    };
    let holds_secret = imported
        .toml
        .lines()
        .any(|line| line.starts_with("token = "));
    let readers = if holds_secret {
        Readers::Owner
    } else {
        Readers::Usual
    };
    output::to_file(path, &imported.toml, readers, args.force)?;
    report();
    let path = path.display();
    output::to_stdout(&format!(
        "wrote {path}\n\nNext: qmux-dp --config {path} --check\n"
    ))
}

fn read(path: &Path) -> Result<String, String> {
    let metadata = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if metadata.is_dir() {
        return Err("is a directory; it must be QMux's server.yaml or client.yaml".to_owned());
    }
    if metadata.len() > YAML_BYTES_MAX {
        return Err(format!("is larger than {} MiB", YAML_BYTES_MAX >> 20));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}
