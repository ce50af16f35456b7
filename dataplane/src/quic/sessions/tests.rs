//! Tickets by simulation, and the file with everything that may be wrong with it.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn server(number: u64) -> TicketServer {
    TicketServer {
        address: format!("server-{number}.test:8443"),
        name: format!("server-{number}.test"),
    }
}

fn peer(number: u64) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number as u8], 8443))
}

fn ticket(content: &str, from: u64, expires_at: u64) -> Ticket {
    Ticket {
        session: content.as_bytes().into(),
        peer: peer(from),
        expires_at,
        number: 0,
    }
}

#[test]
fn the_newest_ticket_of_the_same_address_goes_first() {
    let mut tickets = Tickets::default();
    for (content, from) in [("a", 1), ("b", 2), ("c", 1), ("d", 2)] {
        tickets.put(&server(1), [0; 32], ticket(content, from, 100), 8);
    }
    let mut take = |from| {
        let taken = tickets.take(&server(1), [0; 32], peer(from), 1);
        taken.map(|ticket| String::from_utf8(ticket.session.to_vec()).expect("text"))
    };
    assert_eq!(take(1).as_deref(), Some("c"));
    assert_eq!(take(1).as_deref(), Some("a"));
    assert_eq!(take(1).as_deref(), Some("a"), "the last one stays");
    assert_eq!(take(3).as_deref(), Some("d"), "of another address");
    assert_eq!(take(2).as_deref(), Some("b"));
    assert_eq!(take(2).as_deref(), Some("b"), "the last one stays");
}

#[test]
fn the_last_ticket_given_back_is_there_once() {
    let mut tickets = Tickets::default();
    tickets.put(&server(1), [0; 32], ticket("a", 1, 100), 8);
    let taken = tickets.take(&server(1), [0; 32], peer(1), 1).expect("a");
    tickets.insert(&server(1), [0; 32], taken.clone(), 8);
    assert_eq!(tickets.servers[&server(1)].tickets.len(), 1);
    tickets.declined(&server(1), &taken, peer(1), 1);
    assert_eq!(tickets.take(&server(1), [0; 32], peer(1), 1), None);
}

#[test]
fn addresses_that_do_not_share_keys_are_not_offered_each_others_tickets() {
    let mut tickets = Tickets::default();
    tickets.put(&server(1), [0; 32], ticket("a", 1, 10_000), 8);
    tickets.put(&server(1), [0; 32], ticket("b", 1, 10_000), 8);
    let strange = tickets.take(&server(1), [0; 32], peer(2), 1).expect("b");
    tickets.declined(&server(1), &strange, peer(2), 1);
    assert_eq!(tickets.take(&server(1), [0; 32], peer(2), 1), None);
    assert!(tickets.take(&server(1), [0; 32], peer(1), 1).is_some());
    // They may share their keys later.
    let much_later = 1 + UNSHARED_FOR_S;
    let tried = tickets.take(&server(1), [0; 32], peer(2), much_later);
    tickets.declined(&server(1), &tried.expect("one try"), peer(2), much_later);
    let again = tickets.take(&server(1), [0; 32], peer(2), much_later + 1);
    assert_eq!(again, None);
}

#[test]
fn a_declined_ticket_takes_those_before_it_along_but_not_those_after_it() {
    let mut tickets = Tickets::default();
    for content in ["a", "b", "c"] {
        tickets.put(&server(1), [0; 32], ticket(content, 1, 100), 8);
    }
    let stale = tickets.take(&server(1), [0; 32], peer(1), 1).expect("c");
    tickets.put(&server(1), [0; 32], ticket("new", 1, 100), 8);
    tickets.declined(&server(1), &stale, peer(1), 1);
    let left = &tickets.servers[&server(1)].tickets;
    assert!(left.iter().map(|it| &it.session[..]).eq([b"new"]));
}

