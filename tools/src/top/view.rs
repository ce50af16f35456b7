//! What the user of `qmux-ctl top` has chosen by keys (table, sorting, filter, scrolling), and how
//! the screen is drawn from that. The module itself neither reads from nor writes to a terminal.

use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table as TableWidget};

use super::tables::{self, Table};
use crate::status::model::Status;
use crate::status::units::time;

/// The most characters that a filter may have.
const FILTER_CHARS_MAX: usize = 60;

/// The meaning of the keys, shown at the bottom.
const KEYS: &str = "q quit  Tab next table  s/S sort by next/previous column  r reverse  / filter  \
    Up/Down scroll";

/// The choices of the user.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The index of the table that is shown.
    table: usize,
    /// The index of the column by which it is sorted.
    column: usize,
    descending: bool,
    filter: String,
    /// Whether the user is typing the filter: keys are added to it.
    typing: bool,
    /// Number of rows above the first one that is shown.
    scrolled: usize,
}

/// The effect of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Draw the screen again.
    Go,
    /// End the program.
    Quit,
}

/// What `top` knows about the process that it watches.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The newest status.
    pub(super) now: Status,
    /// The status before it, and the time between them.
    pub(super) before: Option<(Status, Duration)>,
    /// The reason why there is no newer status.
    pub(super) trouble: Option<String>,
}

