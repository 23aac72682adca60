//! A root from an image: the boot from it, and reading it, against what a guest could have instead.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use lab::{MachineBuilder, Outcome, write_cidata};

use super::host::{Host, ours, succeed};
use super::mega;
use crate::table::{Goal, Row, Table};

const WORDS: &str = "quiet reboot=k panic=1 pci=noearly cryptomgr.notests console=ttyS0";
/// The file that is read.
const DATA_MIB: u64 = 32;
const BOOT_RATIO_MAX: f64 = 1.05;
const READ_RATIO_MAX: f64 = 1.0;
const SIGTERM: u32 = 15;

/// Packs an image with the agent as its init and a file to read, and puts the same file on a disk.
pub(super) fn add_image(
    builder: MachineBuilder,
    agent: &Path,
    flist: &Path,
    folder: &Path,
) -> Result<MachineBuilder> {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("sbin"))?;
    fs::create_dir_all(tree.join("etc"))?;
    fs::copy(agent, tree.join("sbin/init"))?;
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    let words = (0..DATA_MIB << 17).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let data: Vec<u8> = words.flatten().collect();
    fs::write(tree.join("data"), &data)?;
    // The image names its store by its path, which is the same in the machine.
    let (image, blocks) = (folder.join("image.fl"), folder.join("blocks"));
    fs::create_dir(&blocks)?;
    let mut pack = Command::new(flist);
    pack.arg("pack").arg(&tree).arg("-o").arg(&image);
    succeed(pack.arg("--store").arg(format!("dir://{}", blocks.display())))?;

    let contents = folder.join("contents");
    fs::create_dir(&contents)?;
    fs::write(contents.join("data"), &data)?;
    let ext4 = folder.join("ext4.img");
    File::create(&ext4)?.set_len((DATA_MIB + 32) << 20)?;
    succeed(
        Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&contents).arg(&ext4),
    )?;
    let cidata = folder.join("cidata.img");
    // The node says nothing to the guest but its name.
    let meta = "#cloud-config\ninstance-id: x\nlocal-hostname: bench\n";
    write_cidata(&cidata, &[("meta-data", meta)])?;
    let store_path = blocks.display().to_string();
    let builder =
        builder.host_file("/image.fl", 0o644, &image).host_folder(&store_path, &blocks)?;
    let builder = builder.host_file("/ext4.img", 0o644, &ext4);
    Ok(builder.host_file("/cidata.img", 0o644, &cidata))
}

/// How long the cache may serve: idle time passes quickly in a machine that counts instructions.
const CACHE_LIMIT: Duration = Duration::from_secs(100_000_000);

pub(super) fn rows(host: &Host, table: &mut Table) -> Result<()> {
    let serve = ["/flist", "cached", "--socket", "/run/cache.sock", "--cache", "/cache"];
    let serve = [&serve[..], &["--free-min", "0", "--allow-route", "local"]].concat();
    let cached = host.machine.command(&serve).timeout(CACHE_LIMIT).spawn()?;
    let wait = "n=0; while [ ! -S /run/cache.sock ] && [ $n -lt 500 ]; do n=$((n+1)); /init sleep 20; done";
    host.script("", wait, "")?;

    let words = format!("{WORDS} root=vroot rootfstype=virtiofs rw lab.run=read-file,/data");
    let run = ["/vmm", "run", "--no-jail", "--kernel", "/vmlinux", "--initramfs", "/initramfs.img"];
    let fs = ["--fs", "tag=vroot,flist=/image.fl,cache=/run/cache.sock"];
    let others = ["--memory", "256M", "--serial", "stdio", "--disk", "/cidata.img,readonly"];
    let run = [&run[..], &["--cmdline", &words], &fs, &others].concat();
    // The first guest has the cache fetch and decode what the second reads.
    host.run(&run, &Outcome::Exited(0))?;
    let warm = host.run(&run, &Outcome::Exited(0))?;
    cached.signal(SIGTERM)?;

    let words = format!("{WORDS} lab.run=mount,ext4,/dev/vda,/mnt;read-file,/mnt/data");
    let disk = ["--serial", "stdio", "--disk", "/tmp/ext4.img"];
    host.script("", "cp /ext4.img /tmp/ext4.img", "")?;
    let ext4 = host.run(&ours(&words, &disk), &Outcome::Exited(0))?;
    let per_mib = |instructions: u64| instructions as f64 / DATA_MIB as f64 / 1e3;
    table.push(Row {
        what: "image: reading it warm, thousand instructions a MiB".to_owned(),
        ours: per_mib(warm.instructions("read-file:")?),
        peer: Some(("ext4 on a disk", per_mib(ext4.instructions("read-file:")?))),
        goal: Goal::RatioAtMost(READ_RATIO_MAX),
    });
    let words = format!("{WORDS} lab.run=");
    let initramfs = host.run(&ours(&words, &["--serial", "stdio"]), &Outcome::Exited(0))?;
    table.push(Row {
        what: "image: boot to its init, Mi".to_owned(),
        ours: mega(warm.mark()?),
        peer: Some(("from an initramfs", mega(initramfs.mark()?))),
        goal: Goal::RatioAtMost(BOOT_RATIO_MAX),
    });
    Ok(())
}
