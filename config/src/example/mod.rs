//! Commented configurations to start from, one for each role, with every key that exists.

/// A configuration of the server role, with the certificates that `qmux-ctl certs` makes and one
/// listener.
#[must_use]
pub fn server() -> &'static str {
    concat!(include_str!("server.toml"), include_str!("common.toml"))
}

/// A configuration of the client role, for the server of [`server`].
#[must_use]
pub fn client() -> &'static str {
    concat!(include_str!("client.toml"), include_str!("common.toml"))
}

#[cfg(test)]
mod tests;
