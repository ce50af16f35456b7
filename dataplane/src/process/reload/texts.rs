//! The texts that the configuration of now comes from.

use qmux_config::{Change, changes_between};

/// Lines of an answer: a file of thousands of services may differ in every line.
const LINES_MAX: usize = 1_000;

/// Texts of the config file.
#[derive(Debug)]
pub(crate) struct Texts {
    /// Of the start: what only a start takes up is as it was then.
    started: String,
    /// The one that was taken up last.
    taken: String,
    /// The last one with each section, if that is another one: a role whose section is removed goes
    /// on until the process ends.
    last_with_server: Option<String>,
    last_with_client: Option<String>,
}

impl Texts {
    /// The process has started with this one.
    pub(crate) fn new(started: String) -> Texts {
        Texts {
            taken: started.clone(),
            started,
            last_with_server: None,
            last_with_client: None,
        }
    }

    /// The one that was taken up last.
    pub(super) fn taken(&self) -> &str {
        &self.taken
    }

    /// The last one with a `[server]` section, if there was any.
    pub(super) fn of_server(&self) -> &str {
        self.last_with_server.as_ref().unwrap_or(&self.taken)
    }

    /// The last one with a `[client]` section, if there was any.
    pub(super) fn of_client(&self) -> &str {
        self.last_with_client.as_ref().unwrap_or(&self.taken)
    }

    /// Another one is taken up, which has these sections or not.
    pub(super) fn take(&mut self, text: String, (server, client): (bool, bool)) {
        let before = std::mem::replace(&mut self.taken, text);
        let keep = |last: &mut Option<String>, has_it| match has_it {
            true => *last = None,
            false => {
                last.get_or_insert_with(|| before.clone());
            }
        };
        keep(&mut self.last_with_server, server);
        keep(&mut self.last_with_client, client);
    }

    /// What differs in `text` from before, and what a start alone would take up.
    pub(super) fn lines(&self, text: &str) -> Vec<String> {
        let taken = changes_between(&self.taken, text);
        let taken = taken.iter().filter(|change| change.is_taken_up());
        let left = changes_between(&self.started, text);
        let left = left.iter().filter(|change| !change.is_taken_up());
        let left = left.map(|change: &Change| format!("needs a restart: {change}"));
        let mut lines: Vec<String> = taken.map(ToString::to_string).chain(left).collect();
        if lines.len() > LINES_MAX {
            let more = lines.len() - LINES_MAX;
            lines.truncate(LINES_MAX);
            lines.push(format!("… and {more} more"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_that_is_gone_comes_from_the_last_text_that_had_it() {
        let mut texts = Texts::new("both".into());
        texts.take("both, changed".into(), (true, true));
        for without in ["client only", "client only, changed"] {
            texts.take(without.into(), (false, true));
            assert_eq!(texts.of_server(), "both, changed");
            assert_eq!(texts.of_client(), without);
            assert_eq!(texts.taken(), without);
        }
        texts.take("server only".into(), (true, false));
        assert_eq!(texts.of_server(), "server only");
        assert_eq!(texts.of_client(), "client only, changed");
    }
}