/// Thousands of steps by several lanes to several servers, whose certificates change now and then.
#[test]
fn a_ticket_is_used_once_in_time_and_for_its_server_and_identity_alone() {
    for seed in 1..=200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut tickets = Tickets::default();
        let mut identities = [[0u8; 32]; 3];
        let mut now = 1_000;
        let mut made = 0u64;
        let mut used = HashSet::new();
        let mut in_flight: Vec<(u64, Identity, Ticket)> = Vec::new();
        for step in 0..2_000 {
            let place = format!("seed {seed}, step {step}");
            let to = random.random_range(0..3);
            let identity = identities[to as usize];
            match random.random_range(0..10) {
                0..=3 => {
                    made += 1;
                    let content = format!("{to} {made} {}", identity[0]);
                    let lanes = random.random_range(0..20usize);
                    let new = ticket(
                        &content,
                        random.random_range(0..3),
                        now + random.random_range(0..50),
                    );
                    tickets.put(&server(to), identity, new, lanes);
                    let kept = tickets.servers[&server(to)].tickets.len();
                    assert!(
                        kept <= lanes.max(TICKETS_MIN),
                        "{place}: {kept} for {lanes} lanes"
                    );
                }
                4..=6 => {
                    let before = tickets
                        .servers
                        .get(&server(to))
                        .map_or(0, |it| it.tickets.len());
                    let taken =
                        tickets.take(&server(to), identity, peer(random.random_range(0..3)), now);
                    if let Some(taken) = taken {
                        let entry = &tickets.servers[&server(to)];
                        let stayed = entry.tickets.contains(&taken);
                        let alone = entry
                            .tickets
                            .iter()
                            .filter(|it| it.peer == taken.peer)
                            .count();
                        assert!(
                            !stayed || alone == 1,
                            "{place}: one of many stayed, {before}"
                        );
                        assert!(taken.expires_at > now, "{place}: expired");
                        let text = String::from_utf8(taken.session.to_vec()).expect("text");
                        let fields: Vec<&str> = text.split(' ').collect();
                        assert_eq!(fields[0], to.to_string(), "{place}: of another server");
                        assert_eq!(fields[2], identity[0].to_string(), "{place}: identity");
                        assert!(stayed || used.insert(text), "{place}: used twice");
                        in_flight.push((to, identity, taken));
                    }
                }
                7 => {
                    // A ticket in flight gets no answer, or is declined or refused.
                    if let Some((to, identity, ticket)) = in_flight.pop() {
                        match random.random_range(0..3) {
                            0 if identity == identities[to as usize] => {
                                let text = String::from_utf8(ticket.session.to_vec());
                                used.remove(&text.expect("text"));
                                tickets.insert(&server(to), identity, ticket, TICKETS_MAX);
                            }
                            1 => tickets.declined(
                                &server(to),
                                &ticket,
                                peer(random.random_range(0..3)),
                                now,
                            ),
                            _ => tickets.forget(&server(to)),
                        }
                    }
                }
                8 => now += random.random_range(0..20),
                _ => {
                    if random.random_range(0..20) == 0 {
                        let changed = &mut identities[to as usize];
                        changed[0] = changed[0].wrapping_add(1);
                    }
                }
            }
            for entry in tickets.servers.values() {
                let ordered = entry.tickets.is_sorted_by_key(|ticket| ticket.number);
                assert!(ordered, "{place}: out of order");
            }
        }
    }
}

#[test]
fn servers_of_before_make_room_only_when_they_have_no_tickets() {
    let mut tickets = Tickets::default();
    for number in 0..SERVERS_MAX as u64 {
        tickets.put(&server(number), [0; 32], ticket("a", 1, 100), 8);
    }
    let last = server(SERVERS_MAX as u64);
    tickets.put(&last, [0; 32], ticket("a", 1, 100), 8);
    assert_eq!(tickets.take(&last, [0; 32], peer(1), 1), None, "no room");
    tickets.expire(200);
    tickets.put(&last, [0; 32], ticket("a", 1, 300), 8);
    assert!(tickets.take(&last, [0; 32], peer(1), 200).is_some());
}

