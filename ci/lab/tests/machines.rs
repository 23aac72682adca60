//! The lab's promises, each shown on real machines.
//!
//! Behind the feature `boot`, because each boot takes seconds: `cargo test -p lab --features
//! boot`. Boots are shared: a test is a scenario with several findings.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Accelerator, Flavour, Lab, LabError, Outcome, WriteLog};

const SECOND: Duration = Duration::from_secs(1);

fn init(tool: &[&'static str]) -> Vec<&'static str> {
    [&["/init"], tool].concat()
}

#[test]
fn kvm_works_in_a_cloud_machine_and_commands_and_files_go_in_and_out() {
    let lab = Lab::new("kvm").unwrap();
    let machine = lab
        .machine("l1")
        .memory_mib(1024)
        .nested_kvm()
        .program("/bin/cat")
        .program("/bin/sh")
        .file("/etc/greeting", 0o644, "hello from the test\n")
        .boot()
        .unwrap();

    // Bare-metal guests run on the machine's own KVM; one that never ends is ended by time.
    for guest in ["hello", "count", "exits"] {
        let output = machine.run(&["/init", "kvm-smoke", guest]).unwrap().success().unwrap();
        assert!(output.text().contains(&format!("guest {guest}: result")), "{}", output.text());
    }
    let start = Instant::now();
    let spin = machine.command(&init(&["kvm-smoke", "spin"])).timeout(2 * SECOND).run().unwrap();
    assert_eq!(spin.outcome, Outcome::TimedOut);
    assert!(start.elapsed() < 20 * SECOND, "{:?}", start.elapsed());

    // Status, both outputs, input, environment, folder; programs of this host with libraries.
    let script = "cat; echo \"$NAME in $PWD\" >&2; exit 7";
    let command = machine.command(&["/bin/sh", "-c", script]).stdin(b"in").env("NAME", "x");
    let output = command.current_dir("/tmp").run().unwrap();
    assert_eq!(output.outcome, Outcome::Exited(7));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"in"[..], &b"x in /tmp\n"[..]));
    let error = output.success().unwrap_err().to_string();
    assert!(error.contains("Exited(7)") && error.contains("x in /tmp"), "{error}");
    let killed = machine.run(&["/bin/sh", "-c", "kill -9 $$"]).unwrap();
    assert_eq!(killed.outcome, Outcome::Killed(9));
    let missing = machine.run(&["/no/such/program"]).unwrap_err();
    assert!(matches!(missing, LabError::Refused { .. }), "{missing}");

    // Files: what the image was built with, and megabytes both ways.
    assert_eq!(machine.pull("/etc/greeting").unwrap(), b"hello from the test\n");
    let data: Vec<u8> = (0..750_000u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
    machine.push("/tmp/data", 0o600, &data).unwrap();
    assert!(machine.pull("/tmp/data").unwrap() == data, "3 MB came back different");
    assert!(matches!(machine.pull("/no/such"), Err(LabError::Refused { .. })));
    let loud = machine.command(&["/bin/cat", "/tmp/data"]).output_size_max(1000).run().unwrap();
    assert_eq!((loud.stdout.len(), loud.is_truncated), (1000, true));

    // Two things at once, and a signal to one of them.
    let sleeper = machine.command(&init(&["sleep", "60000"])).spawn().unwrap();
    assert!(machine.tsc().unwrap() < machine.tsc().unwrap());
    sleeper.signal(15).unwrap();
    assert_eq!(sleeper.wait().unwrap().outcome, Outcome::Killed(15));

    machine.shutdown().unwrap();
    assert!(matches!(machine.run(&["/init", "exit", "0"]), Err(LabError::Off { .. })));
    lab.forget_failures();
}

#[test]
fn disks_survive_a_power_cut_come_and_go_and_log_their_writes() {
    let lab = Lab::new("disks").unwrap();
    let (data, late) = (lab.disk("data", 8).unwrap().logged(), lab.disk("late", 4).unwrap());
    let builder = lab.machine("node").kernel(Flavour::Full).disk(&data);
    let machine = builder.clone().boot().unwrap();
    let disks = |machine: &lab::Machine| machine.run(&["/init", "disks"]).unwrap().text();
    assert_eq!(disks(&machine).trim(), "vda 8388608 data");

    // A disk appears while the machine runs, and goes again.
    let id = machine.add_disk(&late).unwrap();
    let wait_for = |is_there: bool| {
        let deadline = Instant::now() + 30 * SECOND;
        while disks(&machine).contains("vdb 4194304 late") != is_there {
            assert!(Instant::now() < deadline, "{}", disks(&machine));
            std::thread::sleep(SECOND / 10);
        }
    };
    wait_for(true);
    machine.push("/dev/vdb", 0, b"hot").unwrap();
    machine.remove_disk(&id).unwrap();
    wait_for(false);
    assert!(std::fs::read(late.path()).unwrap().starts_with(b"hot"));

    // What was flushed before the plug was pulled is there after it.
    for round in ["first", "second"] {
        machine.push("/dev/vda", 0, format!("{round}, flushed").as_bytes()).unwrap();
    }
    machine.power_cut();

    // The disk is rebuilt from its log, flush by flush: blank, then the first, then the second.
    let log = WriteLog::open(data.log_path().unwrap()).unwrap();
    let image = tempfile::tempfile().unwrap();
    image.set_len(8 << 20).unwrap();
    let mut seen = vec![String::new()];
    for (index, entry) in log.entries().iter().enumerate() {
        log.replay(index, index + 1, &image).unwrap();
        let mut start = [0; 32];
        image.read_exact_at(&mut start, 0).unwrap();
        let start = String::from_utf8_lossy(&start).trim_end_matches('\0').to_owned();
        if entry.is_flush && seen.last() != Some(&start) {
            seen.push(start);
        }
    }
    assert_eq!(seen, ["", "first, flushed", "second, flushed"], "{:?}", log.entries());

    let machine = builder.boot().unwrap();
    assert!(machine.pull("/dev/vda").unwrap().starts_with(b"second, flushed"));
}

#[test]
fn three_machines_talk_until_a_cable_is_cut() {
    let lab = Lab::new("network").unwrap();
    let lan = lab.network("lan").unwrap();
    let boot = |name: &str, address: &str| {
        lab.machine(name).cpus(1).memory_mib(256).network_address(&lan, address).boot().unwrap()
    };
    let first = boot("n1", "10.0.0.1/24");
    let second = boot("n2", "10.0.0.2/24");
    let third = boot("n3", "10.0.0.3/24");
    let ping = |from: &lab::Machine, transport: &str, to: &str| {
        from.run(&["/init", "ping", transport, to, "3", "2000"]).unwrap()
    };
    let listen = |on: &lab::Machine, transport: &str, address: &str| {
        let listener = on.command(&["/init", "listen", transport, address]).spawn().unwrap();
        listener.wait_for(":7", 10 * SECOND).unwrap();
        listener
    };
    let _udp = listen(&first, "udp", "10.0.0.1:7");
    let _tcp = listen(&first, "tcp", "10.0.0.1:7");
    let _other = listen(&second, "udp", "10.0.0.2:7");
    ping(&second, "udp", "10.0.0.1:7").success().unwrap();
    ping(&second, "tcp", "10.0.0.1:7").success().unwrap();
    ping(&third, "udp", "10.0.0.1:7").success().unwrap();
    assert!(lan.frame_count() > 10, "{} frames", lan.frame_count());

    // One more address, of the newer kind.
    first.add_address(0, "fd00::1/64").unwrap();
    third.add_address(0, "fd00::3/64").unwrap();
    let _udp6 = listen(&first, "udp", "[fd00::1]:7");
    ping(&third, "udp", "[fd00::1]:7").success().unwrap();
    assert!(matches!(first.add_address(1, "10.1.0.1/24"), Err(LabError::Description { .. })));

    // A cable is cut: nothing gets through, but the others don't mind. It is plugged in again:
    // all is well.
    first.set_link(0, false).unwrap();
    let lost = second.run(&["/init", "ping", "udp", "10.0.0.1:7", "2", "500"]).unwrap();
    assert_eq!(lost.outcome, Outcome::Exited(1));
    assert!(lost.text().contains("0 of 2"), "{}", lost.text());
    ping(&third, "udp", "10.0.0.2:7").success().unwrap();
    first.set_link(0, true).unwrap();
    let deadline = Instant::now() + 30 * SECOND;
    while ping(&second, "udp", "10.0.0.1:7").outcome != Outcome::Exited(0) {
        assert!(Instant::now() < deadline, "the link did not come back");
    }
}

#[test]
fn a_machine_and_this_host_reach_each_other_across_a_reboot() {
    let lab = Lab::new("host-network").unwrap();
    let builder = lab.machine("n1").cpus(1).memory_mib(256).host_network();
    let machine = builder.may_reboot().boot().unwrap();
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let mut guest = host.accept().unwrap().0;
        let mut message = [0; 4];
        guest.read_exact(&mut message).unwrap();
        guest.write_all(&message).unwrap();
    });
    let from_guest = format!("10.0.2.2:{port}");
    machine.run(&["/init", "ping", "tcp", &from_guest, "1", "5000"]).unwrap().success().unwrap();
    echo.join().unwrap();

    let address = machine.forward_tcp(7).unwrap();
    machine.reboot().unwrap();
    machine.wait_ready(120 * SECOND).unwrap();
    let listener = machine.command(&init(&["listen", "tcp", "0.0.0.0:7"])).spawn().unwrap();
    listener.wait_for(":7", 10 * SECOND).unwrap();
    let mut guest = TcpStream::connect(address).unwrap();
    guest.set_read_timeout(Some(10 * SECOND)).unwrap();
    guest.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    guest.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn machines_reboot_when_they_may_and_end_when_they_may_not() {
    let lab = Lab::new("power").unwrap();
    let machine = lab.machine("n1").cpus(1).memory_mib(256).may_reboot().boot().unwrap();
    machine.push("/tmp/file", 0o600, b"gone after a reset").unwrap();
    let sleeper = machine.command(&init(&["sleep", "60000"])).spawn().unwrap();
    machine.reset(120 * SECOND).unwrap();
    assert!(matches!(sleeper.wait(), Err(LabError::Reset { .. })));
    assert!(matches!(machine.pull("/tmp/file"), Err(LabError::Refused { .. })));

    drop(machine);

    let machine = lab.machine("n2").cpus(1).memory_mib(256).boot().unwrap();
    machine.panic().unwrap();
    machine.wait_console("Kernel panic", 30 * SECOND).unwrap();
    machine.wait_off(30 * SECOND).unwrap();
}

