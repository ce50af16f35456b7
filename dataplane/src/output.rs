//! What the program prints on standard output: lines for whoever runs it by hand. Nothing depends
//! on their being read, so a closed or full standard output is no failure.

use std::fmt::Display;
use std::io::Write as _;

/// Writes one line.
pub(crate) fn line(text: impl Display) {
    let _closed = writeln!(std::io::stdout(), "{text}");
}
