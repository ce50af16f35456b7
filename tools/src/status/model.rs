//! The answer of a running program to `/status`. Fields that an older or newer version lacks or
//! adds are no error.

use serde::Deserialize;

use crate::admin::Endpoint;
use crate::failure::Failure;

/// The whole answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) role: Vec<String>,
    pub(crate) instance: String,
    pub(crate) uptime_s: u64,
    pub(crate) state: String,
    pub(crate) server: Option<Server>,
    pub(crate) client: Option<Client>,
    pub(crate) certificates: Vec<Certificate>,
}

/// The server role.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Server {
    pub(crate) services: Vec<Service>,
    pub(crate) clients: Vec<ConnectedClient>,
}

/// A service of the server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) traffic_addr: String,
    pub(crate) protocol: String,
    pub(crate) up: bool,
    pub(crate) clients: u64,
    pub(crate) visitors: u64,
    pub(crate) udp_flows: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) refused: u64,
}

/// A client that is connected to the server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConnectedClient {
    pub(crate) name: String,
    pub(crate) instance: String,
    pub(crate) address: Option<String>,
    pub(crate) transport: String,
    pub(crate) lanes: u64,
    pub(crate) rtt_us: u64,
    pub(crate) lost_packets: u64,
    pub(crate) flows: u64,
    pub(crate) services: Vec<Served>,
    pub(crate) since_s: u64,
}

/// A service that a client serves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) up: bool,
}

/// The client role.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Client {
    pub(crate) servers: Vec<KnownServer>,
    pub(crate) services: Vec<LocalService>,
}

/// A server that the client knows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KnownServer {
    pub(crate) address: String,
    pub(crate) transport: String,
    pub(crate) lanes: u64,
    pub(crate) rtt_us: u64,
    pub(crate) state: String,
    pub(crate) outdated_why: Option<String>,
}

impl KnownServer {
    /// The state for people, who have to know that a changed configuration is not in use.
    pub(crate) fn shown_state(&self) -> String {
        match &self.outdated_why {
            None => self.state.clone(),
            Some(_) => format!("{}, earlier config", self.state),
        }
    }
}

/// A service behind the client.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LocalService {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) up: bool,
    pub(crate) flows: u64,
}

/// A certificate in use.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificate {
    pub(crate) file: String,
    pub(crate) not_after: String,
    pub(crate) days_left: i64,
}

/// Asks for the text of the answer.
///
/// # Errors
/// If there is no answer, or it is an error.
pub(crate) fn text(endpoint: &Endpoint) -> Result<String, Failure> {
    let answer = endpoint.get("/status")?;
    match answer.status {
        200 => Ok(answer.body),
        404 => Err(Failure::Internal(format!(
            "{endpoint} knows no /status: its program is older than this one"
        ))),
        other => Err(Failure::Internal(format!(
            "{endpoint}/status answers {other}: {}",
            answer.body.trim()
        ))),
    }
}

/// Asks for the answer.
///
/// # Errors
/// Those of [`text`], or if the answer is not a JSON object of ours.
pub(crate) fn ask(endpoint: &Endpoint) -> Result<Status, Failure> {
    serde_json::from_str(&text(endpoint)?).map_err(|error| {
        Failure::Internal(format!(
            "{endpoint}/status is not what it should be: {error}"
        ))
    })
}
