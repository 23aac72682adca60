//! The `disk-boot` command: the kernel of a whole disk, for a VMM that starts kernels.
//!
//! ```text
//!   disk-boot run DISK --into DIR -- vmm run …
//!     │ starts itself as                                       and becomes
//!     └─► disk-boot extract DISK --kernel … --initramfs …        vmm run … --kernel DIR/kernel
//!           opens them, closes its jail, reads, writes, ends        --initramfs DIR/initramfs --cmdline …
//! ```

#![forbid(unsafe_code)]

mod jail;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use disk_boot::extract::INITRAMFS_SIZE_MAX;
use disk_boot::source::Source;
use disk_boot::volumes::Volumes;
use disk_boot::{Extracted, choose, extract};

/// Find the kernel of a whole disk as its boot loader would, and start it without firmware
///
/// Reads GPT and MBR, ext2/3/4 and FAT, and the configuration of GRUB, systemd-boot and syslinux. What is
/// on the disk is not trusted: it is read in a jail.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

const AFTER_HELP: &str = "\
Examples:
  disk-boot extract debian.raw --kernel vmlinuz --initramfs initrd.img
  disk-boot run debian.raw --into /run/debian -- \\
      vmm run --memory 1G --serial stdio --disk debian.raw

Exit codes: 0 done, 1 failed, 2 usage; of `run`, those of the program that it becomes";

#[derive(Subcommand)]
enum What {
    Extract(Extract),
    Run(Run),
}

/// Write kernel and initial file system to files, and print JSON
///
/// `config` and `title` say which entry was chosen, `cmdline` what it has the kernel told, `kernel_size`
/// and `initramfs_size` how many bytes were written.
#[derive(Args)]
struct Extract {
    /// The disk: a file or a block device
    disk: PathBuf,
    /// Where the kernel goes
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Where the initial file system goes, which is empty if there is none
    #[arg(long, value_name = "FILE")]
    initramfs: PathBuf,
}

/// Extract a disk's kernel, and become a program that is told of it
///
/// The program's arguments are followed by --kernel, --initramfs (if there is one) and --cmdline.
#[derive(Args)]
struct Run {
    /// The disk: a file or a block device
    disk: PathBuf,
    /// Folder for the kernel and the initial file system, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// What stands in front of the kernel's command line; what the disk says comes later and wins
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    words: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Extract(arguments) => arguments.extract(),
        What::Run(arguments) => arguments.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("disk-boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Extract {
    fn extract(&self) -> anyhow::Result<()> {
        jail::end_with_parent().context("the jail")?;
        let name = || self.disk.display().to_string();
        let disk = File::open(&self.disk).with_context(name)?;
        let (kernel, initramfs) = (create(&self.kernel)?, create(&self.initramfs)?);
        jail::close(INITRAMFS_SIZE_MAX).context("the jail")?;
        let window = Source::new(disk).with_context(name)?.window();
        let volumes = Volumes::open(&window).with_context(name)?;
        let choice = choose(&volumes).with_context(name)?;
        let (mut kernel, mut initramfs) = (BufWriter::new(kernel), BufWriter::new(initramfs));
        let extracted = extract(&volumes, &choice, &mut kernel, &mut initramfs);
        let extracted = extracted.with_context(name)?;
        kernel.flush().context("the kernel")?;
        initramfs.flush().context("the initial file system")?;
        let text = serde_json::to_string(&extracted)?;
        writeln!(io::stdout(), "{text}").context("standard output")
    }
}

/// A file for the caller alone, whatever was there before.
fn create(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    opened.with_context(|| path.display().to_string())
}

impl Run {
    fn run(&self) -> anyhow::Result<()> {
        let folder = || self.into.display().to_string();
        std::fs::create_dir_all(&self.into).with_context(folder)?;
        let (kernel, initramfs) = (self.into.join("kernel"), self.into.join("initramfs"));
        let extracted = self.in_a_process_of_its_own(&kernel, &initramfs)?;
        let Some((program, arguments)) = self.program.split_first() else {
            bail!("no program to become");
        };
        let mut command = Command::new(program);
        command.args(arguments).arg("--kernel").arg(&kernel);
        if extracted.initramfs_size > 0 {
            command.arg("--initramfs").arg(&initramfs);
        }
        let words = [self.words.trim(), extracted.cmdline.as_str()];
        let words: Vec<_> = words.into_iter().filter(|words| !words.is_empty()).collect();
        // One argument, whatever it begins with.
        command.arg(format!("--cmdline={}", words.join(" ")));
        let error = command.exec();
        Err(error).with_context(|| program.to_string_lossy().into_owned())
    }

    /// What is on the disk is read by a process that has nothing to lose.
    fn in_a_process_of_its_own(
        &self,
        kernel: &Path,
        initramfs: &Path,
    ) -> anyhow::Result<Extracted> {
        // Beside them first: a VMM that still runs from them has them mapped.
        let (new_kernel, new_initramfs) =
            (kernel.with_extension("new"), initramfs.with_extension("new"));
        let own = std::env::current_exe().context("the program's own file")?;
        let mut command = Command::new(own);
        command.arg("extract").arg("--kernel").arg(&new_kernel);
        command.arg("--initramfs").arg(&new_initramfs).arg("--").arg(&self.disk);
        // What it says on standard error reaches the caller as it is.
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.context("a process for the disk")?;
        if !output.status.success() {
            bail!("{}: no kernel ({})", self.disk.display(), output.status);
        }
        let extracted = serde_json::from_slice(&output.stdout).context("what it printed")?;
        for (from, to) in [(&new_kernel, kernel), (&new_initramfs, initramfs)] {
            std::fs::rename(from, to).with_context(|| to.display().to_string())?;
        }
        Ok(extracted)
    }
}
