//! Where the node is, if its owner did not say: services of the network know from where they are asked.

use hostd_node::Place;
use hostd_node::state::StateStore;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::network::fetch;

/// Services that are asked.
const SERVICE_COUNT_MAX: usize = 8;
/// Bytes of an answer.
const ANSWER_SIZE_MAX: u64 = 16 << 10;
/// What it is remembered as.
const NAME: &str = "place";
/// How long it is believed before services are asked again, in seconds.
const FRESH_TIME: i64 = 24 * 3600;
/// The country of a node of which nobody knows where it is.
const UNKNOWN: &str = "Unknown";

/// A place, and when somebody said so, in seconds since 1970.
#[derive(Serialize, Deserialize)]
struct Remembered {
    place: Place,
    at: i64,
}

/// Asks one service after the other, unless one said it lately; if none answers, it is where it was. Waits
/// for the network.
pub(crate) fn find(urls: &[String], state: &dyn StateStore, now: i64) -> Place {
    let remembered = state.get(NAME).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let remembered: Option<Remembered> = remembered;
    let is_fresh = |known: &&Remembered| (0..FRESH_TIME).contains(&now.saturating_sub(known.at));
    if let Some(known) = remembered.as_ref().filter(is_fresh) {
        return known.place.clone();
    }
    for url in urls.iter().take(SERVICE_COUNT_MAX) {
        match ask(url) {
            Ok(place) => {
                info!(country = place.country_name, city = place.city_name, "this node is there");
                let known = Remembered { place: place.clone(), at: now };
                // A place is numbers and texts, which are always JSON.
                state.put(NAME, &serde_json::to_vec(&known).unwrap_or_default());
                return place;
            }
            Err(reason) => warn!(url, reason, "no place"),
        }
    }
    let known = remembered.map(|known| known.place);
    known.unwrap_or_else(|| Place { country_name: UNKNOWN.to_owned(), ..Place::default() })
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
        assert_eq!(find(&[], &state, 0).country_name, UNKNOWN);
        let liar = service(r#"{"longitude": 3, "latitude": 99, "country_name": "Nowhere"}"#);
        let good =
            service(r#"{"longitude": 3.5, "latitude": 51, "country_name": "Belgium", "x": 1}"#);
        assert_eq!(find(&[liar, good.clone()], &state, 100).country_name, "Belgium");
        // That service answers once, and is not asked again for a day.
        assert_eq!(find(&[good], &state, 100 + FRESH_TIME - 1).country_name, "Belgium");
        let moved = service(r#"{"longitude": 4, "latitude": 52, "country_name": "Netherlands"}"#);
        assert_eq!(find(&[moved], &state, 100 + FRESH_TIME).country_name, "Netherlands");
        let silent = vec!["http://127.0.0.1:1/".to_owned()];
        assert_eq!(find(&silent, &state, i64::MAX).longitude, 4.0);
    }
}
