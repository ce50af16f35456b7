//! What the admin endpoint answers, of a client that has no lane yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::process::admin::Orders;
use crate::process::status::fixture::client_of_two_cores;

/// The sources of a client, and how often it was told to drain.
fn sources() -> (Sources, Arc<AtomicUsize>) {
    let drains = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&drains);
    let drain = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let sources = Sources {
        status: Arc::new(client_of_two_cores()),
        orders: Orders {
            drain: Box::new(drain),
            reload: reload::Orders::new().0,
        },
    };
    (sources, drains)
}

fn ask(sources: &Sources, method: &Method, uri: &str) -> (u16, String) {
    let uri: Uri = uri.parse().expect("valid");
    let response = at_once(sources, method, &uri, &HeaderMap::new());
    (response.status().as_u16(), response.into_body())
}

fn get(sources: &Sources, uri: &str) -> (u16, String) {
    ask(sources, &Method::GET, uri)
}

#[test]
fn a_stuck_core_is_named() {
    let (sources, _) = sources();
    assert_eq!(get(&sources, "/healthz"), (200, "ok\n".into()));
    sources.status.cluster.stuck[1].store(true, Ordering::Relaxed);
    assert_eq!(get(&sources, "/healthz"), (503, "core 1 is stuck\n".into()));
}

#[test]
fn panics_are_shown_and_the_process_counts_as_healthy() {
    let (sources, _) = sources();
    sources.status.cluster.counters[1].panics.add(2);
    let (code, text) = get(&sources, "/healthz");
    assert_eq!(code, 200);
    assert!(text.starts_with("ok\n2 panics"), "{text}");
    let summary = sources.status.summary();
    assert!(summary.ends_with("; 2 panics"), "{summary}");
}

#[test]
fn a_client_is_ready_while_a_lane_is_registered_and_it_does_not_drain() {
    let (sources, _) = sources();
    let status = &sources.status;
    assert_eq!(get(&sources, "/readyz").0, 503);
    let lane = status.readiness.lane_registered();
    for path in ["/readyz", "/readyz?service="] {
        assert_eq!(get(&sources, path), (200, "ready\n".into()), "{path}");
    }
    status.readiness.set_draining();
    assert_eq!(get(&sources, "/readyz"), (503, "draining\n".into()));
    drop(lane);
    let both = "draining\nno lane is registered with any server\n";
    assert_eq!(get(&sources, "/readyz"), (503, both.into()));
}

#[test]
fn what_is_not_offered_is_refused_with_what_is() {
    let (sources, drains) = sources();
    assert_eq!(ask(&sources, &Method::POST, "/healthz").0, 405);
    assert_eq!(ask(&sources, &Method::POST, "/status").0, 405);
    assert_eq!(get(&sources, "/drain").0, 405);
    assert_eq!(ask(&sources, &Method::DELETE, "/nowhere").0, 404);
    assert_eq!(get(&sources, "/nowhere").0, 404);
    assert_eq!(get(&sources, "/healthz/").0, 404);
    for query in ["clients", "clients=", "clients=-1", "clients=x", "x=1"] {
        assert_eq!(get(&sources, &format!("/readyz?{query}")).0, 400, "{query}");
    }
    let (code, text) = get(&sources, "/readyz?service=web");
    assert_eq!(code, 404);
    assert!(text.contains("\"web\""), "{text}");
    assert_eq!(drains.load(Ordering::Relaxed), 0);
}

#[test]
fn a_page_of_another_site_cannot_have_the_process_drained() {
    let (sources, drains) = sources();
    let uri: Uri = "/drain".parse().expect("valid");
    let post = |origin: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("127.0.0.1:9600"));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        at_once(&sources, &Method::POST, &uri, &headers)
            .status()
            .as_u16()
    };
    assert_eq!(post(Some("https://evil.example")), 403);
    assert_eq!(post(Some("null")), 403);
    assert_eq!(drains.load(Ordering::Relaxed), 0);
    assert_eq!(post(Some("http://127.0.0.1:9600")), 202);
    assert_eq!(post(None), 202);
    assert_eq!(drains.load(Ordering::Relaxed), 2);
}

