//! Flamegraphs and lists of symbols, from what `perf script` prints.

use std::collections::{HashMap, HashSet};
use std::io::BufReader;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use inferno::collapse::Collapse as _;
use inferno::collapse::perf::Folder;
use inferno::flamegraph;

/// Stacks with how long each was seen: `frame;frame;frame nanoseconds` in each line, the outermost
/// frame first. (The event `cpu-clock` counts nanoseconds, and perf prints with each sample for how
/// many it stands.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stacks(String);

impl Stacks {
    pub(crate) fn of_perf_script(output: &str) -> Result<Self> {
        let mut folder = Folder::from(inferno::collapse::perf::Options::default());
        let mut folded = Vec::new();
        folder
            .collapse(BufReader::new(output.as_bytes()), &mut folded)
            .context("the output of perf script")?;
        let folded = String::from_utf8_lossy(&folded).into_owned();
        ensure!(!folded.trim().is_empty(), "perf has recorded no samples");
        Ok(Self(folded))
    }

    pub(crate) fn svg(&self, title: &str) -> Result<String> {
        let mut options = flamegraph::Options::default();
        options.title = title.to_owned();
        options.count_name = "ns".into();
        let mut svg = Vec::new();
        flamegraph::from_lines(&mut options, self.0.lines(), &mut svg).context("the flamegraph")?;
        Ok(String::from_utf8_lossy(&svg).into_owned())
    }

    /// One line for each stack, as flamegraph programs take them.
    pub(crate) fn folded(&self) -> &str {
        &self.0
    }

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

    pub(crate) fn sampled_ns(&self) -> u64 {
        self.each().map(|(_, ns)| ns).sum()
    }

    /// All symbols, each with the percent of the time in which it ran itself, and in which it or
    /// what it called ran; those that ran most themselves first.
    fn symbols(&self) -> Vec<(&str, f64, f64)> {
        let mut counts: HashMap<&str, (u64, u64)> = HashMap::new();
        for (frames, count) in self.each() {
            // The first frame is the thread's name.
            let frames = frames.get(1..).unwrap_or_default();
            if let Some(innermost) = frames.last() {
                counts.entry(innermost).or_default().0 += count;
            }
            // A recursive function counts once.
            for frame in frames.iter().copied().collect::<HashSet<&str>>() {
                counts.entry(frame).or_default().1 += count;
            }
        }
        let all = self.sampled_ns() as f64;
        let percent = |count: u64| count as f64 / all * 100.0;
        let symbols = counts.into_iter();
        let mut symbols: Vec<(&str, f64, f64)> = symbols
            .map(|(name, (own, total))| (name, percent(own), percent(total)))
            .collect();
        symbols.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        symbols
    }

    /// The symbols that ran most, as text: by themselves, then with what they called.
    pub(crate) fn top(&self, count: usize) -> String {
        let mut symbols = self.symbols();
        let list = |symbols: &[(&str, f64, f64)], count| -> String {
            let lines = symbols.iter().take(count);
            let line = |(name, own, total): &(_, _, _)| format!("{own:6.1}  {total:7.1}  {name}\n");
            " own %  total %  symbol\n".to_owned() + &lines.map(line).collect::<String>()
        };
        let seconds = Duration::from_nanos(self.sampled_ns()).as_secs_f64();
        let own = list(&symbols, count);
        symbols.sort_by(|a, b| b.2.total_cmp(&a.2));
        let total = list(&symbols, 2 * count);
        format!("{seconds:.2} CPU seconds sampled\n\n{own}\nwith what they call:\n\n{total}")
    }
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
        let of = |part: &str| {
            let mut symbols = stacks.symbols().into_iter();
            let symbol = symbols.find(|(name, ..)| name.contains(part));
            symbol.map(|(_, own, total)| (own, total))
        };
        assert_eq!(of("write"), Some((50.0, 100.0)));
        assert_eq!(of("main"), Some((0.0, 100.0)));
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
