//! nginx behind the tunnel, with one process, as it is behind most tunnels: small answers, kept
//! connections.

use std::net::SocketAddr;
use std::path::Path;

use super::BenchError;
use qmux_harness::Launch;

/// The answer to every request: 64 bytes.
const ANSWER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A server that writes no log and ends no connection by itself.
pub(super) fn server(address: SocketAddr, directory: &Path) -> Result<Launch, BenchError> {
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config(address, &directory.display().to_string()))
        .map_err(BenchError::io(format!("writing {}", file.display())))?;
    Ok(Launch::new("nginx", "nginx")
        .args(["-e", "stderr", "-p"])
        .args([directory.as_os_str(), "-c".as_ref(), file.as_os_str()]))
}

fn config(address: SocketAddr, dir: &str) -> String {
    // One process: a second one would outlive the first if that is killed.
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
         \x20 client_body_temp_path {dir}/t1;\n  proxy_temp_path {dir}/t2;\n\
         \x20 fastcgi_temp_path {dir}/t3;\n  uwsgi_temp_path {dir}/t4;\n  scgi_temp_path {dir}/t5;\n\
         \x20 server {{\n    listen {address} backlog=4096;\n\
         \x20   location / {{ return 200 \"{ANSWER}\"; }}\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_size_that_reports_claim() {
        assert_eq!(ANSWER.len(), 64);
        let config = config(([127, 0, 0, 1], 8_080).into(), "/tmp/x");
        assert!(config.contains("listen 127.0.0.1:8080 backlog"), "{config}");
        assert!(config.contains(ANSWER), "{config}");
    }
}
