//! `dp.toml` from the outside: what is accepted, what is refused, and in which words.

mod accepted;
mod certificates;
mod clients;
mod fixture;
mod keys;
mod relations;
mod services;
mod texts;
mod ticket_keys;
mod tls_keys;
mod values;
mod whole_file;
