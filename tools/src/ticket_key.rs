//! `qmux-ctl ticket-key`.

use std::path::PathBuf;

use qmux_config::{TICKET_KEYS_MAX, TicketKey, read_ticket_keys};

use crate::failure::Failure;
use crate::output::{self, Readers};

/// Old keys that rotation keeps unless told otherwise: as many as a server keeps that draws its
/// own.
const KEEP_DEFAULT: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = "ticket.key")]
    out: PathBuf,
    /// The file is there: put a new key before its keys, which open tickets still.
    #[arg(long, conflicts_with = "force")]
    rotate: bool,
    /// How many of the old keys rotation keeps.
    #[arg(long, value_name = "N", requires = "rotate", default_value_t = KEEP_DEFAULT,
        value_parser = clap::value_parser!(u8).range(..TICKET_KEYS_MAX as i64))]
    keep: u8,
    /// Replace the file if it is there already.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let drawn = TicketKey::draw()
        .ok_or_else(|| Failure::Internal("the system gives no random bytes".into()))?;
    let mut keys = vec![drawn];
    if args.rotate {
        let old = read_ticket_keys(&args.out)
            .map_err(|error| Failure::Input(format!("{} {error}", args.out.display())))?;
        keys.extend(old.into_iter().take(args.keep.into()));
    }
    let mut text = String::from(
        "# Session ticket keys of qmux-dp servers. The first one seals, all of them open. Keep them \
         secret.\n",
    );
    for key in &keys {
        text.push_str(&key.to_line());
        text.push('\n');
    }
    output::to_file(&args.out, &text, Readers::Owner, args.force || args.rotate)?;
    let shown = args.out.display();
    let count = keys.len();
    output::to_stdout(&format!(
        "wrote {shown}, {count} key{}\n\nNext: copy it to every server that shares it, and name it in \
         [server.tls]: session_ticket_encryption_key_file = \"{shown}\"\nA running server reads it again \
         within a minute.\n",
        if count == 1 { "" } else { "s" }
    ))
}
