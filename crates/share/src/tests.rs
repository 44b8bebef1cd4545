//! Requests by hand, as a guest's kernel sends them, and as it would not.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

// Requests (include/uapi/linux/fuse.h, `fuse_opcode`).
const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIRPLUS: u32 = 44;
const CREATE: u32 = 35;

const ROOT: u64 = 1;

struct Guest {
    session: Session,
    folder: TempDir,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn message(what: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[40 + body.len() as u32, what]);
    bytes.extend(7u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

impl Guest {
    fn new(read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            folder: folder.path().to_owned(),
            read_only,
            believe: Duration::from_secs(1),
            is_still: false,
        };
        Self::with(Share::open(&options).unwrap(), folder)
    }

    fn with(share: Share, folder: TempDir) -> Self {
        let mut guest = Self { session: Session::new(&Arc::new(share)).unwrap(), folder };
        guest.ask(INIT, 0, &words(&[7, 36, 1 << 17, 0])).unwrap();
        guest
    }

    /// The answer, or the error's number.
    fn ask(&mut self, what: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let mut answer = Vec::new();
        self.session.answer(&message(what, node, body), 1 << 16, &mut answer);
        assert!(answer.len() >= 16, "no answer to {what}");
        let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
        if error == 0 { Ok(answer.split_off(16)) } else { Err(-error) }
    }

    fn lookup(&mut self, parent: u64, text: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, parent, &name(text))?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    /// Opens and reads 100 bytes.
    fn read(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let opened = self.ask(OPEN, node, &words(&[0, 0]))?;
        let mut body = opened[..8].to_vec();
        body.extend(0u64.to_le_bytes());
        body.extend(words(&[100, 0, 0, 0, 0, 0]));
        let read = self.ask(READ, node, &body);
        let body = [opened[..8].to_vec(), vec![0; 16]].concat();
        self.ask(RELEASE, node, &body).unwrap();
        read
    }

    fn path(&self, text: &str) -> PathBuf {
        self.folder.path().join(text)
    }
}

#[test]
fn a_file_is_found_by_its_name_and_read() {
    let mut guest = Guest::new(true);
    fs::create_dir(guest.path("d")).unwrap();
    fs::write(guest.path("d/file"), "contents").unwrap();
    let folder = guest.lookup(ROOT, "d").unwrap();
    let file = guest.lookup(folder, "file").unwrap();
    assert_eq!(guest.read(file).unwrap(), b"contents");
    assert_eq!(guest.lookup(ROOT, "file"), Err(libc::ENOENT));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut guest = Guest::new(false);
    fs::create_dir(guest.path("d")).unwrap();
    let folder = guest.lookup(ROOT, "d").unwrap();
    for node in [ROOT, folder] {
        for text in ["..", ".", "", "/etc", "../x", "d/.."] {
            assert_eq!(guest.lookup(node, text), Err(libc::EINVAL), "{text}");
            let body = [words(&[0o755, 0]), name(text)].concat();
            assert_eq!(guest.ask(MKDIR, node, &body), Err(libc::EINVAL), "{text}");
            assert_eq!(guest.ask(UNLINK, node, &name(text)), Err(libc::EINVAL), "{text}");
            let body = [ROOT.to_le_bytes().to_vec(), name(text), name("there")].concat();
            assert_eq!(guest.ask(RENAME, node, &body), Err(libc::EINVAL), "{text}");
            let body = [words(&[libc::O_RDWR as u32, 0o644, 0, 0]), name(text)].concat();
            assert_eq!(guest.ask(CREATE, node, &body), Err(libc::EINVAL), "{text}");
        }
    }
}

#[test]
fn a_folder_that_is_moved_away_leads_no_further_than_itself() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let mut guest = Guest::new(false);
    fs::create_dir(guest.path("d")).unwrap();
    let folder = guest.lookup(ROOT, "d").unwrap();
    fs::rename(guest.path("d"), outside.path().join("d")).unwrap();
    assert_eq!(guest.lookup(folder, ".."), Err(libc::EINVAL));
    assert_eq!(guest.lookup(folder, "secret"), Err(libc::ENOENT));
}

#[test]
fn links_are_told_and_never_followed() {
    let mut guest = Guest::new(false);
    symlink("/etc", guest.path("folder")).unwrap();
    symlink("/etc/passwd", guest.path("file")).unwrap();
    let file = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(guest.ask(READLINK, file, &[]).unwrap(), b"/etc/passwd");
    assert_eq!(guest.read(file), Err(libc::EBADF));
    let folder = guest.lookup(ROOT, "folder").unwrap();
    assert_eq!(guest.lookup(folder, "passwd"), Err(libc::ENOTDIR));
    assert!(guest.ask(OPENDIR, folder, &words(&[0, 0])).is_err());
    let body = [words(&[libc::O_RDWR as u32, 0o644, 0, 0]), name("file")].concat();
    assert_eq!(guest.ask(CREATE, ROOT, &body), Err(libc::EBADF));
}