#[test]
fn a_name_that_leads_here_gets_at_numbers_alone_and_an_address_at_all() {
    let (sources, drains) = sources();
    let code = |way: ReachedBy, method: &Method, path: &str, hosts: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_static(host));
        }
        let uri: Uri = path.parse().expect("valid");
        match to(&sources, way, method, &uri, &headers) {
            Answer::Now(response) => response.status().as_u16(),
            Answer::Later(_) => 0,
        }
    };
    let (get, post) = (Method::GET, Method::POST);
    let names = [
        "evil.example:9600",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil",
    ];
    for name in names.into_iter().chain(["", "a@b@c", "[::1"]) {
        for (method, path) in [
            (&get, "/"),
            (&get, "/status"),
            (&post, "/drain"),
            (&post, "/reload"),
        ] {
            assert_eq!(
                code(ReachedBy::Tcp, method, path, &[name]),
                403,
                "{name:?} {path}"
            );
        }
        assert_eq!(
            code(ReachedBy::Tcp, &get, "/status", &["127.0.0.1", name]),
            403,
            "{name:?}"
        );
        assert_eq!(
            code(ReachedBy::Unix, &get, "/status", &[name]),
            200,
            "{name:?}"
        );
        assert_eq!(
            code(ReachedBy::Tcp, &get, "/metrics", &[name]),
            200,
            "{name:?}"
        );
        assert_eq!(
            code(ReachedBy::Tcp, &get, "/healthz", &[name]),
            200,
            "{name:?}"
        );
        assert_eq!(
            code(ReachedBy::Tcp, &get, "/readyz", &[name]),
            503,
            "not ready, {name:?}"
        );
    }
    let by_proxy = "http://evil.example/status";
    assert_eq!(
        code(ReachedBy::Tcp, &get, by_proxy, &["127.0.0.1:9600"]),
        403
    );
    assert_eq!(drains.load(Ordering::Relaxed), 0);
    for host in [
        "127.0.0.1:9600",
        "[::1]:9600",
        "[2001:db8::1]",
        "localhost:9600",
        "LOCALHOST",
    ] {
        assert_eq!(
            code(ReachedBy::Tcp, &get, "/status", &[host]),
            200,
            "{host}"
        );
        assert_eq!(code(ReachedBy::Tcp, &get, "/", &[host]), 200, "{host}");
    }
    assert_eq!(
        code(ReachedBy::Tcp, &get, "/status", &[]),
        200,
        "no browser"
    );
    assert_eq!(code(ReachedBy::Tcp, &post, "/drain", &["[::1]:9600"]), 202);
}

#[test]
fn the_status_of_a_client_has_every_key_and_its_certificates() {
    let (sources, _) = sources();
    let (code, text) = get(&sources, "/status");
    assert_eq!(code, 200);
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status["role"], serde_json::json!(["client"]));
    assert_eq!(status["state"], "starting");
    assert_eq!(status["server"], Value::Null);
    assert_eq!(status["instance"].as_str().map(str::len), Some(32));
    assert!(status["uptime_s"].is_u64(), "{status}");
    let server = &status["client"]["servers"][0];
    assert_eq!(server["address"], "127.0.0.1:8443");
    assert_eq!(
        (&server["state"], &server["lanes"]),
        (&"down".into(), &0.into())
    );
    let service = &status["client"]["services"][0];
    assert_eq!(service["address"], "127.0.0.1:8080");
    assert_eq!(
        (&service["up"], &service["flows"]),
        (&true.into(), &0.into())
    );
    let certificates = status["certificates"].as_array().expect("a list");
    assert_eq!(certificates.len(), 2, "{status}");
    let days = certificates[0]["days_left"].as_i64();
    assert!(matches!(days, Some(29 | 30)), "{status}");
}
