//! Where a node is on the map.
//!
//! Its owner says so, or else a service that looks the address up which we ask it from. The chain takes
//! it as texts, and clients ask the node for more than the chain has.

use hostd_chain::types::Location;
use serde::{Deserialize, Serialize};

/// Bytes of a name of a place.
const NAME_SIZE_MAX: usize = 128;

/// A place, as the grid's services and clients write it (`reference: zero-os 3, zos.location.get`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Place {
    /// Degrees east.
    pub longitude: f64,
    /// Degrees north.
    pub latitude: f64,
    /// The continent.
    #[serde(default)]
    pub continent: String,
    /// The country.
    pub country_name: String,
    /// The country's two letters.
    #[serde(default)]
    pub country_code: String,
    /// The city.
    #[serde(default)]
    pub city_name: String,
}

/// Why something is no place.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlaceError {
    /// Not on this planet.
    #[error("{what} {degrees} is not between -{max} and {max}")]
    Degrees {
        /// `latitude` or `longitude`.
        what: &'static str,
        /// What it is.
        degrees: f64,
        /// What it may be.
        max: f64,
    },
    /// Nobody could find it.
    #[error("a place has a country")]
    NoCountry,
    /// Longer than any name.
    #[error("the name of a place has {0} bytes, and at most {NAME_SIZE_MAX} are read")]
    Name(usize),
}

impl Place {
    /// Whether it can be one.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check(&self) -> Result<(), PlaceError> {
        for (what, degrees, max) in
            [("latitude", self.latitude, 90.0), ("longitude", self.longitude, 180.0)]
        {
            if !(-max..=max).contains(&degrees) {
                return Err(PlaceError::Degrees { what, degrees, max });
            }
        }
        let names = [&self.continent, &self.country_name, &self.country_code, &self.city_name];
        if let Some(long) = names.into_iter().find(|name| name.len() > NAME_SIZE_MAX) {
            return Err(PlaceError::Name(long.len()));
        }
        if self.country_name.is_empty() { Err(PlaceError::NoCountry) } else { Ok(()) }
    }

    /// As the chain has it.
    pub(crate) fn on_chain(&self) -> Location {
        let city = if self.city_name.is_empty() { "Unknown" } else { &self.city_name };
        Location {
            city: city.into(),
            country: self.country_name.as_str().into(),
            latitude: self.latitude.to_string().into(),
            longitude: self.longitude.to_string().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_on_the_map() {
        let ghent = Place {
            latitude: 51.05,
            longitude: 3.5,
            country_name: "Belgium".into(),
            ..Place::default()
        };
        assert_eq!(ghent.check(), Ok(()));
        let shown = ghent.on_chain();
        assert_eq!((shown.latitude.as_str(), shown.city.as_str()), ("51.05", "Unknown"));
        assert!(Place { latitude: 91.0, ..ghent.clone() }.check().is_err());
        assert!(Place { longitude: f64::NAN, ..ghent.clone() }.check().is_err());
        assert_eq!(
            Place { country_name: String::new(), ..ghent.clone() }.check(),
            Err(PlaceError::NoCountry)
        );
        let long = Place { city_name: "x".repeat(129), ..ghent };
        assert_eq!(long.check(), Err(PlaceError::Name(129)));
    }
}
