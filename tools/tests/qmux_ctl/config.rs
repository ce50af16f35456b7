//! `qmux-ctl config`.

use qmux_config::{Config, example};

use crate::run::Place;

#[test]
fn an_example_goes_to_standard_output_or_into_a_file() {
    let place = Place::new();
    for (role, text) in [("server", example::server()), ("client", example::client())] {
        assert_eq!(place.ok(&["config", role]).stdout, text);
        let name = format!("{role}.toml");
        let ran = place.ok(&["config", role, "--out", &name]);
        assert_eq!(place.read(&name), text);
        assert!(
            ran.stdout.starts_with(&format!("wrote {name}\n")),
            "{}",
            ran.stdout
        );
        assert!(
            ran.stdout
                .contains(&format!("qmux-dp --config {name} --check")),
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn certificates_and_an_example_make_a_config_that_loads() {
    let place = Place::new();
    place.ok(&["certs", "--server-name", "server.example.com"]);
    for role in ["server", "client"] {
        place.ok(&["config", role, "--out", &format!("{role}.toml")]);
        let config = Config::load(&place.path(format!("{role}.toml")))
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.warnings, Vec::<String>::new());
    }
}

#[test]
fn a_file_is_replaced_only_with_force() {
    let place = Place::new();
    place.write("dp.toml", "mine");
    let message = place.refused(&["config", "server", "--out", "dp.toml"]);
    assert_eq!(
        message,
        "qmux-ctl: dp.toml is already there; nothing was written (--force replaces it)\n"
    );
    assert_eq!(place.read("dp.toml"), "mine");
    place.ok(&["config", "server", "--out", "dp.toml", "--force"]);
    assert_eq!(place.read("dp.toml"), example::server());
    assert_eq!(place.files("."), ["dp.toml"], "nothing is left over");
}

#[test]
fn a_bad_command_line_exits_with_2() {
    let place = Place::new();
    for args in [
        &["config"][..],
        &["config", "proxy"],
        &["config", "server", "--force"],
        &["frobnicate"],
        &[],
    ] {
        place.refused(args);
    }
    place.ok(&["--help"]);
    place.ok(&["--version"]);
}

#[test]
fn every_command_makes_the_directory_that_it_writes_to() {
    let place = Place::new();
    place.write("client.yaml", "server: {}\n");
    for (args, file) in [
        (&["config", "server"][..], "a/b/dp.toml"),
        (&["ticket-key"], "c/d/ticket.key"),
        (&["import", "client.yaml"], "e/f/dp.toml"),
    ] {
        place.ok(&[args, &["--out", file]].concat());
        assert!(place.path(file).is_file(), "{file}");
    }
    place.ok(&["certs", "--server-name", "a.example.com", "--out", "g/h"]);
    assert!(place.path("g/h/ca.crt").is_file());
}

#[test]
fn a_directory_that_cannot_be_made_is_named_and_exits_with_1() {
    let place = Place::new();
    place.write("taken", "a file");
    let ran = place.run(&["config", "server", "--out", "taken/below/dp.toml"]);
    assert_eq!(ran.code, 1);
    let expected = "qmux-ctl: taken/below cannot be written: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
}

#[test]
fn the_version_names_the_commit_of_a_release_build() {
    let ran = Place::new().ok(&["--version"]);
    let prefix = format!("qmux-ctl {} (", env!("CARGO_PKG_VERSION"));
    let build = ran.stdout.strip_prefix(&prefix).unwrap_or_default();
    let is_release = build.starts_with("commit ");
    assert!(is_release || build == "debug build)\n", "{}", ran.stdout);
}