#[test]
fn a_written_file_is_read_back_in_the_same_order() {
    let mut tickets = Tickets::default();
    for (content, to) in [("a", 1), ("b", 2), ("c", 1)] {
        tickets.put(&server(to), [to as u8; 32], ticket(content, to, 100), 8);
    }
    let text = file::encode(&tickets.to_save());
    let read: Vec<_> = file::decode(text.as_bytes())
        .expect("a good file")
        .into_iter()
        .map(|(server, identity, ticket)| {
            (server, identity[0], ticket.session.to_vec(), ticket.peer)
        })
        .collect();
    let expected = [("a", 1u64), ("b", 2), ("c", 1)].map(|(content, to)| {
        let session = content.as_bytes().to_vec();
        (server(to), to as u8, session, peer(to))
    });
    assert_eq!(read, expected);
}

#[test]
fn a_damaged_or_foreign_file_is_not_used_at_all() {
    let mut tickets = Tickets::default();
    tickets.put(&server(1), [7; 32], ticket("content", 1, 100), 8);
    let good = file::encode(&tickets.to_save()).into_bytes();
    assert!(file::decode(&good).is_some());
    for length in 0..good.len() {
        assert!(
            file::decode(&good[..length]).is_none(),
            "cut off at {length}"
        );
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(file::decode(&bad).is_none(), "changed at {at}");
    }
    for foreign in [
        "",
        "\n",
        "end \n",
        "[client]\nclient_id = \"x\"\n",
        "\u{0}\u{1}",
    ] {
        assert!(file::decode(foreign.as_bytes()).is_none(), "{foreign:?}");
    }
}

#[test]
fn the_file_is_its_owners_alone_and_a_bad_one_does_not_stop_the_client() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("deep").join("state");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    SessionCache::default().keep_in(&state).expect("usable");
    let path = state.join(file::NAME);
    assert_eq!((mode(&state), mode(&path)), (0o700, 0o600));
    assert_eq!(file::load(&path), Ok(Vec::new()));
    std::fs::write(&path, "something else").expect("written");
    assert!(file::load(&path).is_err());
    SessionCache::default()
        .keep_in(&state)
        .expect("usable still");
    assert_eq!(
        file::load(&path),
        Ok(Vec::new()),
        "a good one is in its place"
    );
    // A file where the directory should be cannot be worked around.
    let error = SessionCache::default()
        .keep_in(&path)
        .expect_err("no directory");
    assert!(error.contains("is not usable"), "{error}");
}

#[test]
fn a_directory_is_probed_as_it_will_be_used_and_left_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let set_mode = |mode| {
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    assert_eq!(probe_dir(&state.join("deep")), Ok(None));
    assert!(!state.exists());
    std::fs::create_dir(&state).expect("made");
    for (mode, safe) in [
        (0o700, true),
        (0o755, true),
        (0o777, false),
        (0o1777, false),
    ] {
        set_mode(mode);
        let danger = probe_dir(&state).expect("usable");
        assert_eq!(danger.is_none(), safe, "{mode:o}");
        assert_eq!(std::fs::read_dir(&state).expect("ours").count(), 0);
        SessionCache::default().keep_in(&state).expect("usable");
        std::fs::remove_file(state.join(file::NAME)).expect("there");
    }
    set_mode(0o700);
    std::fs::create_dir_all(state.join(file::NAME).join("full")).expect("made");
    std::fs::write(dir.path().join("file"), "").expect("written");
    for unusable in [
        state,
        dir.path().join("file"),
        dir.path().join("file/state"),
    ] {
        let error = probe_dir(&unusable).expect_err("not usable");
        assert!(error.contains("is not usable"), "{error}");
        assert!(SessionCache::default().keep_in(&unusable).is_err());
    }
}

#[test]
fn what_is_no_session_is_not_kept() {
    let cache = SessionCache::default();
    for bytes in [&b""[..], &[0; 16], &[0xff; 16], &[1; 100_000]] {
        assert!(!cache.put(&server(1), [0; 32], peer(1), bytes, 1));
    }
    assert_eq!(cache.take(&server(1), [0; 32], peer(1)), None);
}
