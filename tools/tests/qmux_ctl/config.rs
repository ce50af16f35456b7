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
fn a_directory_that_is_not_there_exits_with_1() {
    let place = Place::new();
    let ran = place.run(&["config", "server", "--out", "none/dp.toml"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("none/dp.toml cannot be written"),
        "{}",
        ran.stderr
    );
}
