//! The file as such: missing, unreadable, not TOML, or anything at all.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use qmux_config::Config;

use crate::fixture::{CLIENT, SERVER, edited, path, problem, problems, refuse};

fn load_error(path: &Path) -> String {
    Config::load(path)
        .map(drop)
        .expect_err("refused")
        .to_string()
}

#[test]
fn a_file_that_cannot_be_read_is_one_clear_message() {
    let dir = tempfile::tempdir().expect("a directory");
    let (missing, here) = (
        dir.path().join("none.toml"),
        dir.path().display().to_string(),
    );
    assert_eq!(
        load_error(&missing),
        format!("{here}/none.toml: there is no such file; it must be a config file in TOML")
    );
    assert_eq!(
        load_error(dir.path()),
        format!("{here}: is a directory; it must be a config file in TOML")
    );
    let binary = dir.path().join("binary.toml");
    fs::write(&binary, b"[server]\n\xff\xfe\n").expect("written");
    assert_eq!(
        load_error(&binary),
        format!("{here}/binary.toml: is not UTF-8 text (line 2); it must be a config file in TOML")
    );
    let huge = dir.path().join("huge.toml");
    fs::File::create(&huge)
        .and_then(|file| file.set_len(5 << 20))
        .expect("written");
    assert!(load_error(&huge).contains("is larger than 4 MiB"));
}

#[test]
fn a_file_is_read_from_its_path() {
    let path = path();
    fs::write(&path, SERVER).expect("written");
    let config = Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config, crate::fixture::accept(SERVER));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_file_without_a_role_is_refused() {
    for text in ["", "# nothing\n", "[quic]\nallow_0rtt = true\n"] {
        assert_eq!(
            problem(text),
            "dp.toml:1:1: holds no role; it must have a [server] section, a [client] section or both"
        );
    }
}

#[test]
fn syntax_errors_have_a_line_and_a_column() {
    for (text, place) in [
        ("[server\nx = 1\n", "dp.toml:1:8: is not valid TOML: "),
        ("[server]\nx = \n", "dp.toml:2:5: is not valid TOML: "),
        (
            "[server]\na = 1\na = 2\n",
            "dp.toml:3:1: is not valid TOML: duplicate key",
        ),
        (
            "[server]\nname = \"abc\n",
            "dp.toml:2:12: is not valid TOML: ",
        ),
    ] {
        let all = problems(text);
        assert!(
            all.iter().any(|line| line.starts_with(place)),
            "{place} {all:#?}"
        );
        assert!(
            all.iter().all(|line| line.contains("is not valid TOML")),
            "{all:#?}"
        );
    }
}

#[test]
fn the_report_quotes_the_line_and_points_at_the_place() {
    let text = edited(SERVER, "\"least-connections\"", "\"magic\"");
    let report = refuse(&text).to_string();
    let tail = "\n    | load_balancer = \"magic\"\n    |                 ^^^^^^^";
    assert!(report.ends_with(tail), "{report}");
    assert!(report.starts_with(&format!(
        "{}:2:17: server.load_balancer: ",
        path().display()
    )));
}

#[test]
fn no_part_of_a_secret_is_in_a_report_whatever_is_wrong_around_it() {
    let proxy = |line: &str| {
        edited(
            CLIENT,
            "server_name = \"server.example.com\"\n",
            &format!("server_name = \"server.example.com\"\n{line}\n"),
        )
    };
    let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGhunter2\nhunter2hunter2Pz8=\n\
               -----END PRIVATE KEY-----";
    for text in [
        proxy("proxy = \"https://me:hunter2@proxy.example:3128\""),
        proxy("proxy = \"http://me:hunter2@proxy.example\""),
        proxy("proxy = \"http://me:hunter2\""),
        proxy("transport = \"quic\"\nproxy = \"http://me:hunter2@proxy.example:3128\""),
        proxy("prxy = \"http://me:hunter2@proxy.example:3128\""),
        proxy("server_nam = \"me:hunter2@proxy.example:3128\""),
        proxy("pw = \"hunter2\""),
        proxy("transport = \"http://me:hunter2@proxy.example:3128\""),
        edited(
            CLIENT,
            "\"server.example.com\"",
            "\"http://me:hunter2@proxy.example:3128\"",
        ),
        edited(
            CLIENT,
            "\"server.example.com:8443\"",
            "\"http://me:hunter2@proxy.example:3128\"",
        ),
        // Quotes that do not take a line's end, and a value that is not closed.
        format!("{CLIENT}client_key = '{key}'\n"),
        format!("{CLIENT}client_key = \"{key}\"\n"),
        format!("{CLIENT}client_key = {key}\n"),
        format!("{CLIENT}client_key = \"\"\"{key}\n"),
        format!("{CLIENT}[client.auth]\ntoken = \"\nhunter2TJpDQ4xKhunter2=\n\"\n"),
    ] {
        let report = refuse(&text).to_string();
        assert!(!report.contains("hunter2"), "{report}");
    }
}

/// Texts that are nearly right: a valid one with one stretch replaced by something else.
fn spoiled() -> impl Strategy<Value = String> {
    (
        any::<bool>(),
        any::<prop::sample::Index>(),
        0_usize..40,
        "(\\PC|[\"'=\\[\\]{}\n]){0,8}",
    )
        .prop_map(|(server, at, length, with)| {
            let text = if server { SERVER } else { CLIENT };
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            format!("{}{with}{}", &text[..start], &text[end..])
        })
}

fn parse_never_panics(text: &str) {
    if let Err(errors) = Config::parse(text, Path::new("dp.toml")) {
        assert!(!errors.problems().is_empty());
        for problem in errors.problems() {
            let (line, column) = problem.position.expect("a position");
            assert!(line >= 1 && column >= 1);
            assert!(line <= text.matches('\n').count() + 1, "{problem}");
            assert_eq!(problem.to_string().lines().count(), 1, "{problem:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|[\"'=\\[\\]{}\n\t]){0,200}") {
        parse_never_panics(&text);
    }

    #[test]
    fn no_slip_makes_it_panic(text in spoiled()) {
        parse_never_panics(&text);
    }
}
