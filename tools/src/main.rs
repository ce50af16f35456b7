//! `qmux-ctl`: what an operator needs before `qmux-dp` can start, and when it does not work.
//!
//! Makes certificates and ticket keys, adds clients, writes commented example configs, translates
//! QMux's YAML, finds out why a tunnel does not work, and shows what a running program does. Of
//! what it does only `drain` and `reload` touch a running tunnel, and it never overwrites a file
//! that it was not told to.

#![forbid(unsafe_code)]
// These macros panic when nobody reads.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod admin;
mod authority;
mod certs;
mod client;
mod completions;
mod config;
mod doctor;
mod drain;
mod failure;
mod health;
mod import;
mod man;
mod output;
mod reload;
mod renew;
mod status;
mod ticket_key;
mod top;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// The package's version and the commit that a release build is of (see `build.rs`).
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("QMUX_BUILD"), ")");

/// Certificates, example configs, import from QMux and diagnosis for qmux-dp.
#[derive(Debug, Parser)]
#[command(name = "qmux-ctl", version = VERSION, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a private CA, a server certificate and a client certificate; or renew one of them.
    Certs(certs::Args),
    /// Add a client: make the one file that it needs, and the entry for the server.
    Client(client::Args),
    /// Write a commented example config with every key.
    Config(config::Args),
    /// Translate QMux's server.yaml or client.yaml into a dp.toml.
    Import(import::Args),
    /// Make a key for session tickets, or put a new one before those of a file.
    TicketKey(ticket_key::Args),
    /// Find out from a client's machine why a tunnel does not work.
    ///
    /// Says one line for each step and, at the end, one sentence with what to do. Exits with 0 if
    /// all is well, with 1 if something is not, with 2 if the config cannot be used.
    Doctor(doctor::Args),
    /// Ask a program that runs whether it is well, as a health command.
    Health(health::Args),
    /// Show what a running program serves, for whom, and how it does.
    Status(status::Args),
    /// Watch a running program live in the terminal.
    Top(top::Args),
    /// Have a running program stop: no new flows, and an end when the open ones have ended.
    Drain(drain::Args),
    /// Have a running program read its configuration again, and say what has changed.
    ///
    /// All of it is taken up, or nothing. Exits with 2 if the configuration cannot be used; the
    /// program goes on with what it has.
    Reload(reload::Args),
    /// Print completions of this program's command line for a shell.
    Completions(completions::Args),
    /// Print this program's manual page, or write those of all commands to a directory.
    Man(man::Args),
}

fn main() -> ExitCode {
    // clap ends the program with 2 for a bad command line.
    let result = match Cli::parse().command {
        Command::Certs(args) => certs::run(args),
        Command::Client(args) => client::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Import(args) => import::run(&args),
        Command::TicketKey(args) => ticket_key::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure @ Failure::Told) => failure.exit_code(),
        Err(failure) => {
            output::to_stderr(format_args!("qmux-ctl: {failure}"));
            failure.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