#[test]
fn a_folder_that_changes_into_a_link_all_the_time_is_never_followed_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "outside").unwrap();
    let mut guest = Guest::new(false);
    fs::create_dir(guest.path("d")).unwrap();
    fs::write(guest.path("d/file"), "inside").unwrap();
    symlink(outside.path(), guest.path("l")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, root) = (Arc::clone(&stop), guest.folder.path().to_owned());
        move || {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, root.join("d"), CWD, root.join("l"), RenameFlags::EXCHANGE).unwrap();
            }
        }
    });
    let mut inside = 0;
    for _ in 0..20_000 {
        let found = guest.lookup(ROOT, "d").and_then(|folder| guest.lookup(folder, "file"));
        match found.and_then(|file| guest.read(file)) {
            Ok(contents) => {
                assert_eq!(contents, b"inside");
                inside += 1;
            }
            Err(number) => assert!([libc::ENOTDIR, libc::ENOENT, libc::ENFILE].contains(&number), "{number}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(inside > 0);
}

#[test]
fn what_is_shared_read_only_stays_as_it_is() {
    let mut guest = Guest::new(true);
    fs::write(guest.path("file"), "contents").unwrap();
    let file = guest.lookup(ROOT, "file").unwrap();
    let rdwr = libc::O_RDWR as u32;
    let attempts = [
        (OPEN, file, words(&[rdwr, 0])),
        (OPEN, file, words(&[libc::O_TRUNC as u32, 0])),
        (CREATE, ROOT, [words(&[rdwr, 0o644, 0, 0]), name("new")].concat()),
        (MKDIR, ROOT, [words(&[0o755, 0]), name("new")].concat()),
        (MKNOD, ROOT, [words(&[libc::S_IFREG | 0o644, 0, 0, 0]), name("new")].concat()),
        (SYMLINK, ROOT, [name("new"), name("target")].concat()),
        (LINK, ROOT, [file.to_le_bytes().to_vec(), name("new")].concat()),
        (UNLINK, ROOT, name("file")),
        (RMDIR, ROOT, name("file")),
        (RENAME, ROOT, [ROOT.to_le_bytes().to_vec(), name("file"), name("new")].concat()),
        (SETATTR, file, [words(&[1, 0]), vec![0; 80]].concat()),
    ];
    for (what, node, body) in attempts {
        assert_eq!(guest.ask(what, node, &body), Err(libc::EROFS), "{what}");
    }
    assert_eq!(fs::read_dir(guest.folder.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(guest.path("file")).unwrap(), "contents");
}

#[test]
fn devices_are_not_made_and_pipes_not_waited_for() {
    let mut guest = Guest::new(false);
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let body = [words(&[kind | 0o600, 0x103, 0, 0]), name("device")].concat();
        assert_eq!(guest.ask(MKNOD, ROOT, &body), Err(libc::EPERM));
    }
    let body = [words(&[libc::S_IFIFO | 0o600, 0, 0, 0]), name("pipe")].concat();
    guest.ask(MKNOD, ROOT, &body).unwrap();
    let pipe = guest.lookup(ROOT, "pipe").unwrap();
    assert_eq!(guest.read(pipe), Err(libc::EBADF));
}

#[test]
fn modes_are_the_guests_whatever_the_hosts_umask() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let ours = tempfile::tempdir().unwrap();
    fs::create_dir(ours.path().join("before")).unwrap();
    std::thread::spawn(move || {
        let mut guest = Guest::new(false);
        let body = [words(&[0o777, 0]), name("d")].concat();
        guest.ask(MKDIR, ROOT, &body).unwrap();
        assert_eq!(mode(&guest.path("d")), 0o777);
    })
    .join()
    .unwrap();
    // Only for the thread that serves the guest.
    fs::create_dir(ours.path().join("after")).unwrap();
    assert_eq!(mode(&ours.path().join("before")), mode(&ours.path().join("after")));
}

#[test]
fn few_descriptors_make_the_guest_forget_and_at_last_stop() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..500 {
        fs::write(folder.path().join(format!("{number:03}")), "").unwrap();
    }
    let options = Options {
        folder: folder.path().to_owned(),
        read_only: true,
        believe: Duration::from_secs(1),
        is_still: false,
    };
    let mut confined = Confined::new(&options, folder.path().to_str().unwrap().to_owned()).unwrap();
    confined.limit_descriptors(400);
    let file = File::open(folder.path()).unwrap();
    let share = Share { server: Server::new(confined), name: String::new(), _folder: file };
    let mut guest = Guest::with(share, folder);
    let mut seconds = Vec::new();
    let mut refused = None;
    for number in 0..500 {
        match guest.ask(LOOKUP, ROOT, &name(&format!("{number:03}"))) {
            Ok(entry) => seconds.push(u64::from_le_bytes(entry[16..24].try_into().unwrap())),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert_eq!((seconds[0], *seconds.last().unwrap()), (1, 0));
    assert_eq!(refused, Some(libc::ENFILE));
}

#[test]
fn requests_that_lie_get_no_answer_or_an_error() {
    let mut guest = Guest::new(false);
    let mut answer = vec![1];
    for len in [0, 1, 39, 41, 1 << 20, u32::MAX] {
        let mut bytes = message(LOOKUP, ROOT, &[]);
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        guest.session.answer(&bytes, 1 << 16, &mut answer);
        assert!(answer.is_empty() || answer[4..8] != [0; 4], "{len}: {answer:?}");
    }
    for len in [0, 4, 39] {
        guest.session.answer(&vec![0xff; len], 1 << 16, &mut answer);
        assert!(answer.is_empty());
    }
    // No room at all, or too little.
    for room in [0, 1, 16, 20] {
        guest.session.answer(&message(LOOKUP, ROOT, &name("x")), room, &mut answer);
        assert!(answer.len() <= room);
    }
    assert!(guest.ask(OPENDIR, 99, &words(&[0, 0])).is_err());
    assert!(guest.ask(READDIRPLUS, ROOT, &[0xff; 40]).is_err());
    assert!(guest.ask(9999, ROOT, &[]).is_err());
}
