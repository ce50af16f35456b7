//! Tells the program which commit it was built from: `--version` shows it.

#[path = "../scripts/build/commit.rs"]
mod commit;

fn main() {
    commit::tell();
}
