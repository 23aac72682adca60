//! Where the node is, if its owner did not say: services of the network know from where they are asked.

use hostd_node::Place;
use hostd_node::state::StateStore;
use tracing::{info, warn};

use crate::network::fetch;

/// Services that are asked.
const SERVICE_COUNT_MAX: usize = 8;
/// Bytes of an answer.
const ANSWER_SIZE_MAX: u64 = 16 << 10;
/// What it is remembered as.
const NAME: &str = "place";
/// The country of a node of which nobody knows where it is.
const UNKNOWN: &str = "Unknown";

/// Asks one service after the other; if none answers, it is where it was. Waits for the network.
pub(crate) fn find(urls: &[String], state: &dyn StateStore) -> Place {
    for url in urls.iter().take(SERVICE_COUNT_MAX) {
        match ask(url) {
            Ok(place) => {
                info!(country = place.country_name, city = place.city_name, "this node is there");
                // A place is numbers and texts, which are always JSON.
                state.put(NAME, &serde_json::to_vec(&place).unwrap_or_default());
                return place;
            }
            Err(reason) => warn!(url, reason, "no place"),
        }
    }
    let remembered = state.get(NAME).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    remembered.unwrap_or_else(|| Place { country_name: UNKNOWN.to_owned(), ..Place::default() })
}

fn ask(url: &str) -> Result<Place, String> {
    let answer = fetch(url, ANSWER_SIZE_MAX)?;
    let place: Place = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    place.check().map_err(|error| error.to_string())?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use hostd_node::state::MemoryState;

    use super::*;

    fn service(body: &'static str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 2048]).unwrap();
            let size = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {size}");
            stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        });
        url
    }

    #[test]
    fn a_node_is_where_it_was_until_somebody_knows_better() {
        let state = MemoryState::default();
        assert_eq!(find(&[], &state).country_name, UNKNOWN);
        let liar = service(r#"{"longitude": 3, "latitude": 99, "country_name": "Nowhere"}"#);
        let good =
            service(r#"{"longitude": 3.5, "latitude": 51, "country_name": "Belgium", "x": 1}"#);
        assert_eq!(find(&[liar, good], &state).country_name, "Belgium");
        let silent = vec!["http://127.0.0.1:1/".to_owned()];
        assert_eq!(find(&silent, &state).longitude, 3.5);
    }
}
