//! Scripts as distributions write them, and hostile ones.

use proptest::prelude::*;

use super::*;
use crate::filesystem::testing::Memory;
use crate::volumes::testing::volumes;

const ROOT: &str = "0a0b-root";
const BOOT: &str = "0c0d-boot";

fn first(systems: Vec<Memory>) -> Offer {
    let volumes = volumes(systems);
    let place = Place { volume: 0, path: "/boot/grub/grub.cfg".into() };
    offers(&volumes, &place).unwrap().unwrap().into_iter().next().unwrap()
}

fn root(config: &str, more: &[(&str, &str)]) -> Memory {
    let files = [&[("boot/grub/grub.cfg", config)], more].concat();
    Memory::new(ROOT, &files)
}

fn at(volume: usize, path: &str) -> Place {
    Place { volume, path: path.into() }
}

/// The form that a distribution's generator writes: environment, functions, an entry and a submenu.
const FULL: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if loadfont unicode ; then set gfxmode=auto ; load_video ; insmod gfxterm ; fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then set timeout=30 ; else set timeout=0 ; fi
menuentry 'Linux' --class linux $menuentry_id_option 'simple-id' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod ext2
	set root='hd0,gpt9'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 0a0b-root
	else
	  search --no-floppy --fs-uuid --set=root 0a0b-root
	fi
	echo	'Loading Linux 6.1 ...'
	linux	/boot/vmlinuz-6.1 root=PARTUUID=12 ro  console=tty0 "dyndbg=file x +p"
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1
}
submenu 'Advanced options' $menuentry_id_option 'advanced-id' {
	menuentry 'Linux 6.1' $menuentry_id_option 'new-id' { linux /boot/vmlinuz-6.1 a
	  initrd /boot/initrd.img-6.1
	}
	menuentry 'Linux 6.0' $menuentry_id_option 'old-id' {
	  linux /boot/vmlinuz-6.0 b
	}
}
menuentry 'Firmware' { fwsetup }
"#;

#[test]
fn a_distributions_script_boots_its_first_entry() {
    let offer = first(vec![root(FULL, &[])]);
    let expected = Offer {
        title: "Linux".into(),
        kernel: Some(at(0, "/boot/vmlinuz-6.1")),
        initrds: vec![at(0, "/boot/initrd.img-6.1")],
        cmdline: "root=PARTUUID=12 ro console=tty0 \"dyndbg=file x +p\"".into(),
    };
    assert_eq!(offer, expected);
}

#[test]
fn what_was_saved_is_booted_and_what_is_to_be_booted_once_is_not() {
    for saved in ["old-id", "advanced-id>old-id", "1>1", "Advanced options>Linux 6.0"] {
        let environment =
            format!("# GRUB Environment Block\nnext_entry=2\nsaved_entry={saved}\n###");
        let offer = first(vec![root(FULL, &[("boot/grub/grubenv", &environment)])]);
        // An identity alone is none of the top menu's: the first entry is booted then.
        let expected = if saved == "old-id" { "/boot/vmlinuz-6.1" } else { "/boot/vmlinuz-6.0" };
        assert_eq!(offer.kernel, Some(at(0, expected)), "{saved}");
    }
}

#[test]
fn all_entries_are_offered_those_of_submenus_too() {
    let volumes = volumes(vec![root(FULL, &[])]);
    let offers = offers(&volumes, &at(0, "/boot/grub/grub.cfg")).unwrap().unwrap();
    let titles: Vec<_> = offers.iter().map(|offer| offer.title.as_str()).collect();
    assert_eq!(titles, ["Linux", "Linux 6.1", "Linux 6.0", "Firmware"]);
    assert_eq!(offers[3].kernel, None);
}

#[test]
fn a_boot_partition_of_its_own_is_found_by_a_stub() {
    let stub = "search.fs_uuid 0c0d-boot found hd0,gpt2\nset prefix=($found)'/grub'\n\
                configfile $prefix/grub.cfg\n";
    let real = "set timeout=0\nmenuentry x { search --label --set root LABELLED\n\
                linux ($root)/vmlinuz-5 root=LABEL=r\n initrd /a.img /b.img }\n";
    let mut boot = Memory::new(BOOT, &[("grub/grub.cfg", real), ("vmlinuz-5", "k")]);
    boot.label = "LABELLED".into();
    let offer = first(vec![root(stub, &[]), boot]);
    assert_eq!(offer.kernel, Some(at(1, "/vmlinuz-5")));
    assert_eq!(offer.initrds, [at(1, "/a.img"), at(1, "/b.img")]);
    assert_eq!(offer.cmdline, "root=LABEL=r");
}

