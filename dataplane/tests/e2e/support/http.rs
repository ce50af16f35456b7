//! A plain HTTP client for the admin endpoint: one request per connection.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;

use super::visitor;
use super::wait;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }
}

/// GETs `target`; panics if there is no answer.
pub(crate) fn get(address: SocketAddr, target: &str) -> Answer {
    try_get(address, target).unwrap_or_else(|error| panic!("{address}{target}: {error}"))
}

/// GETs `target`.
pub(crate) fn try_get(address: SocketAddr, target: &str) -> io::Result<Answer> {
    request(
        address,
        &format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    )
}

/// Sends `text` and reads the answer to the connection's end.
pub(crate) fn request(address: SocketAddr, text: &str) -> io::Result<Answer> {
    let mut stream = visitor::try_connect(address)?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("no HTTP answer: {answer:?}")))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split_whitespace().nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let answer = Answer {
        status,
        headers,
        body: body.to_owned(),
    };
    let length: usize = answer.header("content-length")?.parse().ok()?;
    (body.len() == length).then_some(answer)
}

/// Asks until `target` is answered with `status`, and returns that answer's body.
pub(crate) fn wait_for(address: SocketAddr, target: &str, status: u16) -> String {
    wait::until(&format!("{target} is answered with {status}"), || {
        let answer = try_get(address, target).ok()?;
        (answer.status == status).then_some(answer.body)
    })
}

/// The sum of a metric's values over all of its labels; panics if it is not there.
pub(crate) fn metric(metrics: &str, name: &str) -> f64 {
    let values: Vec<f64> = metrics
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .map(|line| {
            let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("no value: {line}"))
        })
        .collect();
    assert!(!values.is_empty(), "no {name} in\n{metrics}");
    values.iter().sum()
}
