//! `qmux-ctl man` and `qmux-ctl completions`.

use std::path::Path;
use std::process::Command;

use crate::run::Place;

#[test]
fn every_command_has_a_page_and_the_program_names_them() {
    let place = Place::new();
    place.ok(&["man", "--out", "man"]);
    let pages = place.files("man");
    let help = place.ok(&["--help"]).stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"doctor"), "{commands:?}");
    for command in commands {
        let page = format!("qmux-ctl-{command}.1");
        assert!(pages.contains(&page), "{page}: {pages:?}");
        let text = place.read(&format!("man/{page}"));
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(pages.contains(&"qmux-ctl.1".to_owned()) && pages.contains(&"qmux-dp.1".to_owned()));
    assert!(place.ok(&["man"]).stdout.contains(".TH qmux-ctl 1"));
}

/// The page is written by hand, and the program is another package's.
#[test]
fn the_page_of_qmux_dp_has_every_option_of_its_help() {
    let program = Path::new(env!("CARGO_BIN_EXE_qmux-ctl")).with_file_name("qmux-dp");
    if !program.is_file() {
        eprintln!("left out: {} is not built", program.display());
        return;
    }
    let page = include_str!("../../src/man/qmux-dp.1").replace('\\', "");
    let help = Command::new(program)
        .arg("--help")
        .output()
        .expect("it runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let words = help.split(|it: char| !it.is_ascii_alphanumeric() && it != '-');
    let options: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--check"), "{help}");
    for option in options {
        assert!(page.contains(option), "{option} is not in qmux-dp.1");
    }
}

#[test]
fn completions_know_the_commands_in_each_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = place.ok(&["completions", shell]);
        assert!(ran.stdout.contains("doctor"), "{shell}");
    }
    let said = place.refused(&["completions", "tcsh"]);
    assert!(said.contains("possible values"), "{said}");
}