#[test]
fn instructions_are_counted_alike_in_two_runs() {
    let lab = Lab::new("icount").unwrap();
    let counts = || {
        let machine = lab.machine("n1").memory_mib(256).count_instructions().boot().unwrap();
        let count = |rounds| {
            let output = machine.run(&["/init", "count", rounds]).unwrap().success().unwrap();
            output.instructions()
        };
        // The first run also brings the program into the page cache.
        let _ = count("1");
        let (short, long) = (count("1000000"), count("21000000"));
        assert!(machine.tsc().unwrap() > machine.boot_tsc());
        (machine.boot_tsc(), long - short)
    };
    let ((boot_a, loop_a), (boot_b, loop_b)) = (counts(), counts());
    eprintln!("boot {boot_a} and {boot_b}, loop {loop_a} and {loop_b} instructions");
    let differs = |a: u64, b: u64| a.abs_diff(b) as f64 / a as f64;
    assert!(differs(boot_a, boot_b) < 0.005, "boot: {boot_a} and {boot_b}");
    assert!(differs(loop_a, loop_b) < 0.005, "loop: {loop_a} and {loop_b}");
    // Twenty million rounds of a handful of instructions.
    assert!((60_000_000..400_000_000).contains(&loop_a), "{loop_a}");
}

#[test]
fn everything_ends_in_time() {
    let lab = Lab::new("time-limits").unwrap();

    // QEMU's own words are in the error when it can't start.
    let refused = lab.machine("bad").qemu_arguments(&["-no-such-option"]).boot().unwrap_err();
    assert!(refused.to_string().contains("no-such-option"), "{refused}");
    assert!(refused.to_string().contains("logs: "), "{refused}");

    // A boot that takes too long.
    let start = Instant::now();
    let slow = lab.machine("slow").boot_timeout(SECOND / 10).boot().unwrap_err();
    assert!(matches!(slow, LabError::Timeout { .. }), "{slow}");
    assert!(start.elapsed() < 30 * SECOND);

    // A machine whose life is over while a command runs in it.
    let short_lived = lab.machine("short").cpus(1).memory_mib(256).life(15 * SECOND);
    match short_lived.boot() {
        Ok(machine) => {
            let cut = machine.run(&["/init", "sleep", "600000"]).unwrap_err();
            assert!(matches!(cut, LabError::Off { .. }), "{cut}");
        }
        // On a very slow host it doesn't get that far, and ends all the same.
        Err(error) => assert!(matches!(error, LabError::Off { .. }), "{error}"),
    }
    assert!(start.elapsed() < 90 * SECOND);

    // Without an init, the kernel's panic ends the machine, and is in the error.
    let lost = lab.machine("no-init").cmdline("rdinit=/no/such").boot().unwrap_err().to_string();
    assert!(lost.contains("Kernel panic") && lost.contains("is off: exit status"), "{lost}");
    lab.forget_failures();
}

