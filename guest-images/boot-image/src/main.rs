//! `boot-image`: kernels and initramfs images for people and scripts.
//!
//! Paths that were made or found go to stdout, one `name<TAB>value` a line (or JSON); what is
//! being done goes to stderr.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use boot_image::guest::{self, Recipe};
use boot_image::kernel::FetchError;
use boot_image::{Cache, Flavour, Initramfs, KernelPackage, cache, vmlinux};
use clap::{Args, Parser, Subcommand};

/// Kernels and initramfs images from Debian packages and static binaries.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download Debian's kernel package into the cache and print where its parts are
    Fetch(FetchArgs),
    /// Take the uncompressed ELF kernel out of a bzImage
    Vmlinux(VmlinuxArgs),
    /// Print the modules that these modules need, in the order to load them
    Modules(ModulesArgs),
    /// Build an initramfs from files and modules
    Initramfs(InitramfsArgs),
    /// Build the kernel, initramfs and manifest that guests boot with
    Guest(GuestArgs),
}

#[derive(Debug, Args)]
struct FetchArgs {
    /// `cloud` for virtual machines, `full` for real ones
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// Also extract the uncompressed kernel
    #[arg(long)]
    vmlinux: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VmlinuxArgs {
    /// The compressed kernel
    bzimage: PathBuf,
    /// Where to write the ELF file
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct ModulesArgs {
    /// Whose modules
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// Module names
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Debug, Args)]
struct InitramfsArgs {
    /// The static binary that becomes /init
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    /// Whose modules
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// A module, with what it needs; may be repeated
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A file of this machine and its place in the image; keeps its permissions
    #[arg(long = "file", value_name = "SOURCE:PATH")]
    files: Vec<String>,
    /// Compress by zstd at this level (1 to 19)
    #[arg(long, value_name = "LEVEL")]
    zstd: Option<i32>,
    /// Where to write the image
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct GuestArgs {
    /// Folder for vmlinux, initramfs.img and manifest.json
    #[arg(long)]
    out: PathBuf,
    /// A statically linked guest-init; without it, cargo builds the one of this workspace
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Where the workspace is, for cargo
    #[arg(long, default_value = ".", value_name = "DIR", conflicts_with = "init")]
    workspace: PathBuf,
    /// zstd level of the initramfs
    #[arg(long, value_name = "LEVEL", default_value_t = 19)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=19))]
    zstd: i32,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Fetch(args) => fetch(&args),
        Command::Vmlinux(args) => extract(&args),
        Command::Modules(args) => modules(&args),
        Command::Initramfs(args) => initramfs(&args),
        Command::Guest(args) => guest(&args),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("boot-image: {error:#}");
    if let Some(hint) = error.chain().find_map(|e| e.downcast_ref::<FetchError>()?.hint()) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

fn fetch(args: &FetchArgs) -> Result<()> {
    let kernel = package(args.flavour)?;
    let vmlinuz = kernel.vmlinuz();
    let modules = kernel.modules_dir();
    let vmlinux = args.vmlinux.then(|| kernel.vmlinux()).transpose()?;
    let mut rows = vec![
        ("package", kernel.package().to_owned()),
        ("version", kernel.version().to_owned()),
        ("release", kernel.release().to_owned()),
        ("vmlinuz", vmlinuz.display().to_string()),
        ("modules", modules.display().to_string()),
    ];
    rows.extend(vmlinux.map(|path| ("vmlinux", path.display().to_string())));
    if args.json {
        let object: serde_json::Map<_, _> =
            rows.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        println!("{}", serde_json::Value::Object(object));
    } else {
        rows.iter().for_each(|(name, value)| println!("{name}\t{value}"));
    }
    Ok(())
}

fn extract(args: &VmlinuxArgs) -> Result<()> {
    let image = std::fs::read(&args.bzimage)
        .with_context(|| format!("cannot read {}", args.bzimage.display()))?;
    let elf = vmlinux::extract(&image).with_context(|| args.bzimage.display().to_string())?;
    cache::write_whole(&args.output, &elf)?;
    eprintln!("{}: {} bytes of {}", args.output.display(), elf.len(), args.bzimage.display());
    Ok(())
}

fn modules(args: &ModulesArgs) -> Result<()> {
    let tree = package(args.flavour)?.modules()?;
    let names: Vec<&str> = args.names.iter().map(String::as_str).collect();
    for step in tree.load_order(&names)? {
        println!("{}", format!("{} {}", step.path.display(), step.params).trim_end());
    }
    Ok(())
}

fn initramfs(args: &InitramfsArgs) -> Result<()> {
    let mut image = Initramfs::new();
    image.host_file("init", 0o755, &args.init)?;
    image.char_device("dev/console", 0o600, 5, 1)?;
    for file in &args.files {
        add_file(&mut image, file)?;
    }
    if !args.modules.is_empty() {
        let names: Vec<&str> = args.modules.iter().map(String::as_str).collect();
        image.modules(&package(args.flavour)?.modules()?, &names)?;
    }
    let bytes = match args.zstd {
        Some(level @ 1..=19) => image.build_zstd(level)?,
        Some(level) => bail!("no zstd level {level}: 1 to 19"),
        None => image.build()?,
    };
    cache::write_whole(&args.output, &bytes)?;
    eprintln!("{}: {} bytes", args.output.display(), bytes.len());
    Ok(())
}

fn guest(args: &GuestArgs) -> Result<()> {
    let built_init;
    let init = match &args.init {
        Some(path) => path,
        None => {
            eprintln!("guest-init: building");
            built_init = guest::build_init(&args.workspace)?;
            &built_init
        }
    };
    let kernel = package(Flavour::Cloud)?;
    let recipe = Recipe { kernel: &kernel, init, out: &args.out, zstd_level: args.zstd };
    println!("{:#}", guest::build(&recipe)?.manifest);
    Ok(())
}

fn add_file(image: &mut Initramfs, argument: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let (source, path) = argument
        .rsplit_once(':')
        .with_context(|| format!("--file {argument}: expected SOURCE:PATH"))?;
    let source = Path::new(source);
    let found =
        source.metadata().with_context(|| format!("cannot look at {}", source.display()))?;
    image.host_file(path, found.permissions().mode(), source)?;
    Ok(())
}

fn package(flavour: Flavour) -> Result<KernelPackage> {
    let cache = Cache::from_env()?;
    eprintln!("kernel: {} from {}", flavour.metapackage(), cache.root().display());
    Ok(KernelPackage::fetch(flavour, &cache)?)
}
