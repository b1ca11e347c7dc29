//! Configurations in the shape that distributions write, the language, and hostile scripts.

use super::*;
use crate::boot::fixture::{BOOT_UUID, Part, ROOT_UUID, disk, esp, root};
use crate::boot::volumes::{Location, Volumes};

const DEBIAN: &[u8] = include_bytes!("../fixtures/debian.cfg");
const UBUNTU: &[u8] = include_bytes!("../fixtures/ubuntu.cfg");
const FEDORA: &[u8] = include_bytes!("../fixtures/fedora.cfg");

fn block(variables: &str) -> Vec<u8> {
    let mut block = format!("# GRUB Environment Block\n{variables}").into_bytes();
    block.resize(1024, b'#');
    block
}

/// Runs the `grub.cfg` at `path` of the first volume and boots `name`.
fn boot(
    volumes: &Volumes,
    path: &str,
    name: Option<&str>,
) -> Result<Option<(String, Outcome)>, ScriptError> {
    let mut grub = Interpreter::new(volumes);
    grub.start(&Location { volume: 0, path: path.into() })?;
    grub.boot(name)
}

/// Boots from a root partition with the given `grub.cfg` and further files.
fn boot_root(config: &[u8], files: &[(&str, &[u8])], name: Option<&str>) -> (String, Outcome) {
    let files = [&[("/boot/grub/grub.cfg", config)], files].concat();
    let volumes = Volumes::open(&disk(&[root(&files)])).unwrap();
    boot(&volumes, "/boot/grub/grub.cfg", name).unwrap().unwrap()
}

fn kernel(outcome: &Outcome) -> &str {
    &outcome.kernel.as_ref().unwrap().path
}

#[test]
fn debian_boots_the_first_entry_by_default() {
    let (title, outcome) = boot_root(DEBIAN, &[], None);
    assert_eq!(title, "Debian GNU/Linux");
    assert_eq!(kernel(&outcome), "/boot/vmlinuz-6.1.0-35-amd64");
    assert_eq!(outcome.initrds[0].path, "/boot/initrd.img-6.1.0-35-amd64");
    assert_eq!(
        outcome.cmdline,
        format!("BOOT_IMAGE=/boot/vmlinuz-6.1.0-35-amd64 root=UUID={ROOT_UUID} ro quiet")
    );
    assert_eq!(outcome.problems, [""; 0]);
}

#[test]
fn debian_entries_are_chosen_by_index_id_title_and_environment() {
    let files: &[(&str, &[u8])] = &[("/boot/grub/grub.cfg", DEBIAN)];
    let volumes = Volumes::open(&disk(&[root(files)])).unwrap();
    let chosen = |name: &str| {
        let (_, outcome) = boot(&volumes, "/boot/grub/grub.cfg", Some(name)).unwrap()?;
        Some(kernel(&outcome).to_string())
    };
    let (old, new) = ("/boot/vmlinuz-6.1.0-34-amd64", "/boot/vmlinuz-6.1.0-35-amd64");
    let (is_old, is_new) = (Some(old.to_string()), Some(new.to_string()));
    assert_eq!(chosen("1>1"), is_old);
    assert_eq!(chosen("1"), is_new);
    assert_eq!(chosen("0"), is_new);
    assert_eq!(chosen("Debian GNU/Linux"), is_new);
    let advanced = format!("gnulinux-advanced-{ROOT_UUID}");
    let recovery = format!("gnulinux-6.1.0-34-amd64-recovery-{ROOT_UUID}");
    assert_eq!(chosen(&format!("{advanced}>{recovery}")), is_old);
    assert_eq!(
        chosen(
            "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-34-amd64 (recovery mode)"
        ),
        is_old
    );
    assert_eq!(chosen("7"), None);
    assert_eq!(chosen("nothing"), None);

    let with = |environment: &str| {
        let block = block(environment);
        kernel(&boot_root(DEBIAN, &[("/boot/grub/grubenv", &block)], None).1).to_string()
    };
    assert_eq!(with(&format!("saved_entry={advanced}>{recovery}\n")), old);
    assert_eq!(with("saved_entry=0\nnext_entry=1>1\n"), old);
    assert_eq!(with("saved_entry=gone\n"), new);
    assert_eq!(with("prev_saved_entry=1>1\n"), new);
}

