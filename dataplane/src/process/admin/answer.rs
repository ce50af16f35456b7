//! What the admin endpoint answers to a request.

use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap,
    HeaderValue, ORIGIN,
};
use hyper::http::uri::Authority;
use hyper::{Method, Response, StatusCode, Uri};
use qmux_config::SERVICE_NAME_BYTES_MAX;
use tokio::sync::oneshot;

use super::exposition::{self, Format};
use super::query::wanted;
use super::{Sources, status_json};
use crate::process::reload::{self, Refused};
use crate::process::status::{Status, UnknownService};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// The status page: it asks for `/status` again and again.
const PAGE: &str = include_str!("page.html");

/// The policy of the page: it may do nothing else.
const PAGE_POLICY: &str = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'";

/// The answer to a request that must name the endpoint by its address.
const BY_NAME: &str = "this is answered only if the Host header has an IP address or localhost, \
    and no other name: a web page could have its own name lead here. Ask by the address, as in \
    http://127.0.0.1:9600/status; a proxy in front must set Host to the address. /metrics, \
    /healthz and /readyz are answered by any name.\n";

const READ: &str = "GET, HEAD";
const WRITE: &str = "POST";

/// The result of a request.
pub(super) enum Answer {
    /// The answer is known now.
    Now(Response<String>),
    /// The answer is known when the process has done what was asked for.
    Later(oneshot::Receiver<reload::Outcome>),
}

/// The kind of connection that a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReachedBy {
    /// TCP, to which a browser may have been led.
    Tcp,
    /// The Unix socket, which no browser can use.
    Unix,
}

/// The answer to one request. Bodies of requests are not read.
pub(super) fn to(
    sources: &Sources,
    way: ReachedBy,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Answer {
    if way == ReachedBy::Tcp && needs_an_address(uri.path()) && comes_by_name(uri, headers) {
        return Answer::Now(text(StatusCode::FORBIDDEN, BY_NAME.into()));
    }
    if uri.path() == "/reload" && method == Method::POST && !comes_from_elsewhere(headers) {
        let (sender, receiver) = oneshot::channel();
        let answer = move |outcome| {
            // The client may have gone.
            let _told = sender.send(outcome);
        };
        if sources.orders.reload.give(Box::new(answer)) {
            return Answer::Later(receiver);
        }
        let why = "this process has no config file to read again, or is told too often\n";
        return Answer::Now(text(StatusCode::SERVICE_UNAVAILABLE, why.into()));
    }
    Answer::Now(at_once(sources, method, uri, headers))
}

/// The answer after a reload.
pub(super) fn of_reload(
    outcome: Result<reload::Outcome, oneshot::error::RecvError>,
) -> Response<String> {
    match outcome {
        Ok(Ok(lines)) if lines.is_empty() => {
            text(StatusCode::OK, "reloaded; no key has changed\n".into())
        }
        Ok(Ok(lines)) => text(StatusCode::OK, format!("reloaded\n{}\n", lines.join("\n"))),
        Ok(Err(Refused::Unusable(why))) => text(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("nothing has changed: {why}\n"),
        ),
        Ok(Err(Refused::Incomplete(problems))) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!(
                "the configuration is taken up, but not everywhere; a restart is the way out:\n{}\n",
                problems.join("\n")
            ),
        ),
        Ok(Err(Refused::Draining)) | Err(_) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "nothing has changed: the process is about to end\n".into(),
        ),
    }
}

