//! Descriptions of version 1 are read for ever, and written the same for ever.
//!
//! The files in `golden/` are never edited: a change that breaks one of these tests needs a new
//! version. New optional fields come with files of their own.

use vmm_spec::{Flags, SpecError, VmSpec};

const FULL: &str = include_str!("golden/full-v1.json");
const MINIMAL: &str = include_str!("golden/minimal-v1.json");

#[test]
fn golden_descriptions_are_read_and_written_as_ever() {
    for golden in [FULL, MINIMAL] {
        let spec = VmSpec::from_json(golden.as_bytes()).unwrap();
        assert_eq!(spec.to_json().unwrap(), golden);
        spec.verify().unwrap();
    }
}

#[test]
fn a_file_may_leave_defaults_out() {
    let short = br#"{"version": 1, "kernel": "/boot/vmlinux"}"#;
    assert_eq!(VmSpec::from_json(short).unwrap().to_json().unwrap(), MINIMAL);
}

/// The flags that say what the golden file says.
#[test]
fn flags_say_the_same() {
    let some = |text: &str| Some(text.to_owned());
    let flags = Flags {
        kernel: Some("/boot/vmlinux".into()),
        initramfs: Some("/boot/initramfs.cpio".into()),
        cmdline: some("console=hvc0 quiet"),
        cpus: some("4,template=baseline-v3"),
        memory: some("2G,hugepages=2M,shared,thp=off"),
        disk: vec![
            "path=/srv/vm/root.img,id=root,serial=rootfs,rate=100M/s+1000ops/s,burst=200M+5000ops,direct,queues=2".into(),
            "/srv/vm/cidata,,1.img,readonly".into(),
        ],
        net: vec![
            "vm-lan,id=lan,mac=52:54:00:12:34:56,queues=2,mtu=1420,rate=12500000/s".into(),
            "fd=5:6,queues=2".into(),
        ],
        fs: vec![
            "tag=vroot,flist=/srv/images/debian.fl,cache=/run/flist/cached.sock,upper=/srv/vm/upper".into(),
            "tag=data,dir=/srv/data,quota=10G".into(),
        ],
        vsock: some("cid=3,socket=/run/vm/vsock"),
        rng: some("on"),
        balloon: some(""),
        console: some("file=/var/log/vm.log"),
        watchdog: some("30"),
        on_reset: some("exit"),
        api_socket: Some("/run/vm/api.sock".into()),
        jail: some("uid=1000,gid=1000,cgroup=/sys/fs/cgroup/vm"),
        ..Flags::default()
    };
    let spec = flags.apply(VmSpec::default()).unwrap();
    assert_eq!(spec.to_json().unwrap(), FULL);
}

#[test]
fn unknown_fields_are_refused_everywhere() {
    let full: serde_json::Value = serde_json::from_str(FULL).unwrap();
    let mut objects = 0;
    for pointer in [
        "",
        "/cpus",
        "/memory",
        "/disks/0",
        "/disks/0/rate",
        "/nets/0",
        "/nets/0/rate",
        "/fs/0",
        "/fs/0/source/flist",
        "/fs/1/source/dir",
        "/vsock",
        "/balloon",
        "/console/file",
        "/watchdog",
        "/jail",
    ] {
        let mut spec = full.clone();
        let object = spec.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        object.insert("extra".to_owned(), 1.into());
        let error = VmSpec::from_json(spec.to_string().as_bytes()).unwrap_err();
        let SpecError::Json { message, .. } = &error else { panic!("{error}") };
        assert!(message.contains("unknown field `extra`"), "{pointer}: {message}");
        objects += 1;
    }
    assert_eq!(objects, 15);
}
