//! nginx behind the tunnel, curl in front of it.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use crate::support::peers;
use crate::support::program::Launch;
use crate::support::random::Random;
use crate::support::subject;
use crate::support::tunnel::{Site, Tunnel};
use crate::support::visitor;

/// Writes a random file of `megabytes`.
fn write_random(path: &Path, seed: u64, megabytes: usize) {
    let mut random = Random::new(seed);
    let mut piece = vec![0; 1 << 20];
    let mut file = BufWriter::new(File::create(path).expect("created"));
    for _ in 0..megabytes {
        random.fill(&mut piece);
        file.write_all(&piece).expect("room on the disk");
    }
    file.flush().expect("room on the disk");
}

fn curl() -> Launch {
    Launch::new("curl", "curl").args([
        "--silent",
        "--show-error",
        "--fail",
        "--noproxy",
        "*",
        "--no-buffer",
    ])
}

#[test]
fn a_gigabyte_arrives_with_the_right_hash() {
    let site = Site::new();
    let megabytes = subject::scale("QMUX_E2E_FILE_MB", 1024);
    let root = site.path().join("root");
    std::fs::create_dir(&root).expect("directory");
    let file = root.join("large");
    write_random(&file, 1, megabytes);
    let expected = visitor::sha256(File::open(&file).expect("there"));
    assert_eq!(expected.0, (megabytes as u64) << 20);

    let nginx = peers::nginx(&site, root.to_str().expect("UTF-8"));
    let tunnel = Tunnel::to(nginx.address);
    let url = format!("http://{}/large", tunnel.traffic());
    let mut curl = curl().arg(&url).spawn_piped();
    let received = visitor::sha256(curl.stdout.take().expect("a pipe"));
    let status = curl.wait().expect("our own child");
    assert!(status.success(), "curl ended with {status}");
    assert!(received == expected, "the file arrived changed");
}

#[test]
fn a_connection_is_kept_alive() {
    const REQUESTS: usize = 20;
    let site = Site::new();
    let root = site.path().join("root");
    std::fs::create_dir(&root).expect("directory");
    std::fs::write(root.join("hello"), "hello\n").expect("written");
    let nginx = peers::nginx(&site, root.to_str().expect("UTF-8"));
    let tunnel = Tunnel::to(nginx.address);
    let url = format!("http://{}/hello", tunnel.traffic());
    let output = curl()
        .args(["--write-out", "new connections: %{num_connects}\n"])
        .args(vec![url; REQUESTS])
        .output();
    let count = |text: &str| output.lines().filter(|line| *line == text).count();
    assert_eq!(count("hello"), REQUESTS, "{output}");
    assert_eq!(count("new connections: 1"), 1, "{output}");
    assert_eq!(count("new connections: 0"), REQUESTS - 1, "{output}");
}

#[test]
fn ranges_and_errors_pass() {
    let site = Site::new();
    let root = site.path().join("root");
    std::fs::create_dir(&root).expect("directory");
    std::fs::write(root.join("digits"), "0123456789").expect("written");
    let nginx = peers::nginx(&site, root.to_str().expect("UTF-8"));
    let tunnel = Tunnel::to(nginx.address);
    let base = format!("http://{}", tunnel.traffic());
    let part = curl()
        .args(["--range", "3-5"])
        .arg(format!("{base}/digits"));
    assert_eq!(part.output(), "345\n");
    let missing = Launch::new("curl", "curl")
        .args(["--silent", "--noproxy", "*", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}"])
        .arg(format!("{base}/missing"));
    assert_eq!(missing.output(), "404\n");
}
