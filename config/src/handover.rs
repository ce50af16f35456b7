//! `[server] handover`: the Unix socket at which a running server gives its sockets to its
//! successor.

use std::path::PathBuf;

use crate::admin::AdminListen;
use crate::section::Section;

const KEY: &str = "handover";
const FORM: &str = "a Unix socket, as in \"unix:/run/qmux-dp/handover.sock\"";

/// Reads the path of the socket, if there is to be one.
pub(crate) fn read(section: &Section<'_>) -> Option<PathBuf> {
    let text = section.filled_string(KEY, FORM)?;
    section.report().place(section.key(KEY), &text.span());
    let here = section.report().resolve("");
    let wrong = match AdminListen::parse(text.get_ref(), &here) {
        Ok(AdminListen::Unix(path)) => return Some(path),
        Ok(AdminListen::Tcp(_)) => format!("{:?} is none; it must be {FORM}", text.get_ref()),
        Err(_) if !text.get_ref().starts_with("unix:") => {
            format!("{:?} is none; it must be {FORM}", text.get_ref())
        }
        Err(message) => message,
    };
    section.problem_at(KEY, &text.span(), wrong);
    None
}
