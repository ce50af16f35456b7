//! `qmux-ctl man`: manual pages, made from the help of the command line.
//!
//! The page of `qmux-dp` is written by hand, because its command line is in the program itself; a
//! test compares it with `qmux-dp --help`.

use std::io;
use std::path::PathBuf;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::Cli;
use crate::failure::Failure;
use crate::output::{self, Readers};

/// The page of `qmux-dp`.
const QMUX_DP: &str = include_str!("man/qmux-dp.1");

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory for one file per command, qmux-dp's among them; files that are there are
    /// replaced.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // The help command is part of the pages already.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let failed = |error: io::Error| Failure::Internal(format!("a manual page: {error}"));
    let Some(dir) = &args.out else {
        return output::to_stdout(&page(program).map_err(failed)?);
    };
    let mut pages = vec![("qmux-dp".to_owned(), QMUX_DP.to_owned())];
    add_pages(&mut pages, "qmux-ctl".into(), program).map_err(failed)?;
    let mut said = String::new();
    for (name, text) in pages {
        let path = dir.join(format!("{name}.1"));
        output::to_file(&path, &text, Readers::Usual, true)?;
        said += &format!("wrote {}\n", path.display());
    }
    output::to_stdout(&said)
}

/// The pages of a command and of those below it.
fn add_pages(pages: &mut Vec<(String, String)>, name: String, command: Command) -> io::Result<()> {
    for below in command.get_subcommands() {
        add_pages(pages, format!("{name}-{}", below.get_name()), below.clone())?;
    }
    pages.push((name, page(command)?));
    Ok(())
}

fn page(command: Command) -> io::Result<String> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
