//! `qmux-ctl top`: a live view of a running program in the terminal.
//!
//! A thread of its own asks the program, so that keys are handled while it waits for an answer.

mod tables;
mod view;

use std::io::IsTerminal as _;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::admin::{Asked, Endpoint};
use crate::failure::Failure;
use crate::status::model::{self, Status};
use view::{Seen, View, Wish};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// How long to wait for a key before looking for an answer.
const KEY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    asked: Asked,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let endpoint = args.asked.endpoint()?;
    if !std::io::stdout().is_terminal() {
        return Err(Failure::Input(
            "top needs a terminal; `qmux-ctl status` prints the same once".into(),
        ));
    }
    // This comes before the terminal is taken over, so that an error is printed where it is read.
    let first = model::ask(&endpoint)?;
    let answers = ask_on(endpoint)?;
    let mut terminal = ratatui::try_init().map_err(|error| failed(&error))?;
    let result = show(&mut terminal, first, &answers);
    ratatui::restore();
    result.map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::Internal(format!("the terminal cannot be used: {error}"))
}

/// Asks again and again until nobody wants answers any more.
fn ask_on(endpoint: Endpoint) -> Result<Receiver<Result<Status, Failure>>, Failure> {
    let (answer, answers) = mpsc::sync_channel(1);
    let asks = move || {
        loop {
            thread::sleep(PAUSE);
            if answer.send(model::ask(&endpoint)).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().spawn(asks);
    thread.map_err(|error| Failure::Internal(format!("no thread can be had: {error}")))?;
    Ok(answers)
}

fn show(
    terminal: &mut DefaultTerminal,
    first: Status,
    answers: &Receiver<Result<Status, Failure>>,
) -> std::io::Result<()> {
    let mut view = View::default();
    let mut seen = Seen {
        now: first,
        ..Seen::default()
    };
    let mut asked_at = Instant::now();
    loop {
        terminal.draw(|frame| view.draw(frame, &seen))?;
        if event::poll(KEY_PAUSE)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let interrupt = key.modifiers.contains(KeyModifiers::CONTROL);
            let interrupt = interrupt && key.code == KeyCode::Char('c');
            if interrupt || view.key(key.code) == Wish::Quit {
                return Ok(());
            }
        }
        match answers.try_recv() {
            Ok(Ok(status)) => {
                let before = std::mem::replace(&mut seen.now, status);
                seen.before = Some((before, asked_at.elapsed()));
                seen.trouble = None;
                asked_at = Instant::now();
            }
            Ok(Err(failure)) => seen.trouble = Some(failure.to_string()),
            Err(_) => {}
        }
    }
}
