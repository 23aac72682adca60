//! Project quotas: the file system itself holds a folder to its promise (ext4, XFS).
//!
//! ```text
//!   made:     a free number ──► the folder's, inherited by all in it ──► limit     (before it appears)
//!   grown:    limit ──► promise          removed: files ──► limit 0
//!   opened:   a number without a folder: limit 0; a folder whose limit is not its promise: set
//! ```
//!
//! The number of a folder's project is on the folder, and nowhere else. Where a file system has no such
//! quotas, who serves the folder counts by itself (`quota=` of `vmm`), and nothing here is done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use super::sys::{self, ProjectQuota};

/// The first number that is given: those before may be an operator's.
const FIRST: u32 = 0x1_0000;
/// Numbers that are looked at, at most: more folders than a pool can promise.
const COUNT_MAX: usize = 1 << 20;

/// A file system's project quotas.
#[derive(Debug)]
pub(super) struct Quotas {
    /// Its root, or a folder of it.
    root: File,
}

impl Quotas {
    /// Those of the file system of a folder; none if it holds nobody to any.
    pub(super) fn open(root: &Path) -> io::Result<Option<Self>> {
        let root = File::open(root)?;
        // Which error says that there are none depends on the file system and its age.
        match sys::next_quota(&root, 0) {
            Ok(_) => Ok(Some(Self { root })),
            Err(_) => Ok(None),
        }
    }

    /// Makes a new folder a project of its own, with so many bytes.
    pub(super) fn give(&self, folder: &Path, limit: u64) -> io::Result<()> {
        let project = self.free()?;
        sys::set_quota(&self.root, project, limit)?;
        let given = File::open(folder).and_then(|folder| sys::set_project(&folder, project));
        if given.is_err() {
            // Nobody has the number, and nobody would take its limit back.
            let _ = sys::set_quota(&self.root, project, 0);
        }
        given
    }

    /// Sets a folder's limit, if it is a project.
    pub(super) fn set(&self, folder: &Path, limit: u64) -> io::Result<()> {
        match project_of(folder)? {
            Some(project) => sys::set_quota(&self.root, project, limit),
            None => Ok(()),
        }
    }

    /// What a folder has, if it is a project.
    pub(super) fn used(&self, folder: &Path) -> io::Result<Option<u64>> {
        let Some(project) = project_of(folder)? else { return Ok(None) };
        let quota = sys::next_quota(&self.root, project)?;
        Ok(quota.filter(|quota| quota.project == project).map(|quota| quota.used))
    }

    /// Takes a project's limit back. Its files are gone.
    pub(super) fn forget(&self, project: u32) -> io::Result<()> {
        sys::set_quota(&self.root, project, 0)
    }

    /// Makes limits what was promised, by projects; those of others that are nobody's any more go.
    pub(super) fn settle(&self, promised: &BTreeMap<u32, u64>) -> io::Result<()> {
        let mut stale = BTreeSet::new();
        for quota in self.all(FIRST) {
            let quota = quota?;
            if quota.limit != 0 && !promised.contains_key(&quota.project) {
                stale.insert(quota.project);
            }
        }
        for project in stale {
            tracing::info!(project, "the limit of a project without a folder is taken back");
            self.forget(project)?;
        }
        promised
            .iter()
            .try_for_each(|(project, limit)| sys::set_quota(&self.root, *project, *limit))
    }

    /// A number that nobody has.
    fn free(&self) -> io::Result<u32> {
        let mut free = FIRST;
        for quota in self.all(FIRST) {
            let quota = quota?;
            if quota.project > free {
                break;
            }
            free = quota.project + 1;
        }
        Ok(free)
    }

    /// All quotas from a number on that limit or count anything.
    fn all(&self, from: u32) -> impl Iterator<Item = io::Result<ProjectQuota>> {
        let mut next = Some(from);
        let all = std::iter::from_fn(move || match sys::next_quota(&self.root, next?) {
            Ok(Some(quota)) => {
                next = quota.project.checked_add(1);
                Some(Ok(quota))
            }
            Ok(None) => None,
            Err(error) => {
                next = None;
                Some(Err(error))
            }
        });
        let is_one = |quota: &io::Result<ProjectQuota>| {
            quota.as_ref().map_or(true, |quota| quota.limit != 0 || quota.used != 0)
        };
        all.take(COUNT_MAX).filter(is_one)
    }
}

/// The project of a folder; none if it is nobody's.
pub(super) fn project_of(folder: &Path) -> io::Result<Option<u32>> {
    match File::open(folder).and_then(|folder| sys::project(&folder)) {
        Ok((project, is_inherited)) => Ok((project >= FIRST && is_inherited).then_some(project)),
        // The file system knows no projects.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_none_there_are_none() {
        // Of this kind is `/proc` everywhere.
        assert!(Quotas::open(Path::new("/proc")).unwrap().is_none());
        assert_eq!(project_of(Path::new("/proc")).unwrap(), None);
        assert!(Quotas::open(Path::new("/absent")).is_err());
    }
}