#[test]
fn entries_of_files_are_the_menu_of_fedora() {
    let config = "load_env -f ${config_directory}/grubenv kernelopts saved_entry\n\
                  set default=\"${saved_entry}\"\nblscfg\n";
    let entry = "title Fedora\nlinux /boot/vmlinuz-6\ninitrd /boot/i.img $tuned_initrd\noptions $kernelopts rhgb\n";
    let files = [
        ("boot/grub/grubenv", "kernelopts=root=UUID=9 ro\nsaved_entry=id-5\n"),
        ("boot/loader/entries/id-6.conf", entry),
        (
            "boot/loader/entries/id-5.conf",
            "title Old\nlinux /boot/vmlinuz-5\noptions $kernelopts\n",
        ),
    ];
    let offer = first(vec![root(config, &files)]);
    assert_eq!((offer.title.as_str(), offer.cmdline.as_str()), ("Old", "root=UUID=9 ro"));
    let files = &files[1..2];
    let offer = first(vec![root(config, files)]);
    assert_eq!(offer.kernel, Some(at(0, "/boot/vmlinuz-6")));
    assert_eq!((offer.initrds, offer.cmdline), (vec![at(0, "/boot/i.img")], "rhgb".into()));
}

#[test]
fn entries_of_a_boot_partition_are_found_by_its_variable() {
    let config = "search --no-floppy --fs-uuid --set=boot 0c0d-boot\nblscfg\n";
    let files = [("loader/entries/a.conf", "linux /vmlinuz\noptions x\n")];
    let offer = first(vec![root(config, &[]), Memory::new(BOOT, &files)]);
    assert_eq!((offer.kernel, offer.cmdline.as_str()), (Some(at(1, "/vmlinuz")), "x"));
}

#[test]
fn functions_loops_and_files_work() {
    let config = "function add { set list=\"$list $1\"; if [ $1 = c ]; then return 1; fi; true; }\n\
                  for x in a b c d; do if add $x; then continue; else break; fi; done\n\
                  while [ $# -gt 5 ]; do true; done\n\
                  until [ \"$n\" = xxx ]; do set n=x$n; done\n\
                  search --file /none --set other; { set y=1 }\n\
                  . $prefix/more.cfg\nset default=2\n";
    let more = "menuentry a { chainloader +1 }\nmenuentry b 1 2 { linux /k $2 $list $other $n $y$z }\n\
                menuentry c { linux (hd0,gpt1)/k2 x }\n";
    let volumes = volumes(vec![root(config, &[("boot/grub/more.cfg", more)])]);
    let offers = offers(&volumes, &at(0, "/boot/grub/grub.cfg")).unwrap().unwrap();
    assert_eq!((offers[0].title.as_str(), offers[0].cmdline.as_str()), ("c", "x"));
    assert_eq!(offers[0].kernel, Some(at(0, "/k2")));
    assert_eq!((offers[1].title.as_str(), &offers[1].kernel), ("a", &None));
    assert_eq!((offers[2].title.as_str(), offers[2].cmdline.as_str()), ("b", "2 a b c xxx 1"));
}

#[test]
fn what_never_ends_is_ended() {
    let error = |config: &str| {
        let volumes = volumes(vec![root(config, &[])]);
        offers(&volumes, &at(0, "/boot/grub/grub.cfg")).unwrap_err().to_string()
    };
    assert!(error("while true; do true; done").contains("100000 commands"));
    assert!(error("function f { f; }\nf").contains("16 files"));
    assert!(error("source /boot/grub/grub.cfg").contains("16 files"));
    assert!(error("set a=xxxxxxxx\nwhile true; do set a=$a$a; done").contains("64 KiB"));
    let many = "menuentry x { true }\n".repeat(300);
    assert!(error(&many).contains("256 menu entries"));
    let nested = "submenu x { ".repeat(40);
    assert!(error(&nested).contains("32 deep"));
}

proptest! {
    #[test]
    fn no_script_is_trusted(text in "([a-z$\\[\\]{}();=\"'\\\\ \n-]|if |then |fi |menuentry |linux |set |for |in |do |done |search |source ){0,80}") {
        let volumes = volumes(vec![root(&text, &[])]);
        let _ = offers(&volumes, &at(0, "/boot/grub/grub.cfg"));
    }

    #[test]
    fn a_changed_script_is_run_or_refused(place in 0..FULL.len(), letter in any::<char>()) {
        let mut text: Vec<char> = FULL.chars().collect();
        text[place] = letter;
        let text: String = text.into_iter().collect();
        let volumes = volumes(vec![root(&text, &[])]);
        let _ = offers(&volumes, &at(0, "/boot/grub/grub.cfg"));
    }
}
