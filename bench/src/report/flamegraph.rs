//! Flamegraphs and lists of symbols, from what `perf script` prints.

use std::collections::HashMap;
use std::collections::HashSet;
use std::io::BufReader;
use std::time::Duration;

use inferno::collapse::Collapse as _;
use inferno::collapse::perf::Folder;
use inferno::flamegraph;

/// Stacks with how long each was seen: `frame;frame;frame nanoseconds` in each line, the outermost
/// frame first. (The event `cpu-clock` counts nanoseconds, and perf prints with each sample for how
/// many it stands.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacks(String);

/// How much of the time a symbol was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// Percent of the samples in which it ran itself.
    pub own_percent: f64,
    /// Percent of the samples in which it or what it called ran.
    pub total_percent: f64,
}

impl Stacks {
    /// Folds the output of `perf script`.
    pub fn of_perf_script(output: &str) -> Result<Self, String> {
        let mut folder = Folder::from(inferno::collapse::perf::Options::default());
        let mut folded = Vec::new();
        folder
            .collapse(BufReader::new(output.as_bytes()), &mut folded)
            .map_err(|error| format!("the output of perf script: {error}"))?;
        let folded = String::from_utf8_lossy(&folded).into_owned();
        if folded.trim().is_empty() {
            return Err("perf has recorded no samples".into());
        }
        Ok(Self(folded))
    }

    /// The flamegraph.
    pub fn svg(&self, title: &str) -> Result<String, String> {
        let mut options = flamegraph::Options::default();
        options.title = title.to_owned();
        options.count_name = "ns".into();
        let mut svg = Vec::new();
        flamegraph::from_lines(&mut options, self.0.lines(), &mut svg)
            .map_err(|error| format!("the flamegraph: {error}"))?;
        Ok(String::from_utf8_lossy(&svg).into_owned())
    }

    /// One line for each stack, as flamegraph programs take them.
    pub fn folded(&self) -> &str {
        &self.0
    }

    /// Of such lines.
    #[cfg(test)]
    pub(super) fn of_folded(folded: &str) -> Self {
        Self(folded.to_owned())
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (Vec<&str>, u64)> {
        self.0.lines().filter_map(|line| {
            let (stack, count) = line.rsplit_once(' ')?;
            Some((stack.split(';').collect(), count.parse().ok()?))
        })
    }

    /// The time that was sampled, in nanoseconds of CPU time.
    pub fn sampled_ns(&self) -> u64 {
        self.each().map(|(_, ns)| ns).sum()
    }

    /// All symbols, those that ran most themselves first.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut counts: HashMap<&str, (u64, u64)> = HashMap::new();
        for (frames, count) in self.each() {
            // The first frame is the thread's name.
            let frames = frames.get(1..).unwrap_or_default();
            if let Some(innermost) = frames.last() {
                counts.entry(innermost).or_default().0 += count;
            }
            // A recursive function counts once.
            let distinct: HashSet<&str> = frames.iter().copied().collect();
            for frame in distinct {
                counts.entry(frame).or_default().1 += count;
            }
        }
        let all = self.sampled_ns();
        let mut symbols: Vec<Symbol> = counts
            .into_iter()
            .map(|(name, (own, total))| Symbol {
                name: name.to_owned(),
                own_percent: percent(own, all),
                total_percent: percent(total, all),
            })
            .collect();
        symbols.sort_by(|a, b| {
            let by_share = b.own_percent.total_cmp(&a.own_percent);
            by_share.then_with(|| a.name.cmp(&b.name))
        });
        symbols
    }

    /// The symbols that ran most, as text: by themselves, then with what they called.
    pub fn top(&self, count: usize) -> String {
        let mut symbols = self.symbols();
        let mut text = format!(
            "{:.2} CPU seconds sampled\n\n own %  total %  symbol\n",
            Duration::from_nanos(self.sampled_ns()).as_secs_f64()
        );
        let line = |symbol: &Symbol| {
            let Symbol {
                name,
                own_percent,
                total_percent,
            } = symbol;
            format!("{own_percent:6.1}  {total_percent:7.1}  {name}\n")
        };
        symbols
            .iter()
            .take(count)
            .for_each(|it| text.push_str(&line(it)));
        symbols.sort_by(|a, b| b.total_percent.total_cmp(&a.total_percent));
        text.push_str("\nwith what they call:\n\n own %  total %  symbol\n");
        symbols
            .iter()
            .take(2 * count)
            .for_each(|it| text.push_str(&line(it)));
        text
    }
}

fn percent(count: u64, all: u64) -> f64 {
    let (count, all) = (count as f64, all as f64);
    count / all * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERF_SCRIPT: &str = "\
core-0  4242  100.000001:    1000000 cpu-clock:pppH:
\tffff0001 copy_to_user+0x10 ([kernel.kallsyms])
\t   55501 qmux_dp::flow::tcp::write+0x20 (/bin/qmux-dp)
\t   55500 main+0x1 (/bin/qmux-dp)

core-0  4242  100.001001:    1000000 cpu-clock:pppH:
\t   55501 qmux_dp::flow::tcp::write+0x24 (/bin/qmux-dp)
\t   55500 main+0x1 (/bin/qmux-dp)

";

    #[test]
    fn symbols_have_their_own_share_and_their_total() {
        let stacks = Stacks::of_perf_script(PERF_SCRIPT).expect("stacks");
        assert_eq!(stacks.sampled_ns(), 2_000_000);
        let symbols = stacks.symbols();
        let write = symbols.iter().find(|it| it.name.contains("write"));
        let write = write.expect("the function");
        assert_eq!((write.own_percent, write.total_percent), (50.0, 100.0));
        let main = symbols.iter().find(|it| it.name == "main").expect("main");
        assert_eq!((main.own_percent, main.total_percent), (0.0, 100.0));
        assert!(stacks.top(3).contains("copy_to_user"));
    }

    #[test]
    fn it_is_drawn() {
        let stacks = Stacks::of_perf_script(PERF_SCRIPT).expect("stacks");
        let svg = stacks.svg("a title").expect("a picture");
        assert!(svg.contains("a title") && svg.contains("copy_to_user"));
    }

    #[test]
    fn nothing_recorded_is_an_error() {
        assert!(Stacks::of_perf_script("").is_err());
    }
}
