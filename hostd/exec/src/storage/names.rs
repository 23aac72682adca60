//! Names of files that are names of workloads.
//!
//! A workload's name is a user's word. It is checked here, however often it was before: what becomes part
//! of a path must be no way out of its folder.

use hostd_grid::derived::WorkloadId;
use hostd_grid::{ContractId, Name, TwinId};

/// What begins the names of things that are not finished yet.
pub(super) const MAKING: &str = ".making-";
/// What begins the names of things that are as good as gone.
pub(super) const REMOVING: &str = ".removing-";

/// The file's name of a workload; none if its name breaks the rule of names.
pub fn file_name(id: &WorkloadId) -> Option<String> {
    id.name.check().is_ok().then(|| id.to_string())
}

/// The workload of a file's name; none if that is no workload's.
pub fn parse(name: &str) -> Option<WorkloadId> {
    let mut parts = name.splitn(3, '-');
    let id = WorkloadId {
        twin_id: TwinId(parts.next()?.parse().ok()?),
        contract_id: ContractId(parts.next()?.parse().ok()?),
        name: Name::new(parts.next()?),
    };
    // There is one way to write each: no plus signs, no zeros in front.
    (file_name(&id)?.as_str() == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> WorkloadId {
        WorkloadId { twin_id: TwinId(11), contract_id: ContractId(4242), name: Name::new(name) }
    }

    #[test]
    fn names_come_back() {
        for name in ["vm1", "_", "A_9", &"x".repeat(36)] {
            let text = file_name(&id(name)).unwrap();
            assert_eq!(text, format!("11-4242-{name}"));
            assert_eq!(parse(&text), Some(id(name)));
        }
    }

    #[test]
    fn what_is_no_name_of_a_workload_is_no_files_name() {
        for name in ["", "..", "a/b", "../../etc/passwd", "a-b", "a\0", "ygg", &"x".repeat(37)] {
            assert_eq!(file_name(&id(name)), None, "{name}");
        }
        for text in ["", "1-2", "1-2-", "+1-2-a", "01-2-a", "1-2-a/b", ".making-1-2-a", "1-2-a-b"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
