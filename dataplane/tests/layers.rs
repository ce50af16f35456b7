//! Who may `use` whom in the program: each part knows only what is below it. Tests may know all.

use std::fs;
use std::path::Path;

/// Parts of the program from the bottom to the top. Those of one line do not know each other.
const PROGRAM: &[&[&str]] = &[
    &["sys", "jitter", "output"],
    &["buffer", "resolve", "ready"],
    &["core"],
    &["quic"],
    &["flow"],
    &["server", "client"],
    &["process"],
    &["cli", "demo"],
];

/// The parts within the server: mail names things, and not the code that handles them.
const SERVER: &[&[&str]] = &[
    &[
        "ids",
        "pool",
        "bounds",
        "access_log",
        "succession",
        "entrance::proxy_header",
    ],
    &["tcp::visitor", "udp::forwarded"],
    &["shared"],
    &["mail"],
    &["tcp::opening", "udp"],
    &["door"],
    &["entrance"],
    &["tcp::refused"],
    &["tcp::carry"],
    &["tcp::arrival"],
];

/// The parts within the client: what is known of services and servers knows no lane.
const CLIENT: &[&[&str]] = &[
    &["mail"],
    &["services"],
    &["servers"],
    &["shared", "udp"],
    &["lane"],
];

/// The place of a module, given by its path below the layers' root: the longest name that fits.
fn place(layers: &[&[&str]], module: &str) -> Option<(usize, String)> {
    let fits = |part: &str| module == part || module.starts_with(&format!("{part}::"));
    let all = layers.iter().enumerate();
    let all = all.flat_map(|(level, parts)| parts.iter().map(move |part| (level, *part)));
    let best = all
        .filter(|(_, part)| fits(part))
        .max_by_key(|(_, part)| part.len())?;
    Some((best.0, best.1.to_owned()))
}

/// The paths below `root` that a source names, without those in its tests and comments.
fn named(source: &str, root: &str) -> Vec<String> {
    let is_module = |line: &str| line.contains("mod ") && line.ends_with('{');
    let mut tests = source.match_indices("#[cfg(test)]\n");
    let end = tests.find(|(at, _)| source[*at..].lines().nth(1).is_some_and(is_module));
    let code = source[..end.map_or(source.len(), |(at, _)| at)].lines();
    let code: String = code
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let mut paths = Vec::new();
    for (at, _) in code.match_indices(root) {
        let rest = &code[at + root.len()..];
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                paths.extend(group.split(',').map(|path| path.trim().to_owned()));
            }
            None => paths.push(rest.chars().take_while(|c| is_path(*c)).collect()),
        }
    }
    paths
}

/// Checks every file below `folder`, whose modules' paths begin with `root`.
fn check(folder: &Path, module: &str, root: &str, layers: &[&[&str]], wrong: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .expect("UTF-8")
            .to_owned();
        if ["test", "simulation", "fake", "costs"]
            .iter()
            .any(|it| name.contains(it))
        {
            continue;
        }
        let own = [module, &name]
            .into_iter()
            .filter(|it| !it.is_empty() && *it != "mod");
        let own = own.collect::<Vec<_>>().join("::");
        if path.is_dir() {
            check(&path, &own, root, layers, wrong);
            continue;
        }
        let Some((level, part)) = place(layers, &own) else {
            continue;
        };
        let source = fs::read_to_string(&path).expect("readable");
        let mut all = named(&source, root);
        if module.is_empty() {
            all.extend(named(&source, "super::"));
        }
        for used in all {
            let Some((other, of)) = place(layers, &used) else {
                continue;
            };
            if of != part && other >= level {
                wrong.push(format!("{} ({part}) knows {root}{used}", path.display()));
            }
        }
    }
}

#[test]
fn each_part_knows_only_what_is_below_it() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    check(&sources, "", "crate::", PROGRAM, &mut wrong);
    check(
        &sources.join("server"),
        "",
        "crate::server::",
        SERVER,
        &mut wrong,
    );
    check(
        &sources.join("client"),
        "",
        "crate::client::",
        CLIENT,
        &mut wrong,
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_use_of_what_is_above_is_found() {
    let source = "use crate::core::task;\nuse crate::server::{door::Door, mail};\n// crate::x\n";
    assert_eq!(named(source, "crate::"), ["core::task", "server::"]);
    assert_eq!(named(source, "crate::server::"), ["door::Door", "mail"]);
    let declared = "#[cfg(test)]\nmod tests;\nuse crate::core;\n";
    assert_eq!(named(declared, "crate::"), ["core"]);
    let tests = "#[cfg(test)]\nmod tests {\n use crate::process::run;\n}\n";
    assert!(named(tests, "crate::").is_empty());
    assert_eq!(
        place(SERVER, "udp::forwarded::Link"),
        Some((1, "udp::forwarded".into()))
    );
    assert_eq!(place(SERVER, "udp::lane"), Some((4, "udp".into())));
}
