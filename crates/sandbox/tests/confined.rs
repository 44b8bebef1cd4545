//! What a thread that somebody has taken over can still do in a confined process. Each test is a process of its own, since there is no way back: this
//! program starts itself with the test's name in `CONFINED`.

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sandbox::{Needs, SandboxError, Sockets};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::thread;

const NAME: &str = "CONFINED";
const FOLDER: &str = "CONFINED_FOLDER";
/// A kernel without Landlock.
const SKIPPED: u8 = 77;

type Case = (&'static str, fn(&Path));

const CASES: &[Case] = &[
    ("a_worker_opens_the_files_of_the_needs_and_no_other", opens),
    ("a_worker_that_was_there_before_starts_no_program", programs),
    ("sockets_are_those_of_the_needs", sockets),
    ("what_is_open_and_what_an_engine_does_goes_on", goes_on),
    ("who_manages_files_does_so_in_the_folder_of_the_needs", manages),
];

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(NAME) {
        let (_, case) = CASES.iter().find(|(case, _)| name == *case).expect("a case");
        case(&PathBuf::from(std::env::var_os(FOLDER).expect("a folder")));
        return ExitCode::SUCCESS;
    }
    let trials = CASES.iter().map(|(name, _)| Trial::test(*name, move || alone(name))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs one case in a process.
fn alone(name: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("needed"), "needed")?;
    fs::write(folder.path().join("other"), "other")?;
    let output =
        Command::new(std::env::current_exe()?).env(NAME, name).env(FOLDER, folder.path()).output()?;
    if output.status.code() == Some(i32::from(SKIPPED)) {
        eprintln!("SKIPPED {name}: this kernel has no Landlock");
        return Ok(());
    }
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

/// As a machine is set up: files first, then threads, then calls. The thread does what it is told when all is done.
fn confined<R: Send + 'static>(needs: &Needs, does: impl FnOnce() -> R + Send + 'static) -> R {
    match sandbox::files(needs) {
        Ok(_) => {}
        Err(SandboxError::NoLandlock) => std::process::exit(i32::from(SKIPPED)),
        Err(error) => panic!("{error}"),
    }
    let (go, wait) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        wait.recv().expect("told");
        does()
    });
    sandbox::calls(needs).expect("confined");
    go.send(()).expect("alive");
    worker.join().expect("it ends by itself")
}

/// Every way to open a file there is.
fn any_open(path: &Path, flags: OFlags) -> Vec<Result<(), Errno>> {
    let folder = path.parent().expect("a folder");
    let name = path.file_name().expect("a name");
    let mode = Mode::RUSR | Mode::WUSR;
    let through =
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("O_PATH is free");
    let looked = rustix::fs::open(path, OFlags::PATH, Mode::empty());
    let mut all = vec![
        rustix::fs::open(path, flags, mode).map(drop),
        rustix::fs::openat(&through, name, flags, mode).map(drop),
        rustix::fs::openat2(&through, name, flags, Mode::empty(), rustix::fs::ResolveFlags::BENEATH)
            .map(drop),
    ];
    if let Ok(looked) = looked {
        use std::os::fd::AsRawFd;
        let again = format!("/proc/self/fd/{}", looked.as_raw_fd());
        all.push(rustix::fs::open(again, flags, Mode::empty()).map(drop));
    }
    all
}

fn opens(folder: &Path) {
    let (needed, other, made) = (folder.join("needed"), folder.join("other"), folder.join("made"));
    let outside = folder.join("new");
    let mut needs = sandbox::own();
    needs.add(Needs { read: vec![needed.clone()], make: vec![made.clone()], ..Needs::default() });
    let refused =
        |results: Vec<Result<(), Errno>>| results.iter().all(|result| *result == Err(Errno::ACCESS));
    confined(&needs, move || {
        assert!(any_open(&needed, OFlags::RDONLY).iter().all(Result::is_ok));
        assert!(refused(any_open(&needed, OFlags::WRONLY)), "read only");
        assert!(refused(any_open(&other, OFlags::RDONLY)));
        assert!(refused(any_open(&other, OFlags::RDWR)));
        assert!(refused(any_open(Path::new("/etc/passwd"), OFlags::RDONLY)));
        assert!(refused(any_open(Path::new("/proc/1/status"), OFlags::RDONLY)));
        assert_eq!(
            rustix::fs::open(&outside, OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).map(drop),
            Err(Errno::ACCESS)
        );
        assert!(fs::remove_file(&other).is_err() && fs::rename(&other, &outside).is_err());
        assert!(fs::hard_link(&other, folder_of(&needed).join("link")).is_err());
        assert!(std::os::unix::fs::symlink(&other, folder_of(&needed).join("link")).is_err());
        assert!(fs::read_dir(folder_of(&needed)).is_err(), "not even what there is");
        File::create(&made).and_then(|mut file| file.write_all(b"made")).expect("made");
        assert!(fs::read_to_string("/proc/self/status").expect("its own").contains("Seccomp:\t2"));
        // A thread that is started later is confined as well.
        thread::spawn(move || assert!(refused(any_open(&other, OFlags::RDONLY)))).join().expect("refused");
    });
}