impl View {
    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyCode) -> Wish {
        if self.typing {
            match key {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => {
                    self.typing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(letter) if self.filter.chars().count() < FILTER_CHARS_MAX => {
                    self.filter.push(letter);
                }
                _ => {}
            }
            self.scrolled = 0;
            return Wish::Go;
        }
        match key {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Wish::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => {
                self.table += 1;
                (self.column, self.scrolled) = (0, 0);
            }
            KeyCode::Char('s') => self.column += 1,
            // `usize::MAX` is the last column: only `chosen` knows how many columns there are.
            KeyCode::Char('S') => self.column = self.column.checked_sub(1).unwrap_or(usize::MAX),
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Down => self.scrolled += 1,
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::PageDown => self.scrolled += 20,
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(20),
            KeyCode::Home => self.scrolled = 0,
            _ => {}
        }
        Wish::Go
    }

    /// The chosen table, sorted and filtered.
    fn chosen(&mut self, seen: &Seen) -> Option<(Table, Vec<&'static str>)> {
        let before = seen.before.as_ref();
        let mut tables = tables::of(&seen.now, before.map(|(status, passed)| (status, *passed)));
        if tables.is_empty() {
            return None;
        }
        let titles = tables.iter().map(|table| table.title).collect();
        self.table %= tables.len();
        let mut table = tables.swap_remove(self.table);
        let columns = table.columns.len();
        self.column = match self.column {
            usize::MAX => columns - 1,
            column => column % columns,
        };
        table.arrange(&self.filter, self.column, self.descending);
        self.scrolled = self.scrolled.min(table.rows.len().saturating_sub(1));
        Some((table, titles))
    }

    /// Draws the lines at the top, the chosen table, and the line of keys.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, seen: &Seen) {
        let [head, middle, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let chosen = self.chosen(seen);
        frame.render_widget(Paragraph::new(title_lines(seen)), head);
        if let Some((table, titles)) = chosen {
            let widget = self.widget(&table, &titles);
            frame.render_widget(widget, middle);
        }
        let line = if self.typing || !self.filter.is_empty() {
            let cursor = if self.typing { "_" } else { "" };
            format!(
                "filter: {}{cursor}  (Enter keeps it, Esc clears it)",
                self.filter
            )
        } else {
            KEYS.to_owned()
        };
        let faint = Style::new().add_modifier(Modifier::DIM);
        frame.render_widget(Paragraph::new(line).style(faint), foot);
    }

    fn widget<'a>(&self, table: &'a Table, titles: &[&'static str]) -> TableWidget<'a> {
        let arrow = if self.descending { "▼" } else { "▲" };
        let head = table.columns.iter().enumerate().map(|(at, name)| {
            if at == self.column {
                format!("{name}{arrow}")
            } else {
                (*name).to_owned()
            }
        });
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let rows = table.rows.iter().skip(self.scrolled).map(|row| {
            let down = row.iter().any(|cell| cell.shown() == "down");
            let row = Row::new(row.iter().map(tables::Cell::shown));
            if down {
                row.style(Style::new().fg(Color::Red))
            } else {
                row
            }
        });
        let widest = |at: usize| {
            let cells = table.rows.iter().filter_map(|row| row.get(at));
            let cells = cells.map(|cell| cell.shown().chars().count());
            let own = table.columns[at].chars().count() + 1;
            u16::try_from(cells.max().unwrap_or(0).max(own)).unwrap_or(u16::MAX)
        };
        let widths = (0..table.columns.len()).map(|at| Constraint::Length(widest(at)));
        TableWidget::new(rows, widths)
            .header(Row::new(head).style(bold))
            .column_spacing(2)
            .block(Block::bordered().title(tab_line(titles, self.table)))
    }
}

fn tab_line(titles: &[&'static str], chosen: usize) -> Line<'static> {
    let spans = titles.iter().enumerate().map(|(at, title)| {
        let style = if at == chosen {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        Span::styled(format!(" {title} "), style)
    });
    spans.collect::<Vec<_>>().into()
}

fn title_lines(seen: &Seen) -> Vec<Line<'static>> {
    let now = &seen.now;
    let first = format!(
        "qmux-dp {} ({})  {}  {}  up {}",
        now.version,
        now.commit,
        now.role.join(" and "),
        now.state,
        time(now.uptime_s)
    );
    let second = match &seen.trouble {
        Some(trouble) => Line::styled(trouble.clone(), Style::new().fg(Color::Red)),
        None => {
            let soonest = now.certificates.iter().min_by_key(|it| it.days_left);
            let text = soonest.map(|it| {
                format!(
                    "first certificate to expire: {} in {} days",
                    it.file, it.days_left
                )
            });
            Line::from(text.unwrap_or_default())
        }
    };
    vec![Line::from(first), second]
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;

    use super::*;
    use crate::status::model::{Server, Service};

    fn status(bytes_in: u64) -> Status {
        let service = |name: &str, up, visitors, bytes_in| Service {
            name: name.into(),
            traffic_addr: "0.0.0.0:80".into(),
            up,
            visitors,
            bytes_in,
            ..Service::default()
        };
        Status {
            version: "1.2".into(),
            role: vec!["server".into()],
            state: "ready".into(),
            server: Some(Server {
                services: vec![
                    service("web", true, 10, bytes_in),
                    service("ssh", false, 300, 0),
                ],
                clients: Vec::new(),
            }),
            ..Status::default()
        }
    }

    fn picture(view: &mut View, seen: &Seen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 12)).expect("a terminal");
        terminal
            .draw(|frame| view.draw(frame, seen))
            .expect("drawn");
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(110);
        let lines = lines.map(|line| line.iter().map(Cell::symbol).collect::<String>());
        lines.collect::<Vec<_>>().join("\n")
    }

    fn seen() -> Seen {
        Seen {
            now: status(3_000_000),
            before: Some((status(1_000_000), Duration::from_secs(2))),
            trouble: None,
        }
    }

    fn press(view: &mut View, keys: &str) {
        for letter in keys.chars() {
            assert_eq!(view.key(KeyCode::Char(letter)), Wish::Go);
        }
    }

    #[test]
    fn rates_are_computed_from_two_statuses_and_rows_are_sorted_by_the_chosen_column() {
        let mut view = View::default();
        let text = picture(&mut view, &seen());
        assert!(text.contains("qmux-dp 1.2"), "{text}");
        let place = |text: &str, name: &str| text.find(name).unwrap_or_else(|| panic!("{text}"));
        assert!(place(&text, "│ssh") < place(&text, "│web"), "{text}");
        assert!(text.contains("8.0Mb"), "1 MB a second: {text}");
        press(&mut view, "sssss");
        let text = picture(&mut view, &seen());
        assert!(text.contains("IN/s▲"), "{text}");
        press(&mut view, "r");
        let text = picture(&mut view, &seen());
        assert!(text.contains("IN/s▼"), "{text}");
        assert!(place(&text, "│web") < place(&text, "│ssh"), "{text}");
    }

    #[test]
    fn a_filter_shows_only_rows_that_contain_it_and_gets_all_keys_while_it_is_typed() {
        let mut view = View::default();
        press(&mut view, "/Sq");
        view.key(KeyCode::Backspace);
        press(&mut view, "s");
        view.key(KeyCode::Enter);
        let text = picture(&mut view, &seen());
        assert!(text.contains("│ssh") && !text.contains("│web"), "{text}");
        assert!(text.contains("filter: Ss"), "{text}");
        assert_eq!(view.key(KeyCode::Esc), Wish::Go);
        assert!(picture(&mut view, &seen()).contains("│web"));
        assert_eq!(view.key(KeyCode::Esc), Wish::Quit);
        assert_eq!(view.key(KeyCode::Char('q')), Wish::Quit);
    }

    #[test]
    fn the_choice_of_table_and_column_wraps_around_and_trouble_is_shown() {
        let mut view = View::default();
        view.key(KeyCode::Tab);
        assert!(picture(&mut view, &seen()).contains("CLIENT▲"));
        view.key(KeyCode::Tab);
        press(&mut view, "S");
        assert!(picture(&mut view, &seen()).contains("BYTES▲"));
        press(&mut view, "s");
        let mut seen = seen();
        seen.trouble = Some("no answer".into());
        let text = picture(&mut view, &seen);
        assert!(
            text.contains("SERVICE▲") && text.contains("no answer"),
            "{text}"
        );
    }
}