#[test]
fn an_image_of_the_callers_boots_without_an_agent() {
    let lab = Lab::new("own-image").unwrap();
    let cache = boot_image::Cache::from_env().unwrap();
    let kernel = boot_image::KernelPackage::fetch(Flavour::Cloud, &cache).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let initramfs = folder.path().join("empty.cpio");
    std::fs::write(&initramfs, boot_image::Initramfs::new().build().unwrap()).unwrap();
    let machine = lab
        .machine("n1")
        .cpus(1)
        .memory_mib(256)
        .own_image(&kernel.vmlinuz(), &initramfs)
        .cmdline("lab.word=seen")
        .boot()
        .unwrap();
    machine.wait_console("Kernel panic - not syncing: VFS", 120 * SECOND).unwrap();
    machine.wait_off(30 * SECOND).unwrap();
    assert!(machine.console().contains("lab.word=seen"));
    assert!(matches!(machine.run(&["/init"]), Err(LabError::Description { .. })));
}

#[test]
fn a_killed_runner_leaves_nothing_behind() {
    let mut runner = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["boot", "--cpus", "1", "--memory-mib", "256", "--", "/init", "sleep", "600000"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let title = format!("lab-boot-machine-{}-", runner.id());
    wait(120 * SECOND, "QEMU to start", || processes(&title) > 0);
    runner.kill().unwrap();
    runner.wait().unwrap();
    wait(10 * SECOND, "QEMU to end", || processes(&title) == 0);
    let cache = boot_image::Cache::from_env().unwrap();
    let logs = cache.root().join(format!("lab-logs/boot-{}-0", runner.id()));
    std::fs::remove_dir_all(&logs).unwrap();

    // Its folder goes with the next lab, once it is a few seconds old.
    let folders = || {
        let temp = std::fs::read_dir(std::env::temp_dir()).unwrap();
        let ours = temp.filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_ours = path.file_name()?.to_str()?.starts_with("zero-os-lab-");
            (is_ours && is_unlocked(&path)).then_some(path)
        });
        ours.count()
    };
    wait(30 * SECOND, "the folder to go", || {
        drop(Lab::new("cleaner").unwrap());
        folders() == 0
    });
}

/// How many processes have `title` in their command line.
fn processes(title: &str) -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let cmdline = |path: &Path| std::fs::read(path.join("cmdline")).unwrap_or_default();
    let is_one = |cmdline: Vec<u8>| String::from_utf8_lossy(&cmdline).contains(title);
    entries.filter(|entry| is_one(cmdline(&entry.path()))).count()
}

fn is_unlocked(folder: &Path) -> bool {
    let lock = std::fs::File::open(folder.join("lock"));
    lock.is_ok_and(|lock| lock.try_lock().is_ok())
}

fn wait(limit: Duration, what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what} within {limit:?}");
        std::thread::sleep(SECOND / 20);
    }
}

#[test]
fn the_accelerator_is_what_the_host_offers() {
    let has_flag = std::fs::read_to_string("/proc/cpuinfo")
        .unwrap()
        .split_ascii_whitespace()
        .any(|word| word == "vmx" || word == "svm");
    if !has_flag && std::env::var_os("LAB_ACCEL").is_none() {
        assert_eq!(Accelerator::probe(), Accelerator::Tcg);
    }
}
