//! `hostd disks`: what the machine's disks are to the node, and those that are nobody's made ready.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use hostd_exec::storage::disks::{DisksConfig, Found, look, prepare};

/// Say what the machine's disks are to the node
#[derive(Args)]
pub(crate) struct DisksArguments {
    /// Make pools of all disks that are nobody's, and mount all pools, as a start with `disks = "auto"`
    /// does
    #[arg(long)]
    prepare: bool,
    /// The folder that pools are mounted in
    #[arg(long, value_name = "FOLDER", default_value = "/mnt")]
    mounts: PathBuf,
    /// Makes file systems
    #[arg(long, value_name = "PROGRAM", default_value = "/usr/sbin/mkfs.ext4")]
    mkfs: PathBuf,
    /// Mends file systems
    #[arg(long, value_name = "PROGRAM", default_value = "/usr/sbin/e2fsck")]
    fsck: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn disks(arguments: DisksArguments) -> anyhow::Result<()> {
    let DisksArguments { prepare: is_to_prepare, mounts, mkfs, fsck, json } = arguments;
    let config = DisksConfig { mounts, mkfs, fsck };
    let found = match is_to_prepare {
        true => prepare(&config).map(|prepared| prepared.disks),
        false => look(&config),
    };
    let found = found.context("the machine's disks")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print!("{}", described(&found));
    }
    Ok(())
}

/// Disks as people read them.
fn described(found: &[Found]) -> String {
    let line = |disk: &Found| {
        let (pool, kind) = (disk.pool.as_deref().unwrap_or("-"), disk.kind.unwrap_or("-"));
        let (gib, serial) = (disk.size >> 30, disk.serial.as_deref().unwrap_or("-"));
        format!("{:<10}{gib:>8} GiB  {serial:<21}{pool:<14}{kind:<5}{}\n", disk.name, disk.what)
    };
    found.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_described() {
        let disk = |name: &str, pool: Option<&str>, what: &str| Found {
            name: name.to_owned(),
            size: 100 << 30,
            serial: pool.map(|_| "WD-WX12D5".to_owned()),
            pool: pool.map(str::to_owned),
            kind: pool.map(|_| "ssd"),
            what: what.to_owned(),
        };
        let found = [
            disk("vda", Some("zos-1a2b3c4d"), "a pool"),
            disk("vdb", None, "left alone: it holds ext4"),
        ];
        assert_eq!(
            described(&found),
            "vda            100 GiB  WD-WX12D5            zos-1a2b3c4d  ssd  a pool\n\
             vdb            100 GiB  -                    -             -    left alone: it holds ext4\n"
        );
    }
}