#[test]
fn a_custom_file_beside_the_configuration_is_sourced() {
    let custom = b"set default=mine\nmenuentry Mine --id mine { linux ($root)/vmlinuz }\n";
    let (title, outcome) = boot_root(DEBIAN, &[("/boot/grub/custom.cfg", custom)], None);
    assert_eq!((title.as_str(), kernel(&outcome)), ("Mine", "/vmlinuz"));
    assert_eq!(outcome.cmdline, "BOOT_IMAGE=(hd0,gpt1)/vmlinuz");
}

#[test]
fn ubuntu_boots_without_or_with_its_initrd() {
    let (_, outcome) = boot_root(UBUNTU, &[], None);
    assert_eq!(kernel(&outcome), "/boot/vmlinuz-6.8.0-60-generic");
    assert!(outcome.initrds.is_empty());
    assert!(
        outcome
            .cmdline
            .contains("root=PARTUUID=4ee8eee1-52e8-4a21-b6d3-97ad9dce7f32 ro console=tty1")
    );
    let block = block("initrdfail=1\n");
    let (_, outcome) = boot_root(UBUNTU, &[("/boot/grub/grubenv", &block)], None);
    let initrds: Vec<_> = outcome.initrds.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(initrds, ["/boot/microcode.cpio", "/boot/initrd.img-6.8.0-60-generic"]);
    assert!(outcome.cmdline.ends_with("console=ttyS0 vt.handoff=7"), "{}", outcome.cmdline);
}

#[test]
fn fedora_boots_the_newest_loader_entry_on_its_boot_partition() {
    let entry = |version: &str| {
        format!(
            "title Fedora Linux ({version}) 40 (Cloud Edition)\nversion {version}\n\
             linux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
             options $kernelopts $tuned_params console=tty1\ngrub_users $grub_users\n\
             grub_arg --unrestricted\ngrub_class fedora\n"
        )
    };
    let (old, new) = (entry("6.8.9-300.fc40.x86_64"), entry("6.8.10-300.fc40.x86_64"));
    let rescue = entry("0-rescue-5e0b0c4b");
    let check = |environment: &str, expected: &str, options: &str| {
        let block = block(environment);
        let files: &[(&str, &[u8])] = &[
            ("/grub2/grub.cfg", FEDORA),
            ("/grub2/grubenv", &block),
            ("/loader/entries/5e0b0c4b-6.8.9-300.fc40.x86_64.conf", old.as_bytes()),
            ("/loader/entries/5e0b0c4b-6.8.10-300.fc40.x86_64.conf", new.as_bytes()),
            ("/loader/entries/5e0b0c4b-0-rescue.conf", rescue.as_bytes()),
        ];
        let boot_part = Part { number: 2, kind: "ext4", label: "boot", uuid: BOOT_UUID, files };
        let volumes = Volumes::open(&disk(&[esp(&[]), boot_part])).unwrap();
        let (title, outcome) = boot(&volumes, "/grub2/grub.cfg", None).unwrap().unwrap();
        assert_eq!(title, format!("Fedora Linux ({expected}) 40 (Cloud Edition)"));
        let initrds: Vec<_> = outcome.initrds.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(initrds, [format!("/initramfs-{expected}.img")]);
        let image = format!("BOOT_IMAGE=(hd0,gpt2)/vmlinuz-{expected}");
        assert_eq!(outcome.cmdline, format!("{image} {options} console=tty1"));
    };
    let fallback = format!("root=UUID={ROOT_UUID} ro");
    check("", "6.8.10-300.fc40.x86_64", &fallback);
    check(
        "saved_entry=5e0b0c4b-6.8.9-300.fc40.x86_64\nkernelopts=root=/dev/vda4 ro rhgb\nboot_success=1\n",
        "6.8.9-300.fc40.x86_64",
        "root=/dev/vda4 ro rhgb",
    );
}

