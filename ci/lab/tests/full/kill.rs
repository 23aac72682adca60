//! A VMM that is killed while its guest's journalled file system writes.
//!
//! What the guest was told is safe must be there: the host has it, whatever became of the process. And
//! the journal must make the file system whole again.

use std::collections::BTreeMap;

use lab::{Lab, Outcome};

use crate::guest::{Guest, end, said};
use crate::node::Node;

/// Writes files for ever: says each one's checksum once it is safe, beside much that never is.
const WRITE: &str = r#"
mkdir -p /safe; n=$(ls /safe | wc -l)
(while :; do dd if=/dev/zero of=/noise bs=64k count=100 2>/dev/null; rm /noise; done) &
while :; do
    n=$((n+1))
    head -c $((n * 997 % 60000 + 1)) /dev/urandom > /safe/part
    sync /safe/part; mv /safe/part /safe/$n; sync /safe
    set -- $(sum < /safe/$n); echo "safe: $n $1"
done
"#;
const READ: &str =
    r#"for file in /safe/[0-9]*; do set -- $(sum < $file); echo "found: ${file##*/} $1"; done"#;

#[test]
fn what_was_flushed_outlives_the_vmm_and_the_journal_mends_the_rest() {
    let node = Node::boot("full-kill", |lab: &Lab, builder| {
        builder.disk(&lab.disk("rootfs", 128).unwrap())
    });
    let mut safe = BTreeMap::new();
    for (round, disk) in
        ["/dev/vdb,serial=rootfs", "/dev/vdb,serial=rootfs,direct"].into_iter().enumerate()
    {
        let disks = [disk];
        let guest = Guest { words: "guest.upper=disk", disks: &disks, ..Guest::default() };
        let vm = guest.start(&node, WRITE);
        let vm = said(vm, &format!("safe: {} ", (round + 1) * 25));
        vm.signal(9).unwrap();
        let said = lines(&end(vm, &Outcome::Killed(9)), "safe: ");
        assert!(said.len() >= 20, "{said:?}");
        safe.extend(said);

        // What was killed is the VMM's warden. The VM goes with it.
        node.await_no_vmm();
        // The first run replays the journal; the second finds nothing to mend.
        node.shell("e2fsck -fp /dev/vdb || [ $? = 1 ]; e2fsck -fn /dev/vdb");
        let found = lines(&guest.run(&node, READ), "found: ");
        for (number, sum) in &safe {
            assert_eq!(found.get(number), Some(sum), "file {number} of round {round}");
        }
    }
}

/// Whole lines of a number and a checksum.
fn lines(text: &str, prefix: &str) -> BTreeMap<u64, u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let pair = |line: &str| {
        let (number, sum) = line.trim().strip_prefix(prefix)?.split_once(' ')?;
        Some((number.parse().ok()?, sum.parse().ok()?))
    };
    whole.lines().filter_map(pair).collect()
}
