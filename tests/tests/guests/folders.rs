//! Folders of the host's in a guest, and a command on the host's own files.

use crate::process::{Ended, Guests, run};
use crate::{CLOUD, Test};
use std::fs;
use std::path::Path;

pub(crate) const TESTS: &[Test] = &[
    ("a_command_runs_on_the_hosts_files_and_changes_none", CLOUD, host),
    ("a_shared_folder_is_written_by_both_sides", CLOUD, share),
    ("a_folder_as_root_has_what_is_in_it", CLOUD, folder),
    ("a_thousand_files_are_walked", CLOUD, walk),
];

fn in_guest(guests: &Guests, at: &Path, flags: &[&str], script: &str) -> Ended {
    run(guests.ombra().current_dir(at).args(flags).args(["--", "sh", "-c", script]), None)
}

fn host(guests: &Guests) {
    let here = tempfile::tempdir().expect("a folder");
    let at = here.path();
    fs::write(at.join("old"), "old").expect("a file");
    fs::create_dir(at.join("rw")).expect("a folder");
    std::os::unix::fs::symlink("/etc/hostname", at.join("rw/link")).expect("a link");
    let script = "pwd; cat old; echo new >old; cat old; echo lost >lost; echo kept >rw/kept; echo $A-$B-$C; \
                  cat rw/link >&2; ls /proc/self/exe; exit 5";
    let ended =
        in_guest(guests, at, &["--root", "host", "--rw", "rw", "-e", "A=1 2", "-e", "B", "-e", "C"], script);
    let text = ended.text();
    let place = at.canonicalize().expect("a folder").display().to_string();
    assert!(text.starts_with(&format!("{place}\noldnew\n1 2--\n")), "{text}{}", ended.stderr);
    assert_eq!(ended.status, Some(5), "{}", ended.stderr);
    assert_eq!(ended.stderr, fs::read_to_string("/etc/hostname").unwrap_or_default());
    assert_eq!(fs::read_to_string(at.join("old")).expect("a file"), "old");
    assert!(!at.join("lost").exists());
    assert_eq!(fs::read_to_string(at.join("rw/kept")).expect("a file"), "kept\n");
}

fn share(guests: &Guests) {
    let here = tempfile::tempdir().expect("a folder");
    fs::create_dir(here.path().join("a")).expect("a folder");
    fs::create_dir(here.path().join("b")).expect("a folder");
    let all: Vec<u8> = (0..3u32 << 18).flat_map(|number| number.wrapping_mul(40_503).to_le_bytes()).collect();
    fs::write(here.path().join("a/in"), &all).expect("a file");
    let script = "cp /mnt/a/in /mnt/a/out && mkdir /mnt/a/d && mv /mnt/a/out /mnt/a/d && chmod 700 /mnt/a/d/out && \
                  ln -s nowhere /mnt/a/l && : >>/mnt/a/in && truncate -s 5 /mnt/a/in && stat -c %u /mnt/a/in; \
                  touch /mnt/other/x || echo read-only; ls /mnt/other/..; ls -d /mnt/a/../../b";
    let ended = in_guest(
        guests,
        here.path(),
        &["--root", "busybox", "--share", "a", "--share", "b:other,ro"],
        script,
    );
    assert_eq!(ended.text(), "0\nread-only\na\nother\n", "{}", ended.stderr);
    assert!(fs::read(here.path().join("a/d/out")).expect("a file") == all, "{}", ended.stderr);
    assert_eq!(fs::read(here.path().join("a/in")).expect("a file"), all[..5]);
    assert_eq!(fs::read_link(here.path().join("a/l")).expect("a link"), Path::new("nowhere"));
}

fn folder(guests: &Guests) {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir(root.path().join("bin")).expect("a folder");
    fs::copy(guests.file("busybox"), root.path().join("bin/sh")).expect("busybox");
    fs::write(root.path().join("here"), "yes\n").expect("a file");
    let flags = ["--root", root.path().to_str().expect("UTF-8")];
    let ended = in_guest(
        guests,
        Path::new("/"),
        &flags,
        "cat /here; ls /; ps | grep -c sh; cd /tmp; echo x >x; cat x",
    );
    let text = ended.text();
    assert!(text.starts_with("yes\n") && text.ends_with("x\n"), "{text}{}", ended.stderr);
    assert!(text.contains("here\n") && !text.contains("home\n"), "{text}");
}

/// Twice, and by names and contents.
fn walk(guests: &Guests) {
    let here = tempfile::tempdir().expect("a folder");
    for number in 0..1000 {
        fs::write(here.path().join(number.to_string()), "x").expect("a file");
    }
    let script = format!(
        "ulimit -n 4000; exec '{}' run --engine {} --root busybox --share '{}:many' -- sh -c \
         'cat /mnt/many/* | wc -c; ls -l /mnt/many | wc -l; cat /mnt/many/* | wc -c'",
        guests.binary.display(),
        guests.engine,
        here.path().display()
    );
    let cache = guests.folder.parent().unwrap_or(Path::new("/"));
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).env("OMBRA_CACHE", cache).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ended = run(&mut command, None);
    let words: Vec<String> = ended.text().split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["1000", "1001", "1000"], "{}", ended.stderr);
}
