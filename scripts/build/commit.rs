//! For build scripts: sets `QMUX_BUILD` to the commit that is checked out, or to what the
//! environment's `QMUX_COMMIT` says (for builds without `.git`, as in a container), or to
//! `unknown`.

use std::path::Path;
use std::process::Command;

/// Hexadecimal digits of a commit that are shown.
const DIGITS: &str = "--short=10";

/// Sets it, and says when it must be set anew.
pub(crate) fn tell() {
    println!("cargo:rerun-if-env-changed=QMUX_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../scripts/build/commit.rs");
    let build = if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        // Or each commit would have developers compile everything again.
        "debug build".to_owned()
    } else {
        let commit = given().or_else(checked_out);
        format!("commit {}", commit.as_deref().unwrap_or("unknown"))
    };
    println!("cargo:rustc-env=QMUX_BUILD={build}");
}

fn given() -> Option<String> {
    let given = std::env::var("QMUX_COMMIT").ok()?;
    let is_one = !given.is_empty() && given.chars().all(|it| it.is_ascii_alphanumeric());
    is_one.then_some(given)
}

fn checked_out() -> Option<String> {
    // A source archive that lies in somebody else's repository has no commit of ours.
    let root = Path::new("..").canonicalize().ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root {
        return None;
    }
    // A commit writes the branch's file, another branch the one of HEAD.
    let branch = git(&["rev-parse", "--symbolic-full-name", "HEAD"])?;
    for name in ["HEAD", branch.as_str(), "packed-refs"] {
        if let Some(file) = git(&["rev-parse", "--git-path", name])
            && Path::new(&file).exists()
        {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    git(&["rev-parse", DIGITS, "HEAD"])
}

/// What git prints, without the line's end; `None` if it fails or is not there.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
