//! The texts of the configuration that is in force.

use qmux_config::{Change, Config, changes_between};

/// The most lines of an answer: a file of thousands of services may differ in every line.
const LINES_MAX: usize = 1_000;

/// The roles that there are: server, client, or both.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) server: bool,
    pub(super) client: bool,
}

impl Roles {
    pub(super) fn of(config: &Config) -> Roles {
        Roles {
            server: config.server.is_some(),
            client: config.client.is_some(),
        }
    }
}

/// Texts of the config file.
#[derive(Debug)]
pub(crate) struct Texts {
    /// The text at the start; what only a start takes up is as it was then.
    started: String,
    /// The text that was taken up last.
    taken: String,
    /// The last text with each section, if that is another one: a role whose section is removed
    /// goes on until the process ends.
    last_with_server: Option<String>,
    last_with_client: Option<String>,
}

impl Texts {
    /// The texts of a process that has started with this one.
    pub(crate) fn new(started: String) -> Texts {
        Texts {
            taken: started.clone(),
            started,
            last_with_server: None,
            last_with_client: None,
        }
    }

    /// The text that was taken up last.
    pub(super) fn taken(&self) -> &str {
        &self.taken
    }

    /// The last text with a `[server]` section, if there was any.
    pub(super) fn of_server(&self) -> &str {
        self.last_with_server.as_ref().unwrap_or(&self.taken)
    }

    /// The last text with a `[client]` section, if there was any.
    pub(super) fn of_client(&self) -> &str {
        self.last_with_client.as_ref().unwrap_or(&self.taken)
    }

    /// Takes up another text, which has the sections of these roles.
    pub(super) fn take(&mut self, text: String, roles: Roles) {
        let before = std::mem::replace(&mut self.taken, text);
        let keep = |last: &mut Option<String>, has_it| match has_it {
            true => *last = None,
            false => {
                last.get_or_insert_with(|| before.clone());
            }
        };
        keep(&mut self.last_with_server, roles.server);
        keep(&mut self.last_with_client, roles.client);
    }

    /// The differences between `text`, which has the sections of the roles `wanted`, and the
    /// earlier one, and which of them only a start would take up; `running` are the roles that
    /// there are.
    pub(super) fn lines(&self, text: &str, running: Roles, wanted: Roles) -> Vec<String> {
        let sections = [
            ("[server]", "server.", running.server, wanted.server),
            ("[client]", "client.", running.client, wanted.client),
        ];
        // A role that comes or goes has one line, in place of all its keys.
        let of_roles = sections.iter().filter_map(|(name, _, running, wanted)| {
            let how = match (running, wanted) {
                (true, false) => "removed; this role goes on as it was",
                (false, true) => "added",
                _ => return None,
            };
            Some(format!("needs a restart: {name}: {how}"))
        });
        let is_told_alone = |change: &&Change| {
            let mut others = sections
                .iter()
                .filter(|(_, _, running, wanted)| running != wanted);
            !others.any(|(_, prefix, ..)| change.key.starts_with(prefix))
        };
        let taken = changes_between(&self.taken, text);
        let taken = taken.iter().filter(|change| change.is_taken_up());
        let left = changes_between(&self.started, text);
        let left = left.iter().filter(|change| !change.is_taken_up());
        let left = left.filter(is_told_alone);
        let left = left.map(|change: &Change| format!("needs a restart: {change}"));
        let taken = taken.filter(is_told_alone).map(ToString::to_string);
        let mut lines: Vec<String> = taken.chain(left).chain(of_roles).collect();
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
        let roles = |server, client| Roles { server, client };
        let mut texts = Texts::new("both".into());
        texts.take("both, changed".into(), roles(true, true));
        for without in ["client only", "client only, changed"] {
            texts.take(without.into(), roles(false, true));
            assert_eq!(texts.of_server(), "both, changed");
            assert_eq!(texts.of_client(), without);
            assert_eq!(texts.taken(), without);
        }
        texts.take("server only".into(), roles(true, false));
        assert_eq!(texts.of_server(), "server only");
        assert_eq!(texts.of_client(), "client only, changed");
    }
}
