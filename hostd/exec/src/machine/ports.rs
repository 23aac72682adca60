//! Ports of servers of namespaces: each disk keeps its own.
//!
//! A user is told the port of a namespace's server once, when the namespace is made. The kernel calls disks
//! as they answer, and one may be missing: whoever numbered servers by what is there now would send users to
//! others' doors. So it is written down which pool has which port, and no port is given twice.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::kept::{read_json, write_whole};

/// Bytes of a file that are read.
const SIZE_MAX: u64 = 1 << 20;

/// Ports of pools, counted from the first one. Pools that have none yet get the next ones, in their order.
pub(super) fn of_pools<'a>(
    file: &Path,
    first: u16,
    pools: impl Iterator<Item = &'a str>,
) -> io::Result<BTreeMap<String, u16>> {
    let known: BTreeMap<String, u16> = read_json(file, SIZE_MAX)?.unwrap_or_default();
    let mut places = known.clone();
    for pool in pools {
        let next = places.values().max().map_or(Some(0), |last| last.checked_add(1));
        if !places.contains_key(pool) {
            let next = next.ok_or_else(|| io::Error::other("there are no more ports"))?;
            places.insert(pool.to_owned(), next);
        }
    }
    if places != known {
        write_whole(file, &serde_json::to_vec_pretty(&places)?)?;
    }
    let port = |place: u16| first.checked_add(place);
    let ports = places.into_iter().map(|(pool, place)| Some((pool, port(place)?)));
    ports.collect::<Option<_>>().ok_or_else(|| io::Error::other("there are no more ports"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_disk_keeps_its_port_whatever_others_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        let ports = |first, pools: &[&str]| of_pools(&file, first, pools.iter().copied());
        let port = |pools: &[&str], pool: &str| ports(9900, pools).unwrap()[pool];
        // What nodes had that wrote nothing down: ports in the order of pools.
        assert_eq!((port(&["b", "a"], "b"), port(&["b", "a"], "a")), (9900, 9901));
        assert_eq!((port(&["a", "b"], "b"), port(&["a", "b"], "a")), (9900, 9901));
        assert_eq!(port(&["a"], "a"), 9901);
        assert_eq!((port(&["c", "a"], "c"), port(&["c", "a"], "a")), (9902, 9901));
        // Where they begin, the configuration says.
        assert_eq!(ports(7000, &[]).unwrap()["c"], 7002);
        assert!(ports(u16::MAX, &[]).is_err());
        fs::write(&file, "[]").unwrap();
        assert!(ports(9900, &["a"]).is_err());
    }
}
