//! Boots a kernel in a machine without devices, its serial port on stdout: for trying things out,
//! and for counting exits and pages. Exits with 0 when the guest switched itself off, 10 when it wanted a
//! reset, 11 when it crashed.
//!
//! ```text
//! boot [--cpus N] [--memory MIB] [--map] [--no-serial] [--pci] [--reboot N] KERNEL [INITRAMFS] -- WORDS…
//! ```

use std::path::Path;
use std::process::ExitCode;

use vmm_machine::boot::{Boot, Image, Loading};
use vmm_machine::memory::Backing;
use vmm_machine::{CpuTemplate, Exit, ExitKind, Machine, MachineConfig, MachineError, kvm};

struct Options {
    cpus: u8,
    memory_mib: u64,
    loading: Loading,
    has_serial: bool,
    has_pci: bool,
    reboots: u32,
    files: Vec<String>,
    cmdline: String,
}

fn main() -> ExitCode {
    let options = parse(std::env::args().skip(1));
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("boot: {text}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Options {
    let mut options = Options {
        cpus: 1,
        memory_mib: 256,
        loading: Loading::Copy,
        has_serial: true,
        has_pci: false,
        reboots: 0,
        files: Vec::new(),
        cmdline: String::new(),
    };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0_u32);
        match argument.as_str() {
            "--cpus" => options.cpus = u8::try_from(number()).unwrap_or(0),
            "--memory" => options.memory_mib = u64::from(number()),
            "--reboot" => options.reboots = number(),
            "--map" => options.loading = Loading::Map,
            "--no-serial" => options.has_serial = false,
            "--pci" => options.has_pci = true,
            "--" => options.cmdline = arguments.by_ref().collect::<Vec<_>>().join(" "),
            _ => options.files.push(argument),
        }
    }
    options
}

fn run(options: &Options) -> Result<ExitCode, MachineError> {
    let open = |path: &String| Image::open(Path::new(path));
    let boot = Boot {
        kernel: open(options.files.first().unwrap_or(&String::new()))?,
        initramfs: options.files.get(1).map(open).transpose()?,
        cmdline: options.cmdline.clone(),
        loading: options.loading,
    };
    let config = MachineConfig {
        boot,
        vcpu_count: options.cpus,
        cpu_template: CpuTemplate::Host,
        memory_mib: options.memory_mib,
        backing: Backing::default(),
        serial: options.has_serial.then(|| Box::new(std::io::stdout()) as _),
        has_pci: options.has_pci,
    };
    let mut machine = Machine::new(&kvm::open()?, config)?;
    machine.start()?;
    let mut exit = machine.wait(None);
    for _ in 0..options.reboots {
        if exit == Some(Exit::Reset) {
            machine.reset()?;
            machine.resume();
            exit = machine.wait(None);
        }
    }
    for kind in ExitKind::ALL {
        eprintln!("{}: {}", kind.name(), machine.exits().of(kind).value());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.contains("Rss")) {
        eprintln!("{line}");
    }
    let code = match &exit {
        Some(Exit::Off) => 0,
        Some(Exit::Reset) => 10,
        Some(Exit::Crash(_)) => 11,
        _ => 1,
    };
    if let Some(exit) = exit {
        eprintln!("boot: the guest ended: {exit}");
    }
    Ok(ExitCode::from(code))
}
