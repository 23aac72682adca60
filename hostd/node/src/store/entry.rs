//! What is written down about a deployment, one entry after another.

use hostd_grid::Name;
use hostd_grid::json::RawJson;
use hostd_grid::timestamp::Timestamp;
use hostd_grid::workload::{State, WorkloadResult};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Something that became true of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A workload reached a state, in that version of the deployment.
    Workload { name: Name, version: u32, result: WorkloadResult },
    /// That version of the deployment was taken in.
    Accepted { version: u32 },
    /// The contract on the chain has the hash of that version.
    Confirmed { version: u32 },
    /// The chain has no contract for that version.
    Rejected { version: u32, reason: String },
    /// The contract is over: everything goes.
    Cancelled { reason: String },
    /// The contract is not paid, or paid again.
    Grace { is_on: bool },
}

/// An entry as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Wire {
    Workload {
        name: String,
        version: u32,
        state: String,
        created: i64,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        message: String,
        data: Box<RawValue>,
    },
    Accepted {
        version: u32,
    },
    Confirmed {
        version: u32,
    },
    Rejected {
        version: u32,
        reason: String,
    },
    Cancelled {
        reason: String,
    },
    Grace {
        is_on: bool,
    },
}

const STATES: [State; 7] = [
    State::None,
    State::Init,
    State::Unchanged,
    State::Error,
    State::Ok,
    State::Deleted,
    State::Paused,
];

impl Entry {
    /// The JSON of entries that become true together.
    pub(crate) fn to_json(entries: &[Self]) -> serde_json::Result<Vec<u8>> {
        let wires = entries.iter().map(Self::to_wire).collect::<Result<Vec<_>, _>>()?;
        serde_json::to_vec(&wires)
    }

    /// Reads what [`Entry::to_json`] wrote; nothing if it did not.
    pub(crate) fn from_json(json: &[u8]) -> Option<Vec<Self>> {
        let wires: Vec<Wire> = serde_json::from_slice(json).ok()?;
        wires.into_iter().map(Self::from_wire).collect()
    }

    fn to_wire(&self) -> serde_json::Result<Wire> {
        Ok(match self.clone() {
            Self::Workload { name, version, result } => Wire::Workload {
                name: name.as_str().to_owned(),
                version,
                state: result.state.name().to_owned(),
                created: result.created.0,
                message: result.message,
                data: RawValue::from_string(result.data.as_str().to_owned())?,
            },
            Self::Accepted { version } => Wire::Accepted { version },
            Self::Confirmed { version } => Wire::Confirmed { version },
            Self::Rejected { version, reason } => Wire::Rejected { version, reason },
            Self::Cancelled { reason } => Wire::Cancelled { reason },
            Self::Grace { is_on } => Wire::Grace { is_on },
        })
    }

    fn from_wire(wire: Wire) -> Option<Self> {
        Some(match wire {
            Wire::Workload { name, version, state, created, message, data } => {
                let state = STATES.into_iter().find(|known| known.name() == state)?;
                let data = RawJson::of(&data).ok()?;
                let result = WorkloadResult { created: Timestamp(created), state, message, data };
                Self::Workload { name: Name::new(name), version, result }
            }
            Wire::Accepted { version } => Self::Accepted { version },
            Wire::Confirmed { version } => Self::Confirmed { version },
            Wire::Rejected { version, reason } => Self::Rejected { version, reason },
            Wire::Cancelled { reason } => Self::Cancelled { reason },
            Wire::Grace { is_on } => Self::Grace { is_on },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_are_written() {
        let data = RawJson::of(&serde_json::json!({"size": u64::MAX})).unwrap();
        let workload = |state| {
            let (created, message) = (Timestamp(-5), "a \"b\"".to_owned());
            let result = WorkloadResult { created, state, message, data: data.clone() };
            Entry::Workload { name: "vm".into(), version: 3, result }
        };
        let mut entries = Vec::from(STATES.map(workload));
        entries.extend([
            Entry::Accepted { version: 1 },
            Entry::Confirmed { version: u32::MAX },
            Entry::Rejected { version: 0, reason: "no".into() },
            Entry::Cancelled { reason: "gone".into() },
            Entry::Grace { is_on: true },
        ]);
        assert_eq!(Entry::from_json(&Entry::to_json(&entries).unwrap()), Some(entries));
        assert_eq!(Entry::from_json(b"[]"), Some(Vec::new()));
        for text in ["{}", "[{}]", r#"[{"confirmed":{}}]"#] {
            assert_eq!(Entry::from_json(text.as_bytes()), None, "{text}");
        }
    }
}
