//! `qmux-bench`; all of it is in the library, so that the compiler sees what nobody uses.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    qmux_bench::main()
}