/// A root partition with a few files to test for, and a configuration that runs itself.
fn volumes() -> Volumes {
    let files: &[(&str, &[u8])] =
        &[("/again.cfg", b"source /again.cfg"), ("/dir/file", b"x"), ("/empty", b"")];
    Volumes::open(&disk(&[root(files)])).unwrap()
}

/// Runs a script and returns the variable `result`.
fn evaluate(volumes: &Volumes, script: &str) -> String {
    let mut grub = Interpreter::new(volumes);
    let file = Location { volume: 0, path: "/grub.cfg".into() };
    let run = grub.place(&file).and_then(|()| grub.run_text(&file, script).map(drop));
    match run {
        Ok(()) => grub.variable("result").to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_language_expands_and_branches_as_grub_does() {
    let volumes = volumes();
    let cases = [
        (r#"a='x y'; set result="$a"z"#, "x yz"),
        (r#"a='x y'; for w in $a "$a" q$a; do result="$result<$w>"; done"#, "<x><y><x y><qx><y>"),
        (r#"set result=a\ b\$c\"d"#, "a b$c\"d"),
        (r#"set result="\$a \\ \" \n""#, r#"$a \ " \n"#),
        ("set result='$a \\'", "$a \\"),
        ("a=1; result=${a}2$b", "12"),
        ("for i in 1 2 3 4; do if [ $i = 3 ]; then break; fi; result=$result$i; done", "12"),
        ("for i in 1 2 3; do if [ $i = 2 ]; then continue; fi; result=$result$i; done", "13"),
        ("i=x; while [ $i != xxxx ]; do i=${i}x; result=$result.; done", "..."),
        ("i=x; until [ $i = xxx ]; do i=${i}x; result=$result.; done", ".."),
        ("function f { result=\"$1-$2-$#-$@\"; return 1; result=no; }\nf a 'b c'", "a-b c-2-a b c"),
        ("function f { return 1; }\nif f; then result=yes; else result=no; fi", "no"),
        ("if ! false; then result=yes; fi", "yes"),
        ("false; result=$?", "1"),
        ("result=1 # comment\n#result=2", "1"),
        ("set result=a\\\nb", "ab"),
        ("result=a#b", "a#b"),
        (
            "if [ -f /dir/file -a -d /dir -a ! -e /nothing -a -s (hd0,gpt1)/dir/file ]; then result=yes; fi",
            "yes",
        ),
        ("if [ -s /empty -o -f /dir ]; then result=yes; else result=no; fi", "no"),
        (
            "if [ 10 -gt 9 -a 10 < 9 -a a != b -a ( -n x -o -n \"\" ) ]; then result=yes; fi",
            "'<' is not supported",
        ),
        (
            "if test 10 -gt 9 -a a '<' b -a a != b -a ( -n x -o -n \"\" ); then result=yes; fi",
            "yes",
        ),
        ("if [ \"\" ]; then result=yes; elif [ -z \"$none\" ]; then result=elif; fi", "elif"),
        ("if search --file /dir/file --set here; then result=$here; fi", "hd0,gpt1"),
        ("search --label --set cloudimg-rootfs; result=$root", "hd0,gpt1"),
        (
            "search.fs_uuid 6BB9B61E-7b56-4d1f-a7a4-5f7e5d5e1c01 here hd7,gpt3; result=$here",
            "hd0,gpt1",
        ),
        (
            "if search --fs-uuid --set=root 1234-5678; then result=yes; else result=$root; fi",
            "hd0,gpt1",
        ),
        ("probe --set=result --fs-uuid $root", ROOT_UUID),
        ("n=7; increment n; decrement n; decrement n; result=$n", "6"),
        ("result=$prefix$config_file", "(hd0,gpt1)(hd0,gpt1)/grub.cfg"),
        ("unknown_command; result=$?", "1"),
        ("eval 'result=e$root'", "ehd0,gpt1"),
    ];
    for (script, expected) in cases {
        let result = evaluate(&volumes, script);
        let fits = if expected.contains("supported") {
            result.ends_with(expected)
        } else {
            result == expected
        };
        assert!(fits, "{script}\n gives {result}\n not   {expected}");
    }
}

#[test]
fn broken_scripts_name_file_and_line() {
    let volumes = volumes();
    let cases = [
        ("set a=1\nmenuentry 'x' {\n linux /a\n", "line 2: a '{' that does not end"),
        ("set a=1\n}\n", "line 2: '}' without '{'"),
        ("if true; then\nset a=1\n", "expected 'fi'"),
        ("set a='\n\n", "line 1: a ' that does not end"),
        ("\nset a=\"$b", "line 2: a \" that does not end"),
        ("set a=${b", "a ${ that is no variable's name"),
        ("fi", "line 1: 'fi' out of place"),
        ("for x y; do true; done", "'for' without 'in'"),
    ];
    for (script, expected) in cases {
        let result = evaluate(&volumes, script);
        assert!(result.starts_with("/grub.cfg on partition 1"), "{script}: {result}");
        assert!(result.contains(expected), "{script}: {result}");
    }
}

#[test]
fn hostile_scripts_end() {
    let volumes = volumes();
    let nested = format!("{}true{}", "if true; then ".repeat(5000), "; fi".repeat(5000));
    let cases = [
        ("while true; do a=1; done", "more than 200000 commands"),
        ("until false; do continue; done", "more than 200000 commands"),
        ("function f { f; }\nf", "nested calls"),
        ("function f { g; }\nfunction g { f; }\nf", "nested calls"),
        ("source /again.cfg", "nested calls"),
        ("configfile /again.cfg", "nested calls"),
        ("eval eval eval 'eval $0'; a=b; while true; do a=$a$a; done", "grows beyond bounds"),
        ("a=0123456789; while true; do echo $a $a $a $a; a=$a$a; done", "grows beyond bounds"),
        ("i=0; while true; do increment i; set v$i=x; done", "grows beyond bounds"),
        ("while true; do menuentry x { true; }; done", "more than 1024 menu entries"),
        (&nested, "levels of nesting"),
    ];
    for (script, expected) in cases {
        let result = evaluate(&volumes, script);
        assert!(result.contains(expected), "{}: {result}", &script[..script.len().min(80)]);
    }
    let endless = b"submenu a { submenu b { configfile /boot/grub/grub.cfg; }; }";
    let files: &[(&str, &[u8])] = &[("/boot/grub/grub.cfg", endless)];
    let volumes = Volumes::open(&disk(&[root(files)])).unwrap();
    let error = boot(&volumes, "/boot/grub/grub.cfg", None).unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
}

#[test]
fn any_bytes_are_an_error_or_a_menu_never_a_panic() {
    let mut state = 7u32;
    let alphabet = b"${}'\"\\;\n#= []!-abif thenelsdofnutx><|&1";
    for _ in 0..3000 {
        let script: String = (0..60)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                char::from(alphabet[(state >> 16) as usize % alphabet.len()])
            })
            .collect();
        let _ = script::parse("x", &script);
    }
    // Any part of a good file, too.
    let debian = String::from_utf8_lossy(DEBIAN);
    for end in (0..debian.len()).step_by(7) {
        let _ = script::parse("x", &debian[..end]);
    }
}

#[test]
fn environment_blocks_keep_escapes_and_end_at_the_padding() {
    let variables =
        read_block(&block("a=1\nb=x\\\ny\\\\z\nkernelopts=root=/dev/vda ro\n")).unwrap();
    let expected = [("a", "1"), ("b", "x\ny\\z"), ("kernelopts", "root=/dev/vda ro")];
    let expected = expected.map(|(name, value)| (name.to_string(), value.to_string()));
    assert_eq!(variables, expected);
    assert!(read_block(b"a=1\n").is_none());
    assert_eq!(read_block(b"# GRUB Environment Block\na=1\\").unwrap().len(), 1);
}
