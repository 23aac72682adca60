//! Limits of a disk or a network card: so many bytes and so many operations a second.
//!
//! As options of a device: `rate=100M/s+1000ops/s` limits both, `rate=100M/s` or `rate=1000ops/s`
//! one of them. `burst=200M+5000ops` says how much may be done at once after a pause; without it,
//! that is what one second allows.

use serde::{Deserialize, Serialize};

use crate::{BadValue, Size};

/// A limit of a device. For a network card it holds for each direction on its own, and an
/// operation is a packet (or, with segmentation offload, what travels as one).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSpec {
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<Size>,
    /// Operations a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_s: Option<u64>,
    /// Bytes that may be moved at once after a pause; one second's worth if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bytes: Option<Size>,
    /// Operations that may be done at once after a pause; one second's worth if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ops: Option<u64>,
}

impl RateSpec {
    /// Reads the values of `rate=` and `burst=`.
    pub(crate) fn parse(rate: &str, burst: Option<&str>) -> Result<Self, (&'static str, BadValue)> {
        let shape = "a rate is such as 100M/s, 1000ops/s or 100M/s+1000ops/s";
        let (bytes_per_s, ops_per_s) = pair(rate, "/s", shape).map_err(|bad| ("rate", bad))?;
        let shape = "a burst is such as 200M, 5000ops or 200M+5000ops";
        let (burst_bytes, burst_ops) = match burst {
            Some(burst) => pair(burst, "", shape).map_err(|bad| ("burst", bad))?,
            None => (None, None),
        };
        Ok(Self { bytes_per_s, ops_per_s, burst_bytes, burst_ops })
    }

    /// The value of `rate=`.
    pub(crate) fn rate_text(&self) -> String {
        join(self.bytes_per_s, self.ops_per_s, "/s")
    }

    /// The value of `burst=`, if there is one.
    pub(crate) fn burst_text(&self) -> Option<String> {
        let text = join(self.burst_bytes, self.burst_ops, "");
        (!text.is_empty()).then_some(text)
    }
}

/// Reads `SIZE<suffix>` and `NUMBERops<suffix>`, joined by `+`, each at most once.
fn pair(text: &str, suffix: &str, shape: &str) -> Result<(Option<Size>, Option<u64>), BadValue> {
    let rule = || BadValue(shape.to_owned());
    let (mut bytes, mut operations) = (None, None);
    for part in text.split('+') {
        let part = part.strip_suffix(suffix).ok_or_else(rule)?;
        let earlier = match part.strip_suffix("ops") {
            Some(count) => {
                let is_number = !count.is_empty() && count.bytes().all(|c| c.is_ascii_digit());
                let count = count.parse().ok().filter(|_| is_number).ok_or_else(rule)?;
                operations.replace(count).is_some()
            }
            None => bytes.replace(part.parse::<Size>().map_err(|_| rule())?).is_some(),
        };
        if earlier {
            return Err(rule());
        }
    }
    Ok((bytes, operations))
}

fn join(bytes: Option<Size>, operations: Option<u64>, suffix: &str) -> String {
    let bytes = bytes.map(|bytes| format!("{bytes}{suffix}"));
    let operations = operations.map(|count| format!("{count}ops{suffix}"));
    bytes.into_iter().chain(operations).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_limit_or_both() {
        let both = RateSpec::parse("100M/s+1000ops/s", Some("200M+5000ops")).unwrap();
        let expected = RateSpec {
            bytes_per_s: Some(Size::from_mib(100)),
            ops_per_s: Some(1000),
            burst_bytes: Some(Size::from_mib(200)),
            burst_ops: Some(5000),
        };
        assert_eq!(both, expected);
        assert_eq!(both.rate_text(), "100M/s+1000ops/s");
        assert_eq!(both.burst_text().as_deref(), Some("200M+5000ops"));
        assert_eq!(RateSpec::parse("7ops/s", None).unwrap().ops_per_s, Some(7));
        assert_eq!(RateSpec::parse("1000ops/s+1G/s", None).unwrap().rate_text(), "1G/s+1000ops/s");
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "100M", "/s", "ops/s", "+1ops/s", "1M/s+", "1M/s+2M/s", "1ops/s+1ops/s"] {
            assert_eq!(RateSpec::parse(bad, None).unwrap_err().0, "rate", "{bad}");
        }
        for bad in ["", "1M/s", "-1ops", "1.5M", "99999999999999999999ops"] {
            assert_eq!(RateSpec::parse("1M/s", Some(bad)).unwrap_err().0, "burst", "{bad}");
        }
    }
}
