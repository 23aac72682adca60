//! `flist from-oci`: an OCI or Docker image becomes an flist.

use std::path::{Path, PathBuf};

use clap::Args;
use flist::oci::registry::RegistryOptions;
use flist::oci::registry::auth::Login;
use flist::oci::spool::SpoolLimits;
use flist::oci::{Limits, Options, Platform, convert, reference::Reference};
use flist::pack::pack;

use super::pack::OutputArguments;
use super::terminal::Terminal;

/// Convert an OCI or Docker image; no daemon and no privilege is needed
#[derive(Args)]
#[command(after_help = "\
A password for a registry is taken from FLIST_REGISTRY_USER and FLIST_REGISTRY_PASSWORD, else from
what `docker login` left in $DOCKER_CONFIG/config.json or ~/.docker/config.json. Decompressed layers
go to files without names in --spool, and are gone when the command ends, however it ends.")]
pub(crate) struct FromOciArguments {
    /// An OCI layout (directory or tar), a tar by `docker save`, or an image's name in a registry:
    /// [HOST/]NAME[:TAG][@DIGEST]. What exists on disk is taken from there
    source: String,
    #[command(flatten)]
    output: OutputArguments,
    /// Which of an image's platforms: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, default_value_t, value_name = "PLATFORM")]
    platform: Platform,
    /// Which of several images in one layout or tar: its tag or reference name
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Where temporary files go; by default $TMPDIR, or else beside the output
    #[arg(long, value_name = "FOLDER")]
    spool: Option<PathBuf>,
    /// Most GiB that the layers may have when they are decompressed
    #[arg(long, value_name = "GIB", default_value_t = 128)]
    max_size_gib: u32,
    /// Speak plain HTTP with the registry
    #[arg(long)]
    insecure: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &FromOciArguments) -> anyhow::Result<()> {
    let progress = Terminal::new()?;
    let stores = arguments.output.open_stores()?;
    let converted = convert(&arguments.source, &arguments.options(), &progress)?;
    let options = arguments.output.pack_options();
    let mut image = pack(converted.tree, &converted.contents, &stores, &options, &progress)?;
    image.tags = converted.tags;
    arguments.output.write(image, &progress)
}

impl FromOciArguments {
    fn options(&self) -> Options {
        let total_size_max = u64::from(self.max_size_gib) << 30;
        let spool = SpoolLimits { total_size_max, ..SpoolLimits::default() };
        let login = || {
            let reference: Reference = self.source.parse().ok()?;
            login_of_environment().or_else(|| login_of_docker(reference.host()))
        };
        Options {
            platform: self.platform.clone(),
            image: self.image.clone(),
            spool_directory: self.spool_directory(),
            limits: Limits { spool, ..Limits::default() },
            registry: RegistryOptions { insecure: self.insecure, login: login() },
        }
    }

    fn spool_directory(&self) -> PathBuf {
        let beside = || match self.output.output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let environment = || std::env::var_os("TMPDIR").filter(|path| !path.is_empty());
        let chosen = self.spool.clone().or_else(|| environment().map(PathBuf::from));
        chosen.unwrap_or_else(beside)
    }
}

fn login_of_environment() -> Option<Login> {
    let user = std::env::var("FLIST_REGISTRY_USER").ok()?;
    let password = std::env::var("FLIST_REGISTRY_PASSWORD").ok()?;
    Some(Login::new(user, password))
}

fn login_of_docker(host: &str) -> Option<Login> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    Login::from_docker_config(&folder.or_else(home)?.join("config.json"), host)
}
