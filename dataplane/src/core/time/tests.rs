use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Elapsed, Sleep, sleep, sleep_until, timeout};
use crate::core::event::{Event, yield_now};
use crate::core::task::spawn;

/// The longest time for which a test waits: a core that does not fire its timers would run for
/// ever.
const PATIENCE: Duration = Duration::from_secs(30);

fn run<T>(test: impl Future<Output = T>) -> T {
    monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
        .enable_timer()
        .build()
        .expect("a runtime")
        .block_on(test)
}

/// Keeps the core busy until `stop` is set, or for [`PATIENCE`].
fn start_busy_task(stop: &Rc<Cell<bool>>, ended: &Rc<Event>) {
    let (stop, ended) = (Rc::clone(stop), Rc::clone(ended));
    spawn(async move {
        let began = Instant::now();
        while !stop.get() && began.elapsed() < PATIENCE {
            yield_now().await;
        }
        ended.set();
    });
}

#[test]
fn a_sleep_ends_while_other_tasks_are_always_ready() {
    run(async {
        let stop = Rc::<Cell<bool>>::default();
        let ended = Rc::<Event>::default();
        start_busy_task(&stop, &ended);
        start_busy_task(&stop, &ended);
        let slept = Rc::clone(&stop);
        spawn(async move {
            sleep(Duration::from_millis(10)).await;
            slept.set(true);
        });
        ended.wait().await;
        assert!(stop.get(), "the sleep ended before the busy tasks");
    });
}

#[test]
fn a_sleep_ends_while_two_tasks_wake_each_other_without_yielding() {
    run(async {
        let stop = Rc::<Cell<bool>>::default();
        let ended = Rc::<Event>::default();
        let balls = [Rc::<Event>::default(), Rc::<Event>::default()];
        for (mine, theirs) in [(0, 1), (1, 0)] {
            let (mine, theirs) = (Rc::clone(&balls[mine]), Rc::clone(&balls[theirs]));
            let (stop, ended) = (Rc::clone(&stop), Rc::clone(&ended));
            spawn(async move {
                let began = Instant::now();
                while !stop.get() && began.elapsed() < PATIENCE {
                    theirs.set();
                    mine.wait().await;
                }
                theirs.set();
                ended.set();
            });
        }
        let slept = Rc::clone(&stop);
        spawn(async move {
            sleep(Duration::from_millis(10)).await;
            slept.set(true);
        });
        ended.wait().await;
        assert!(stop.get(), "the sleep ended before the busy tasks");
    });
}

#[test]
fn sleeps_end_in_the_order_of_their_deadlines_on_an_idle_core_and_on_a_busy_one() {
    for busy in [false, true] {
        let order = std::thread::spawn(move || run(order_of_sleeps(busy)));
        assert_eq!(
            order.join().expect("no panic"),
            [2, 5, 9, 9, 30],
            "busy: {busy}"
        );
    }
}

async fn order_of_sleeps(busy: bool) -> Vec<u64> {
    let (stop, idle) = (Rc::<Cell<bool>>::default(), Rc::<Event>::default());
    if busy {
        start_busy_task(&stop, &idle);
    }
    let (order, ended) = (Rc::<RefCell<Vec<u64>>>::default(), Rc::<Event>::default());
    let began = Instant::now();
    for ms in [9, 30, 2, 9, 5] {
        let (order, ended) = (Rc::clone(&order), Rc::clone(&ended));
        spawn(async move {
            sleep_until(began + Duration::from_millis(ms)).await;
            assert!(began.elapsed() >= Duration::from_millis(ms), "never early");
            order.borrow_mut().push(ms);
            if order.borrow().len() == 5 {
                ended.set();
            }
        });
    }
    ended.wait().await;
    stop.set(true);
    order.take()
}

#[test]
fn work_that_is_ready_is_not_too_late_whatever_the_limit() {
    run(async {
        assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7));
        assert_eq!(timeout(Duration::MAX, async { 7 }).await, Ok(7));
        let never = std::future::pending::<()>();
        assert_eq!(timeout(Duration::ZERO, never).await, Err(Elapsed));
    });
}

#[test]
fn sleeps_that_are_dropped_leave_nothing_behind() {
    run(async {
        let sleeps: Vec<Sleep> = (0..100).map(|_| sleep(PATIENCE)).collect();
        for mut sleep in sleeps {
            assert!(timeout(Duration::ZERO, &mut sleep).await.is_err());
        }
        super::TIMERS.with(|timers| {
            assert_eq!(timers.next.get(), None);
            assert_eq!(timers.deadlines.borrow().next(), None);
        });
    });
}

/// The lines of this crate's sources, except its tests, that contain `what`, each as `file: text of
/// the line`.
fn uses_of(what: &str) -> Vec<String> {
    fn visit(folder: &std::path::Path, uses: &mut dyn FnMut(&std::path::Path)) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(&path, uses);
            } else {
                uses(&path);
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    visit(&root, &mut |path| {
        let name = path
            .strip_prefix(&root)
            .expect("below it")
            .display()
            .to_string();
        if name.contains("tests") || !name.ends_with(".rs") {
            return;
        }
        let text = std::fs::read_to_string(path).expect("a text");
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let lines = code.lines().filter(|line| line.contains(what));
        found.extend(lines.map(|line| format!("{name}: {}", line.trim())));
    });
    found
}

#[test]
fn nothing_waits_for_the_runtimes_timers_but_the_alarm() {
    let others = uses_of("monoio::time")
        .into_iter()
        .filter(|found| !found.starts_with("core/time.rs: "));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn every_task_is_started_in_one_place() {
    let found = uses_of("monoio::spawn");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("core/task.rs: "), "{found:?}");
}
