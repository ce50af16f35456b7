//! `qmux-ctl ticket-key`.

use qmux_config::read_ticket_keys;

use crate::run::Place;

#[test]
fn a_ticket_key_is_made_for_its_owner_alone() {
    let place = Place::new();
    let ran = place.ok(&["ticket-key"]);
    assert!(ran.stdout.starts_with("wrote ticket.key, 1 key\n"));
    assert_eq!(place.mode("ticket.key"), 0o600);
    let keys = read_ticket_keys(&place.path("ticket.key")).expect("a key");
    assert_eq!(keys.len(), 1);
    assert!(
        !ran.stdout.contains(&keys[0].to_line()[..16]),
        "the key is shown"
    );
}

#[test]
fn rotation_puts_a_new_key_first_and_keeps_some_old_ones() {
    let place = Place::new();
    place.ok(&["ticket-key", "--out", "keys"]);
    let path = place.path("keys");
    let mut expected = read_ticket_keys(&path).expect("a key");
    for round in 1..=4 {
        place.ok(&["ticket-key", "--out", "keys", "--rotate", "--keep", "3"]);
        let keys = read_ticket_keys(&path).expect("keys");
        assert_eq!(keys.len(), (round + 1).min(4));
        assert!(!expected.contains(&keys[0]), "the first one is new");
        expected.truncate(3);
        assert_eq!(keys[1..], expected);
        expected = keys;
    }
    assert_eq!(place.mode("keys"), 0o600);
    assert_eq!(place.files("."), ["keys"], "nothing is left over");
}

#[test]
fn keys_are_replaced_only_when_asked_for() {
    let place = Place::new();
    place.ok(&["ticket-key"]);
    let before = place.read("ticket.key");
    let message = place.refused(&["ticket-key"]);
    assert!(message.contains("--force replaces it"), "{message}");
    assert_eq!(place.read("ticket.key"), before);
    place.ok(&["ticket-key", "--force"]);
    assert_ne!(place.read("ticket.key"), before);
}

#[test]
fn what_holds_no_keys_is_not_rotated() {
    let place = Place::new();
    let message = place.refused(&["ticket-key", "--rotate"]);
    assert!(message.contains("ticket.key does not exist"), "{message}");
    place.write("ticket.key", "not a key\n");
    let message = place.refused(&["ticket-key", "--rotate"]);
    assert!(message.contains("no key in line 1"), "{message}");
    assert_eq!(place.read("ticket.key"), "not a key\n");
}
