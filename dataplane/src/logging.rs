//! Logging: to standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::{LogFormat, LogOptions};
use crate::exit::Failure;

/// Starts logging for the whole process.
///
/// # Errors
/// If the level cannot be understood.
pub(crate) fn start(options: &LogOptions) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&options.log_level).map_err(|error| {
        Failure::Input(format!(
            "--log-level {}: {error}; allowed are error, warn, info, debug, trace, or module=level pairs",
            options.log_level
        ))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match options.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
