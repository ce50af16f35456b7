//! What the query of a request to the admin endpoint may say. It uses nothing of this crate, so
//! that the fuzz targets can have it.

/// Clients that a server's listener needs for visitors to be sent to it, unless the request says
/// otherwise.
const CLIENTS_DEFAULT: usize = 1;

/// `clients=N`: how many clients each listener needs to count as ready.
pub(crate) fn clients_wanted(query: &str) -> Result<usize, &'static str> {
    let mut wanted = CLIENTS_DEFAULT;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        wanted = pair
            .strip_prefix("clients=")
            .and_then(|number| number.parse().ok())
            .ok_or("the only parameter is clients=N, the clients that each listener needs")?;
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_clients_that_a_listener_needs_can_be_asked_for() {
        for (query, expected) in [("", 1), ("clients=0", 0), ("clients=3", 3), ("&", 1)] {
            assert_eq!(clients_wanted(query), Ok(expected), "{query}");
        }
    }
}
