//! The program from the outside: what it writes, what it says, how it exits.

mod certs;
mod client;
mod config;
mod health;
mod import;
mod man;
mod readme;
mod renew;
mod run;
mod ticket_key;
