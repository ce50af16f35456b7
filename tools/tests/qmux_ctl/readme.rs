//! What README.md shows works when it is pasted: its commands, and its pair of configs.

use std::process::Command;

use qmux_config::Config;

use crate::run::Place;

const README: &str = include_str!("../../../README.md");

/// The code blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    README
        .split(&format!("\n```{language}\n"))
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap_or_default())
        .collect()
}

/// Runs each line of README.md that begins with `qmux-ctl` and reads no file, as a shell does.
fn run_commands(place: &Place) -> usize {
    let lines = blocks("sh").into_iter().flat_map(str::lines);
    let commands = lines.filter(|line| line.starts_with("qmux-ctl ") && !line.contains(" import "));
    let mut ran = 0;
    for command in commands {
        let program = env!("CARGO_BIN_EXE_qmux-ctl");
        let command = command.replacen("qmux-ctl", program, 1);
        let status = Command::new("sh")
            .args(["-c", &command])
            .current_dir(place.path("."))
            .status();
        assert!(status.expect("a shell").success(), "{command}");
        ran += 1;
    }
    ran
}

#[test]
fn the_commands_make_certificates_and_configs_that_load() {
    let place = Place::new();
    assert!(run_commands(&place) >= 3);
    for file in ["server.toml", "client.toml"] {
        let config = Config::load(&place.path(file));
        config.unwrap_or_else(|errors| panic!("{errors}"));
    }
}

#[test]
fn the_minimal_pair_loads_with_the_certificates_of_the_commands() {
    let place = Place::new();
    run_commands(&place);
    let pair = blocks("toml");
    assert_eq!(pair.len(), 2, "one block for each side");
    for (text, is_server) in pair.into_iter().zip([true, false]) {
        let config = Config::parse(text, &place.path("pasted.toml"));
        let config = config.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(config.server.is_some(), is_server);
        assert_eq!(config.client.is_some(), !is_server);
        assert_eq!(config.warnings, Vec::<String>::new());
    }
}
