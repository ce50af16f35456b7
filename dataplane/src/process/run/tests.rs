//! How `main` ends the process when a core fails: the others drain first, and the exit code tells.

use std::thread::{self, JoinHandle};

use super::*;
use crate::client::mail::ClientMail;
use crate::process::status::fixture::client_of_two_cores;

/// Two cores that are played by threads: each does what it is told, and records it.
struct World {
    running: Running,
    sender: Sender<Event>,
    mailboxes: Mailboxes<CoreMail>,
}

impl World {
    fn new() -> World {
        let status = Arc::new(client_of_two_cores());
        let cluster = Arc::clone(&status.cluster);
        let (mailboxes, _wakes) = Mailboxes::new(2).expect("socket pairs");
        let (sender, events) = unbounded();
        World {
            running: Running {
                cluster,
                mailboxes: mailboxes.clone(),
                events,
                ended: vec![false; 2],
                failure: None,
                stop_at_once: false,
                order_patience: Duration::from_millis(100),
                readiness: Arc::clone(&status.readiness),
                watch: Watch::new(Arc::clone(&status), Instant::now()),
                listening: Arc::new(Listening::new()),
                config: Arc::new(ArcSwap::new(Arc::clone(
                    &status.client.as_ref().expect("a client").settings().config,
                ))),
                server: None,
                client: None,
                allowed_descriptors: None,
                reloads: None,
                status,
            },
            sender,
            mailboxes,
        }
    }

    fn play(&self, core: usize) -> JoinHandle<Vec<&'static str>> {
        let (mailboxes, sender) = (self.mailboxes.clone(), self.sender.clone());
        thread::spawn(move || {
            let mut told = Vec::new();
            loop {
                match mailboxes.of(core).take() {
                    Some(CoreMail::Drain { .. }) => {
                        told.push("drain");
                        report(&sender, core, CoreReport::Drained);
                    }
                    Some(CoreMail::Close) => {
                        told.push("close");
                        report(&sender, core, CoreReport::Ended(Ok(())));
                        return told;
                    }
                    _ => thread::yield_now(),
                }
            }
        })
    }

    fn end(self) -> Option<String> {
        let ended = self.running.until_signal(Some(Duration::from_secs(60)));
        ended.err().map(|failure| failure.to_string())
    }
}

fn report(sender: &Sender<Event>, core: usize, report: CoreReport) {
    sender
        .send(Event::Core(core, report))
        .expect("main listens");
}

#[test]
fn a_signal_drains_and_closes_every_core_and_is_no_failure() {
    let world = World::new();
    let cores = [world.play(0), world.play(1)];
    world.sender.send(Event::Signal).expect("main listens");
    assert_eq!(world.end(), None);
    for core in cores {
        assert_eq!(core.join().expect("no panic"), ["drain", "close"]);
    }
}

#[test]
fn a_core_that_cannot_go_on_has_all_cores_drained_before_the_process_fails() {
    let world = World::new();
    let cores = [world.play(0), world.play(1)];
    report(&world.sender, 1, CoreReport::Broken);
    assert_eq!(
        world.end().as_deref(),
        Some("core 1: a part of it panicked")
    );
    for core in cores {
        assert_eq!(core.join().expect("no panic"), ["drain", "close"]);
    }
}

#[test]
fn a_core_that_has_ended_is_not_waited_for_while_the_others_drain() {
    let world = World::new();
    let other = world.play(0);
    report(
        &world.sender,
        1,
        CoreReport::Ended(Err("its thread panicked".into())),
    );
    assert_eq!(world.end().as_deref(), Some("core 1: its thread panicked"));
    assert_eq!(other.join().expect("no panic"), ["drain", "close"]);
}

#[test]
fn a_core_that_ends_amid_the_drain_holds_nobody_up() {
    let world = World::new();
    let other = world.play(0);
    world.sender.send(Event::Signal).expect("main listens");
    report(
        &world.sender,
        1,
        CoreReport::Ended(Err("it was late".into())),
    );
    assert_eq!(world.end().as_deref(), Some("core 1: it was late"));
    assert_eq!(other.join().expect("no panic"), ["drain", "close"]);
}

/// An order to a core.
fn order() -> CoreMail {
    CoreMail::Client(ClientMail::ServiceHealth)
}

/// Fills the mailbox of a core that takes nothing out.
fn stick(world: &World, core: usize) {
    let mailbox = world.mailboxes.of(core);
    while mailbox.send(order()).is_ok() {}
}

/// The end of the process, if it comes before patience ends.
fn end_in_time(world: World) -> Option<String> {
    let (ended, when) = unbounded();
    thread::spawn(move || ended.send(world.end()));
    let end = when.recv_timeout(Duration::from_secs(60));
    end.expect("the process waits for a core that is stuck")
}

#[test]
fn a_core_that_takes_no_orders_keeps_them_from_no_other_and_is_not_waited_for() {
    let world = World::new();
    stick(&world, 0);
    let other = world.play(1);
    world.sender.send(Event::Signal).expect("main listens");
    assert_eq!(
        end_in_time(world).as_deref(),
        Some("core 0: it is stuck, and takes no orders")
    );
    assert_eq!(other.join().expect("no panic"), ["drain", "close"]);
}

#[test]
fn a_core_that_is_stuck_once_it_has_drained_is_not_waited_for() {
    let world = World::new();
    let (mailboxes, sender) = (world.mailboxes.clone(), world.sender.clone());
    let sticks = thread::spawn(move || {
        while !matches!(mailboxes.of(0).take(), Some(CoreMail::Drain { .. })) {
            thread::yield_now();
        }
        while mailboxes.of(0).send(order()).is_ok() {}
        report(&sender, 0, CoreReport::Drained);
    });
    let other = world.play(1);
    world.sender.send(Event::Signal).expect("main listens");
    assert_eq!(
        end_in_time(world).as_deref(),
        Some("core 0: it is stuck, and takes no orders")
    );
    sticks.join().expect("no panic");
    assert_eq!(other.join().expect("no panic"), ["drain", "close"]);
}