fn folder_of(path: &Path) -> &Path {
    path.parent().expect("a folder")
}

fn programs(_: &Path) {
    // Files are free where programs are started, calls aren't.
    let needs = Needs { programs: true, ..Needs::default() };
    assert!(!sandbox::files(&needs).expect("nothing to do"));
    confined(&needs, || {
        for program in ["/bin/true", "/bin/sh"] {
            assert!(Command::new(program).status().is_err(), "{program}");
        }
        assert!(!Path::new("/proc/self/fd").read_dir().expect("readable").collect::<Vec<_>>().is_empty());
    });
    assert!(Command::new("/bin/true").status().is_err(), "nor the thread that asked for it");
    let status = fs::read_dir("/proc/self/task").expect("threads").flatten().all(|task| {
        fs::read_to_string(task.path().join("status")).is_ok_and(|text| text.contains("Seccomp:\t2"))
    });
    assert!(status, "all threads");
}

fn sockets(folder: &Path) {
    let path = folder.join("socket");
    let listener = UnixListener::bind(&path).expect("bound");
    confined(&Needs { sockets: Sockets::Unix, ..Needs::default() }, move || {
        let _stream = UnixStream::connect(&path).expect("connected");
        listener.accept().expect("accepted");
        assert!(TcpListener::bind("127.0.0.1:0").is_err());
        assert!(UdpSocket::bind("127.0.0.1:0").is_err());
    });
}

fn goes_on(folder: &Path) {
    let file = File::options().read(true).write(true).open(folder.join("needed")).expect("opened");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    confined(&Needs::default(), move || {
        file.write_all_at(b"more", 2).expect("written");
        let mut text = String::new();
        (&file).read_to_string(&mut text).expect("read");
        assert_eq!(text, "nemore");
        file.sync_data().expect("flushed");
        writer.write_all(b"x").expect("written");
        reader.read_exact(&mut [0]).expect("read");
        // Memory, signals to itself, clocks, threads.
        let bytes: Vec<u8> = vec![1; 64 << 20];
        assert_eq!(
            thread::spawn(move || bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())
                .join()
                .expect("summed"),
            64 << 20
        );
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT)
            .expect("told");
        thread::sleep(std::time::Duration::from_millis(1));
        rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).expect("made");
        // But no new sockets, and the one that is there stays.
        assert!(TcpListener::bind("127.0.0.1:0").is_err());
        assert!(listener.local_addr().is_ok());
        assert!(listener.set_nonblocking(true).is_ok() && listener.accept().is_err());
    });
}

fn manages(folder: &Path) {
    let inside = folder.join("inside");
    fs::create_dir(&inside).expect("made");
    let needs = Needs { write: vec![inside.clone()], manages_files: true, ..Needs::default() };
    let other = folder.join("other");
    confined(&needs, move || {
        fs::write(inside.join("a"), "text").expect("written");
        fs::rename(inside.join("a"), inside.join("b")).expect("renamed");
        fs::set_permissions(inside.join("b"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("changed");
        std::os::unix::fs::symlink(&other, inside.join("way")).expect("made");
        assert!(File::open(inside.join("way")).is_err(), "a link leads nowhere else");
        assert!(File::open(inside.join("../other")).is_err());
        assert!(fs::rename(inside.join("b"), &other).is_err());
        fs::remove_file(inside.join("b")).expect("removed");
    });
}
