//! What the admin endpoint answers to a request.

use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode, Uri};

use super::exposition::{self, Format};
use super::query::clients_wanted;
use crate::process::status::Status;

const TEXT: &str = "text/plain; charset=utf-8";

/// The answer to one request. Bodies of requests are not read.
pub(super) fn to(
    status: &Status,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Response<String> {
    if method != Method::GET && method != Method::HEAD {
        let mut refusal = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are allowed\n".into(),
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    match uri.path() {
        "/healthz" => health(status),
        "/readyz" => readiness(status, uri.query().unwrap_or_default()),
        "/metrics" => metrics(status, headers),
        "/" => text(StatusCode::OK, "/healthz\n/readyz\n/metrics\n".into()),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz and /metrics\n".into(),
        ),
    }
}

/// 200 while every core makes progress. Panics that were contained are shown, and are no reason to end a process that
/// serves all others.
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

/// 200 while visitors (for a server) or flows (for a client) are welcome and can be served.
fn readiness(status: &Status, query: &str) -> Response<String> {
    let clients = match clients_wanted(query) {
        Ok(clients) => clients,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let reasons = status.not_ready(clients);
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
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    use crate::process::status::fixture::client_of_two_cores;

    fn ask(status: &Status, method: &Method, uri: &str) -> (u16, String) {
        let uri: Uri = uri.parse().expect("valid");
        let response = to(status, method, &uri, &HeaderMap::new());
        (response.status().as_u16(), response.into_body())
    }

    fn get(status: &Status, uri: &str) -> (u16, String) {
        ask(status, &Method::GET, uri)
    }

    #[test]
    fn a_stuck_core_is_named() {
        let status = client_of_two_cores();
        assert_eq!(get(&status, "/healthz"), (200, "ok\n".into()));
        status.cluster.stuck[1].store(true, Ordering::Relaxed);
        assert_eq!(get(&status, "/healthz"), (503, "core 1 is stuck\n".into()));
    }

    #[test]
    fn panics_are_shown_and_the_process_counts_as_healthy() {
        let status = client_of_two_cores();
        status.cluster.counters[1].panics.add(2);
        let (code, text) = get(&status, "/healthz");
        assert_eq!(code, 200);
        assert!(text.starts_with("ok\n2 panics"), "{text}");
        assert!(
            status.summary().ends_with("; 2 panics"),
            "{}",
            status.summary()
        );
    }

    #[test]
    fn a_client_is_ready_while_a_lane_is_registered_and_it_does_not_drain() {
        let status = client_of_two_cores();
        assert_eq!(get(&status, "/readyz").0, 503);
        let lane = status.readiness.lane_registered();
        assert_eq!(get(&status, "/readyz"), (200, "ready\n".into()));
        status.readiness.set_draining();
        assert_eq!(get(&status, "/readyz"), (503, "draining\n".into()));
        drop(lane);
        let both = "draining\nno lane is registered with any server\n";
        assert_eq!(get(&status, "/readyz"), (503, both.into()));
    }

    #[test]
    fn what_is_not_offered_is_refused_with_what_is() {
        let status = client_of_two_cores();
        assert_eq!(ask(&status, &Method::POST, "/healthz").0, 405);
        assert_eq!(ask(&status, &Method::DELETE, "/nowhere").0, 405);
        assert_eq!(get(&status, "/nowhere").0, 404);
        assert_eq!(get(&status, "/healthz/").0, 404);
        for query in ["clients", "clients=", "clients=-1", "clients=x", "x=1"] {
            assert_eq!(get(&status, &format!("/readyz?{query}")).0, 400, "{query}");
        }
    }
}
