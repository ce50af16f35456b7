//! The query of a request to the admin endpoint. It uses nothing of this crate, so that the fuzz
//! targets can include it.

/// Number of clients that a service needs for visitors to be sent to it, unless the request says
/// otherwise.
const CLIENTS_DEFAULT: usize = 1;

/// The question to `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// `clients=N`: how many clients a service needs to count as ready.
    pub(crate) clients: usize,
    /// `service=NAME`: this service alone.
    pub(crate) service: Option<String>,
}

/// Reads the query of `/readyz`.
pub(crate) fn wanted(query: &str) -> Result<Wanted, &'static str> {
    let mut wanted = Wanted {
        clients: CLIENTS_DEFAULT,
        service: None,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("clients", number)) => {
                wanted.clients = number
                    .parse()
                    .map_err(|_| "clients must be a number: how many clients a service needs")?;
            }
            Some(("service", name)) => {
                wanted.service = Some(decoded(name).ok_or("service must be the name of one")?);
            }
            _ => return Err("the parameters are service=NAME and clients=N"),
        }
    }
    Ok(wanted)
}

/// Decodes text in which `%2E` stands for a dot.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(16 * high + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_clients_that_a_service_needs_can_be_asked_for() {
        for (query, expected) in [("", 1), ("clients=0", 0), ("clients=3", 3), ("&", 1)] {
            assert_eq!(wanted(query).map(|it| it.clients), Ok(expected), "{query}");
        }
    }

    #[test]
    fn one_service_can_be_asked_for_by_its_name() {
        for (query, expected) in [
            ("service=web", "web"),
            ("clients=1&service=a.b_c-d", "a.b_c-d"),
            ("service=%77eb", "web"),
            ("service=", ""),
        ] {
            let service = wanted(query).map(|it| it.service);
            assert_eq!(service, Ok(Some(expected.into())), "{query}");
        }
        // That there can be none of this name is for the caller to say.
        let long = "x".repeat(300);
        let service = wanted(&format!("service={long}")).map(|it| it.service);
        assert_eq!(service, Ok(Some(long)));
        for query in ["service", "service=%", "service=%4", "service=%ff", "x=1"] {
            assert!(wanted(query).is_err(), "{query}");
        }
    }
}
