//! Writes fresh certificates for measurements: `cargo run -p qmux-bench --example certs -- DIR NAME…`.

use std::path::Path;

use qmux_config::certs::{CertsRequest, DAYS_DEFAULT, generate, write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: certs DIR NAME…")?;
    let certs = generate(&CertsRequest {
        server_names: args.collect(),
        days: DAYS_DEFAULT,
    })?;
    for path in write(&certs, Path::new(&dir), true)? {
        println!("{}", path.display());
    }
    Ok(())
}
