//! Counts what the cores' threads allocate, and where from; only in builds with the feature
//! `count-allocations`.
//!
//! Each watched thread counts its allocations. The next ones, as many as are asked for, are also
//! recorded with their call stacks. The owner of an allocation is the innermost crate on its stack
//! that is not a library of data structures. What BoringSSL allocates goes to C's `malloc` and is
//! not seen here; it allocates nothing for a packet.

use std::alloc::{GlobalAlloc, Layout};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::heap::Metered;

/// Folders of the sources of possible owners, as the debug information names them, and the owners'
/// names. Data structures of other crates allocate on behalf of one of these.
const OWNERS: [(&str, &str); 9] = [
    ("/dataplane/src/", "qmux-dp"),
    ("/proto/src/", "qmux-proto"),
    ("/quiche-", "quiche"),
    ("/octets-", "octets"),
    ("/boring-", "boring"),
    ("/monoio-", "monoio"),
    ("/quinn-udp-", "quinn-udp"),
    ("/tracing", "tracing"),
    ("/rustix-", "rustix"),
];

/// The file of the innermost frames, which are this module's own.
const OWN_FILE: &str = "sys/allocations.rs";

/// The allocator of builds that count.
#[derive(Debug)]
pub(crate) struct Counting;

/// Number of allocations, and of their bytes, since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// Calls that returned memory; growing a block is one of them.
    pub(crate) allocations: u64,
    /// Bytes asked for.
    pub(crate) bytes: u64,
}

/// Where an allocation comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// The crate.
    pub(crate) owner: String,
    /// The function in the crate, with its file and line.
    pub(crate) place: String,
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static RECORDS_LEFT: AtomicUsize = AtomicUsize::new(0);
static RECORDS: Mutex<Vec<Backtrace>> = Mutex::new(Vec::new());

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Counts the allocations of the calling thread from now on.
pub(crate) fn watch_this_thread() {
    WATCHED.set(true);
}

/// What all watched threads have allocated so far.
pub(crate) fn counted() -> Counted {
    Counted {
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
        bytes: BYTES.load(Ordering::Relaxed),
    }
}

/// Records the next `count` allocations.
pub(crate) fn record(count: usize) {
    RECORDS_LEFT.store(count, Ordering::Relaxed);
}

/// Stops recording; returns how many of the recorded allocations came from each place.
pub(crate) fn recorded() -> BTreeMap<Source, u64> {
    RECORDS_LEFT.store(0, Ordering::Relaxed);
    let records = RECORDS
        .lock()
        .map(|mut records| std::mem::take(&mut *records))
        .unwrap_or_default();
    let mut sources = BTreeMap::new();
    for record in records {
        *sources.entry(source(&record.to_string())).or_default() += 1;
    }
    sources
}

/// Finds the owner in a stack as [`Backtrace`] prints it: innermost first, a line with a number and
/// a function, then one with the place in a file. Functions that were inlined may have no path, so
/// the file tells the crate.
fn source(stack: &str) -> Source {
    let mut function = "";
    let mut outermost = Source {
        owner: "other".to_owned(),
        place: String::new(),
    };
    for line in stack.lines().map(str::trim_start) {
        let Some(file) = line.strip_prefix("at ") else {
            function = line.split_once(": ").map_or(line, |(_number, name)| name);
            continue;
        };
        // The entry points that the compiler generates lie where the allocator is chosen.
        if file.contains(OWN_FILE) || function.contains("__rust_") {
            continue;
        }
        // A path within the workspace is relative to it or to the crate.
        let absolute = file.strip_prefix("./").unwrap_or(file);
        let absolute = if absolute.starts_with("src/") {
            format!("/dataplane/{absolute}")
        } else {
            format!("/{absolute}")
        };
        let owner = OWNERS
            .iter()
            .find_map(|(folder, owner)| absolute.find(folder).map(|at| (at, *owner)));
        let Some((at, owner)) = owner else {
            outermost.place = format!("{function} {file}");
            continue;
        };
        let place = absolute[at + 1..]
            .rsplit_once(':')
            .map_or("", |(place, _column)| place);
        return Source {
            owner: owner.to_owned(),
            place: format!("{function} ({place})"),
        };
    }
    outermost
}

fn count(bytes: usize) {
    if !WATCHED.get() {
        return;
    }
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    let left = RECORDS_LEFT.load(Ordering::Relaxed);
    if left > 0 {
        RECORDS_LEFT.store(left - 1, Ordering::Relaxed);
        // What recording allocates itself is not counted.
        WATCHED.set(false);
        let record = Backtrace::force_capture();
        if let Ok(mut records) = RECORDS.lock() {
            records.push(record);
        }
        WATCHED.set(true);
    }
}

// SAFETY: every call is passed on unchanged to an allocator that keeps the contract; counting
// neither touches the memory nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { Metered.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { Metered.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: as above.
        unsafe { Metered.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { Metered.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_the_innermost_crate_that_is_no_data_structure() {
        let stack = "\
   0: std::backtrace::Backtrace::create
             at /rustc/0/library/std/src/backtrace.rs:331:13
   1: count
             at ./dataplane/src/sys/allocations.rs:120:22
   2: __rust_alloc
             at ./dataplane/src/main.rs:39:14
   3: from<u8>
             at /rustc/0/library/alloc/src/vec/mod.rs:3000:9
   4: parse_datagram_frame
             at /r/src/index/quiche-0.30.0/src/frame.rs:1200:15
   5: qmux_dp::quic::endpoint::receive::feed
             at ./dataplane/src/quic/endpoint/receive.rs:140:15
";
        let found = source(stack);
        assert_eq!(found.owner, "quiche");
        assert_eq!(
            found.place,
            "parse_datagram_frame (quiche-0.30.0/src/frame.rs:1200)"
        );
        let ours = source("   4: feed\n             at ./src/quic/lane/mod.rs:140:15\n");
        assert_eq!(ours.owner, "qmux-dp");
        assert_eq!(ours.place, "feed (dataplane/src/quic/lane/mod.rs:140)");
        assert_eq!(source("   0: core::start\n").owner, "other");
    }
}