fn at_once(sources: &Sources, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response<String> {
    let Sources { status, orders } = sources;
    let allowed = match uri.path() {
        "/" | "/status" | "/healthz" | "/readyz" | "/metrics" => READ,
        "/drain" | "/reload" => WRITE,
        _ => {
            let known = "there are /, /status, /healthz, /readyz, /metrics, and /drain and /reload \
                         for POST\n";
            return text(StatusCode::NOT_FOUND, known.into());
        }
    };
    if !allowed.split(", ").any(|known| known == method.as_str()) {
        let only = format!("this path takes {allowed} only\n");
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, only);
        let allowed = HeaderValue::from_static(allowed);
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    match uri.path() {
        "/healthz" => health(status),
        "/readyz" => readiness(status, uri.query().unwrap_or_default()),
        "/metrics" => metrics(status, headers),
        "/status" => answer(
            StatusCode::OK,
            JSON,
            format!("{}\n", status_json::of(status)),
        ),
        "/drain" | "/reload" if comes_from_elsewhere(headers) => text(
            StatusCode::FORBIDDEN,
            "a page of another site may not ask for this\n".into(),
        ),
        "/drain" => {
            (orders.drain)();
            text(StatusCode::ACCEPTED, "draining\n".into())
        }
        _ => page(),
    }
}

fn page() -> Response<String> {
    let mut page = answer(StatusCode::OK, HTML, PAGE.into());
    let policy = HeaderValue::from_static(PAGE_POLICY);
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    page
}

/// Whether a browser sends this for a page of another site: looking at a page must not stop a
/// tunnel on the same machine.
fn comes_from_elsewhere(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return false; // No browser.
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|it| it.split_once("://"));
    origin.is_none_or(|(_, origin)| Some(origin) != host)
}

/// Whether a web page must not get at this path, because it changes something, or tells who the
/// clients are. What scrapers and balancers ask for, mostly by a name, tells no more than numbers.
fn needs_an_address(path: &str) -> bool {
    matches!(path, "/" | "/status" | "/drain" | "/reload")
}

/// Whether the request names this endpoint by a name that a stranger may let lead here. A page that
/// was loaded by a name of its site counts as of the same origin when that name leads to this
/// endpoint afterwards (DNS rebinding): only that name marks its requests.
fn comes_by_name(uri: &Uri, headers: &HeaderMap) -> bool {
    let is_name = |host: &str| {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let is_literal = literal.parse::<std::net::IpAddr>().is_ok();
        !is_literal && !host.eq_ignore_ascii_case("localhost")
    };
    // Every browser sends a Host header.
    let of_header = !headers.get_all(HOST).iter().all(|host| {
        let authority = Authority::try_from(host.as_bytes());
        authority.is_ok_and(|it| !is_name(it.host()))
    });
    of_header || uri.host().is_some_and(is_name)
}

/// The answer to `/healthz`: 200 while every core makes progress. Panics that were contained are
/// shown, and are no reason to end a process that serves all others.
fn health(status: &Status) -> Response<String> {
    let panics = match status.panics() {
        0 => String::new(),
        panics => {
            format!("{panics} panics: bugs that have cost a flow, a lane or a task (see the log)\n")
        }
    };
    let stuck = status.stuck_cores();
    if stuck.is_empty() {
        return text(StatusCode::OK, format!("ok\n{panics}"));
    }
    let lines = stuck.iter().map(|core| format!("core {core} is stuck\n"));
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        lines.chain([panics]).collect(),
    )
}

/// The answer to `/readyz`: 200 while visitors (for a server) or flows (for a client) can be
/// served.
fn readiness(status: &Status, query: &str) -> Response<String> {
    let wanted = match wanted(query) {
        Ok(wanted) => wanted,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let reasons = match &wanted.service {
        None => status.not_ready(wanted.clients),
        Some(name) => match status.service_not_ready(name, wanted.clients) {
            Ok(reasons) => reasons,
            Err(UnknownService) => {
                let unknown = if name.len() <= SERVICE_NAME_BYTES_MAX {
                    format!("there is no service {name:?} here\n")
                } else {
                    format!(
                        "there is no such service here: names have at most \
                         {SERVICE_NAME_BYTES_MAX} bytes\n"
                    )
                };
                return text(StatusCode::NOT_FOUND, unknown);
            }
        },
    };
    if reasons.is_empty() {
        return text(StatusCode::OK, "ready\n".into());
    }
    let lines = reasons.iter().map(|reason| format!("{reason}\n"));
    text(StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

fn metrics(status: &Status, headers: &HeaderMap) -> Response<String> {
    let accepted = headers.get_all(ACCEPT).iter();
    let format = Format::wanted_by(accepted.filter_map(|value| value.to_str().ok()));
    match exposition::encode(status, format) {
        Ok(body) => answer(StatusCode::OK, format.content_type(), body),
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be written\n".into(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<String> {
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
