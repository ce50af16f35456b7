//! Reloads without cores: what is read again, and when.

use std::fs;

use qmux_config::certs::{CertsRequest, generate, write};
use tempfile::TempDir;

use super::*;
use crate::process::status::fixture::client_of_two_cores;

const SERVER: &str = r#"
    [[server.listeners]]
    quic_addr = "127.0.0.1:8443"
    traffic_addr = "127.0.0.1:8080"
    protocol = "tcp"
    deny_file = "deny.txt"
    [server.auth]
    method = "token"
    token = "the secret of this test"
    [server.tls]
    server_cert_file = "server.crt"
    server_key_file = "server.key"
"#;

const CLIENT: &str = r#"
    [[client.servers]]
    address = "127.0.0.1:8443"
    server_name = "tunnel.test"
    [client.local]
    host = "127.0.0.1"
    port = 8080
    [client.auth]
    token = "the secret of this test"
    [client.tls]
    ca_cert_file = "ca.crt"
"#;

struct World {
    dir: TempDir,
    reloader: Reloader,
}

impl World {
    /// A process with this config, whose files have been looked at once.
    fn new(text: &str) -> World {
        let dir = tempfile::tempdir().expect("a directory");
        let request = CertsRequest {
            server_names: vec!["tunnel.test".into()],
            days: 30,
        };
        let certs = generate(&request).expect("certificates");
        write(&certs, dir.path(), false).expect("written");
        fs::write(dir.path().join("deny.txt"), "192.0.2.0/24\n").expect("written");
        let path = dir.path().join("dp.toml");
        fs::write(&path, text).expect("written");
        let config = Config::parse(text, &path).expect("a config");
        let (mailboxes, _wakes) = Mailboxes::new(2).expect("socket pairs");
        let mut watched = Watched::default();
        watched.watch(&config.files);
        let _first = watched.look();
        let reloader = Reloader {
            path,
            texts: Texts::new(text.into()),
            warned: config.warnings.clone(),
            config: Arc::new(ArcSwap::from_pointee(config)),
            cores: 2,
            allowed_descriptors: None,
            server: None,
            client: None,
            status: Arc::new(client_of_two_cores()),
            mailboxes,
            listening: Arc::new(Listening::new()),
            watched,
            problems: Vec::new(),
        };
        World { dir, reloader }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).expect("written");
    }

    fn denied(&self) -> bool {
        let config = self.reloader.config.load();
        let server = config.server.as_ref().expect("a server");
        let bounds = &server.doors[0].services[0].bounds;
        bounds.denies("198.51.100.1".parse().expect("literal"))
    }
}

#[test]
fn a_file_that_changed_before_a_refused_reload_is_used_at_the_next_look() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    world.write("dp.toml", "half = \"a change\"");
    world.write("deny.txt", "198.51.100.0/24\n");
    assert!(world.reloader.ordered().is_err());
    assert!(!world.denied());
    world.reloader.look();
    assert!(world.denied());
    assert_eq!(world.reloader.watched.look(), Look::AsBefore);
}

#[test]
fn a_file_that_changed_before_a_reload_with_a_defect_is_used_at_the_next_look() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    world.write("deny.txt", "198.51.100.0/24\n");
    let outcome = world.reloader.contained(|this| {
        this.watched.read_now();
        panic!("a defect of this test");
    });
    assert!(outcome.is_err());
    world.reloader.look();
    assert!(world.denied());
}

#[test]
fn a_file_is_used_by_a_look_when_it_rests_and_at_once_by_an_order() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    world.write("deny.txt", "198.51.100.0/24\n");
    assert_eq!(world.reloader.look(), REST);
    assert!(!world.denied());
    assert_eq!(world.reloader.look(), LOOK_PAUSE);
    assert!(world.denied());
    world.write("deny.txt", "# nobody\n");
    world.reloader.ordered().expect("usable");
    assert!(!world.denied());
}

#[test]
fn a_section_that_stays_without_its_text_goes_by_its_files() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    for client in [CLIENT.to_owned(), format!("# changed\n{CLIENT}")] {
        world.write("dp.toml", &client);
        let lines = world.reloader.ordered().expect("usable");
        assert_eq!(
            lines,
            ["needs a restart: [server]: removed; this role goes on as it was"]
        );
    }
    let _new_files = world.reloader.look();
    world.write("deny.txt", "198.51.100.0/24\n");
    world.reloader.look();
    world.reloader.look();
    assert!(world.denied());
    // The text has both sections again, as at the start.
    world.write("dp.toml", &[SERVER, CLIENT].concat());
    world.reloader.ordered().expect("usable");
    assert!(world.denied());
}

#[test]
fn a_section_that_stays_does_not_keep_out_what_else_changes_when_its_text_is_of_no_use() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    world.write("dp.toml", SERVER);
    world.reloader.ordered().expect("usable");
    // Only the text that is gone names the file.
    fs::remove_file(world.dir.path().join("ca.crt")).expect("removed");
    world.write("deny.txt", "198.51.100.0/24\n");
    world.reloader.ordered().expect("usable");
    assert!(world.denied());
    let is_told = |it: &String| it.contains("[client] was removed") && it.contains("ca.crt");
    assert!(world.reloader.warned.iter().any(is_told));
    assert!(world.reloader.config.load().client.is_some());
}

#[test]
fn what_did_not_work_is_the_answer_until_something_else_is_taken_up() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    let problems = vec!["core 1 is stuck".to_owned()];
    world.reloader.problems.clone_from(&problems);
    let again = world.reloader.ordered();
    assert_eq!(again, Err(Refused::Incomplete(problems)));
    world.write("deny.txt", "198.51.100.0/24\n");
    assert!(world.reloader.ordered().is_ok());
}

#[test]
fn warnings_are_said_at_an_order_and_else_when_they_are_news() {
    let mut world = World::new(&[SERVER, CLIENT].concat());
    let mut said = |warnings: &[&str], cause| {
        let warnings = warnings.iter().map(ToString::to_string).collect();
        world.reloader.news(warnings, cause)
    };
    assert_eq!(said(&["old"], Cause::Look), ["old"]);
    assert_eq!(said(&["old"], Cause::Look), [] as [&str; 0]);
    assert_eq!(said(&["old", "new"], Cause::Look), ["new"]);
    assert_eq!(said(&["old", "new"], Cause::Order), ["old", "new"]);
    assert_eq!(said(&[], Cause::Look), [] as [&str; 0]);
    assert_eq!(said(&["old"], Cause::Look), ["old"]);
}
