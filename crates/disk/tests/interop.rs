//! Images and encrypted disks of other programs, read and written here, and the other way round: `qemu-img` and `qemu-io`, `cryptsetup`, `nbdkit`,
//! `qemu-nbd`. A program that isn't installed makes its tests say so.

use crypt::luks::{self, Version};
use crypt::secret::Source;
use crypt::sectors::Spec;
use crypt::{Creation, Method, Secret};
use disk::make::{self, New};
use disk::{DiskError, Encryption, Format, Image, Layer, Sector};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// What the tests' disks have.
const BYTES: u64 = 8 * MIB;
const PASSPHRASE: &[u8] = b"open sesame\nand more";
const CANARY: &[u8] = b"yellow, feathery and in clear text";

/// Whether all programs are there; says what isn't.
fn there(programs: &[&str]) -> bool {
    programs.iter().all(|program| {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Err(error) = &found {
            eprintln!("SKIPPED: {program}: {error}");
        }
        found.is_ok()
    })
}

/// Runs a program, which has to succeed.
#[track_caller]
fn run(folder: &TempDir, program: &str, arguments: &[&str]) -> String {
    let mut output = once(folder, program, arguments);
    // QEMU measures how long deriving a key takes, and gives up where that was too short.
    for _ in 0..20 {
        if !String::from_utf8_lossy(&output.stderr).contains("accurate CPU usage") {
            break;
        }
        output = once(folder, program, arguments);
    }
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn once(folder: &TempDir, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder.path()).stdin(Stdio::null()).output().expect("it starts")
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("key"), PASSPHRASE).expect("written");
    folder
}

/// Random-looking bytes with the canary in each MiB.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes: Vec<u8> = (0..BYTES)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    for place in bytes.chunks_mut(MIB as usize) {
        place[5000..][..CANARY.len()].copy_from_slice(CANARY);
        place[100_000..500_000].fill(0);
    }
    bytes
}

fn shows(path: &Path) -> bool {
    fs::read(path).expect("read").windows(CANARY.len()).any(|window| window == CANARY)
}

fn key(folder: &TempDir) -> Source {
    Source::File(folder.path().join("key"))
}

fn secret() -> Secret {
    Secret::copy(PASSPHRASE).expect("memory")
}

fn luks(folder: &TempDir, name: &str) -> Image {
    let encryption = Encryption::Sectors { method: Method::Luks, key: key(folder) };
    Image { encryption: Some(encryption), ..Image::new(folder.path().join(name)) }
}

fn all(layer: &dyn Layer) -> Vec<u8> {
    let mut bytes = vec![0; (layer.info().sectors * 512) as usize];
    for (number, piece) in bytes.chunks_mut(256 << 10).enumerate() {
        layer.read(Sector(number as u64 * 512), piece).expect("read");
    }
    bytes
}

fn put(layer: &dyn Layer, bytes: &[u8]) {
    for (number, piece) in bytes.chunks(256 << 10).enumerate() {
        layer.write(Sector(number as u64 * 512), piece).expect("written");
    }
    layer.flush().expect("flushed");
}

fn open(image: &Image) -> Arc<dyn Layer> {
    disk::open(image).expect("opened")
}

/// What qemu-img makes of a LUKS1 image's contents.
fn through_qemu(folder: &TempDir, options: &str) -> Vec<u8> {
    let object = "secret,id=s,file=key";
    run(
        folder,
        "qemu-img",
        &[
            "convert",
            "--object",
            object,
            "--image-opts",
            &format!("driver=luks,key-secret=s,{options}"),
            "-O",
            "raw",
            "through",
        ],
    );
    fs::read(folder.path().join("through")).expect("read")
}

fn new(folder: &TempDir, name: &str, format: Format, encryption: Option<Creation>) -> New {
    New {
        file: folder.path().join(name),
        format,
        bytes: BYTES,
        old: false,
        backing: None,
        encryption,
        replace: false,
    }
}

fn quick(version: Version) -> luks::Creation {
    luks::Creation {
        effort: Duration::from_millis(20),
        memory: (version == Version::Two).then_some(4096),
        ..luks::Creation::new(version)
    }
}

#[test]
fn luks1_disks_of_qemu_are_read_and_written() {
    if !there(&["qemu-img"]) {
        return;
    }
    for options in [
        "iter-time=10",
        "iter-time=10,cipher-alg=aes-128,hash-alg=sha1",
        "iter-time=10,cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
        "iter-time=10,cipher-alg=serpent-256,cipher-mode=xts,ivgen-alg=plain64",
        "iter-time=10,cipher-alg=twofish-256,cipher-mode=xts,ivgen-alg=plain",
    ] {
        let folder = folder();
        let bytes = pattern(3);
        fs::write(folder.path().join("clear"), &bytes).expect("written");
        let object = "secret,id=s,file=key";
        let options = format!("key-secret=s,{options}");
        run(
            &folder,
            "qemu-img",
            &["convert", "--object", object, "-O", "luks", "-o", &options, "clear", "disk"],
        );
        let layer = open(&luks(&folder, "disk"));
        assert!(all(&*layer) == bytes, "{options}: read");
        let bytes = pattern(4);
        put(&*layer, &bytes);
        drop(layer);
        assert!(through_qemu(&folder, "file.filename=disk") == bytes, "{options}: written");
        assert!(!shows(&folder.path().join("disk")), "{options}");
    }
}

#[test]
fn luks_disks_of_cryptsetup_open_and_theirs_read_ours() {
    if !there(&["cryptsetup", "qemu-img"]) {
        return;
    }
    let luks1: &[&[&str]] = &[
        &["--type", "luks1", "--iter-time", "10"],
        &["--type", "luks1", "--iter-time", "10", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"],
        &["--type", "luks1", "--iter-time", "10", "--hash", "sha512", "--key-size", "256"],
    ];
    let luks2: &[&[&str]] = &[
        &["--type", "luks2", "--pbkdf-memory", "4096", "--pbkdf-force-iterations", "4"],
        &["--type", "luks2", "--pbkdf", "argon2i", "--pbkdf-memory", "4096", "--pbkdf-force-iterations", "4"],
        &["--type", "luks2", "--pbkdf", "pbkdf2", "--iter-time", "10", "--sector-size", "512"],
    ];
    for arguments in luks1.iter().chain(luks2) {
        let folder = folder();
        let file = fs::File::create(folder.path().join("disk")).expect("made");
        file.set_len(BYTES + 16 * MIB).expect("room");
        let mut words = vec!["luksFormat", "--batch-mode", "--key-file", "key", "disk"];
        words.extend(*arguments);
        run(&folder, "cryptsetup", &words);
        let layer = open(&luks(&folder, "disk"));
        let mut bytes = pattern(5);
        bytes.resize((layer.info().sectors * 512) as usize, 7);
        put(&*layer, &bytes);
        drop(layer);
        assert!(!shows(&folder.path().join("disk")), "{arguments:?}");
        run(&folder, "cryptsetup", &["open", "--test-passphrase", "--key-file", "key", "disk"]);
        // Only LUKS1 has another reader here; what can be converted to it is.
        let is_luks1 = arguments[1] == "luks1";
        if !is_luks1 && arguments.contains(&"pbkdf2") {
            run(&folder, "cryptsetup", &["convert", "--batch-mode", "--type", "luks1", "disk"]);
        }
        if is_luks1 || arguments.contains(&"pbkdf2") {
            assert!(through_qemu(&folder, "file.filename=disk") == bytes, "{arguments:?}");
        }
        assert!(all(&*open(&luks(&folder, "disk"))) == bytes, "{arguments:?}");
    }
}

#[test]
fn luks_disks_made_here_are_opened_by_cryptsetup_and_qemu() {
    if !there(&["cryptsetup", "qemu-img"]) {
        return;
    }
    let pbkdf2 = luks::Creation { memory: None, ..quick(Version::Two) };
    let large = luks::Creation { sector_bytes: 4096, ..quick(Version::Two) };
    let serpent =
        luks::Creation { spec: "serpent-xts-plain64".parse().expect("known"), ..quick(Version::One) };
    let bytes = pattern(6);
    for creation in [quick(Version::One), serpent, quick(Version::Two), pbkdf2.clone(), large] {
        let folder = folder();
        let layer = make::create(
            &new(&folder, "disk", Format::Raw, Some(Creation::Luks(creation.clone()))),
            Some(&secret()),
        )
        .expect("made");
        put(&*layer, &bytes);
        drop(layer);
        assert!(!shows(&folder.path().join("disk")));
        let is_luks1 = creation.version == Version::One;
        let kind = if is_luks1 { "luks1" } else { "luks2" };
        run(&folder, "cryptsetup", &["isLuks", "--type", kind, "disk"]);
        // Key slots of other ciphers need the kernel's, which not every host has.
        if creation.spec == Spec::AES_XTS {
            run(&folder, "cryptsetup", &["open", "--test-passphrase", "--key-file", "key", "disk"]);
            // Key slots of theirs beside ours.
            fs::write(folder.path().join("second"), "another").expect("written");
            run(
                &folder,
                "cryptsetup",
                &[
                    "luksAddKey",
                    "--batch-mode",
                    "--key-file",
                    "key",
                    "--pbkdf",
                    "pbkdf2",
                    "--pbkdf-force-iterations",
                    "1000",
                    "disk",
                    "second",
                ],
            );
            run(&folder, "cryptsetup", &["luksRemoveKey", "--batch-mode", "disk", "key"]);
            fs::write(folder.path().join("key"), "another").expect("written");
        }
        if creation == pbkdf2 {
            run(&folder, "cryptsetup", &["convert", "--batch-mode", "--type", "luks1", "disk"]);
        }
        if is_luks1 || creation == pbkdf2 {
            assert!(through_qemu(&folder, "file.filename=disk") == bytes, "{creation:?}");
        }
        assert!(all(&*open(&luks(&folder, "disk"))) == bytes, "{creation:?}");
    }
}

/// cryptsetup encrypts and decrypts files itself, without the kernel's device mapper: the only other reader of LUKS2's data here.
#[test]
fn cryptsetups_own_encryption_of_a_file_is_read_and_ours_undone() {
    if !there(&["cryptsetup"]) {
        return;
    }
    for sector in ["512", "4096"] {
        let folder = folder();
        let bytes = pattern(8);
        let mut longer = bytes.clone();
        longer.resize((BYTES + 32 * MIB) as usize, 0);
        fs::write(folder.path().join("disk"), &longer).expect("written");
        let words = [
            "reencrypt",
            "--encrypt",
            "--batch-mode",
            "--type",
            "luks2",
            "--force-offline-reencrypt",
            "--key-file",
            "key",
            "--reduce-device-size",
            "32M",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--sector-size",
            sector,
            "disk",
        ];
        let output =
            Command::new("cryptsetup").args(words).current_dir(folder.path()).output().expect("it starts");
        if !output.status.success() {
            // It wants the kernel's ciphers, which containers may lack.
            eprintln!("SKIPPED: cryptsetup reencrypt: {}", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        let layer = open(&luks(&folder, "disk"));
        assert!(all(&*layer)[..bytes.len()] == bytes, "sectors of {sector}");
        drop(layer);
        assert!(!shows(&folder.path().join("disk")));
    }
}

#[test]
fn luks_in_qcow2_is_what_qemu_has() {
    if !there(&["qemu-img"]) {
        return;
    }
    let folder = folder();
    let bytes = pattern(9);
    let creation = Creation::Luks(quick(Version::One));
    let layer = make::create(&new(&folder, "disk.qcow2", Format::Qcow2, Some(creation)), Some(&secret()))
        .expect("made");
    put(&*layer, &bytes);
    drop(layer);
    run(&folder, "qemu-img", &["check", "disk.qcow2"]);
    assert!(through_qemu(&folder, "file.driver=qcow2,file.file.filename=disk.qcow2") == bytes);
    assert!(!shows(&folder.path().join("disk.qcow2")));
    // An overlay over it is encrypted with it.
    let backing = Some((PathBuf::from("disk.qcow2"), Format::Qcow2));
    let over = New { bytes: BYTES + 2 * MIB, backing, ..new(&folder, "over.qcow2", Format::Qcow2, None) };
    drop(make::create(&over, None).expect("made"));
    let layer = open(&luks(&folder, "over.qcow2"));
    assert!(all(&*layer) == bytes);
    let other = pattern(10);
    put(&*layer, &other);
    drop(layer);
    assert!(through_qemu(&folder, "file.driver=qcow2,file.file.filename=over.qcow2") == other);
    assert!(all(&*open(&luks(&folder, "disk.qcow2"))) == bytes && !shows(&folder.path().join("over.qcow2")));
    // What qcow2 itself encrypts is refused with a reason.
    run(
        &folder,
        "qemu-img",
        &[
            "create",
            "--object",
            "secret,id=s,file=key",
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "own.qcow2",
            "8M",
        ],
    );
    let error = disk::open(&Image::new(folder.path().join("own.qcow2"))).err().expect("refused");
    let reason = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(reason.contains("qcow2's own way"), "{reason}");
}

#[test]
fn qcow2_images_of_qemu_are_read_and_written() {
    if !there(&["qemu-img"]) {
        return;
    }
    let bytes = pattern(11);
    for (name, options, compressed) in [
        ("v2", "compat=0.10", false),
        ("v3", "compat=1.1", false),
        ("lazy", "compat=1.1,lazy_refcounts=on,cluster_size=4k", false),
        ("compressed2", "compat=0.10", true),
        ("compressed3", "compat=1.1", true),
    ] {
        let folder = folder();
        fs::write(folder.path().join("clear"), &bytes).expect("written");
        let mut words = vec!["convert", "-O", "qcow2", "-o", options];
        words.extend(compressed.then_some("-c"));
        words.extend(["clear", "disk.qcow2"]);
        run(&folder, "qemu-img", &words);
        let image = Image::new(folder.path().join("disk.qcow2"));
        let layer = open(&image);
        assert!(all(&*layer) == bytes, "{name}: read");
        let mut changed = bytes.clone();
        changed[300_032..700_416].fill(9);
        layer.write(Sector(586), &changed[586 * 512..1368 * 512]).expect("written");
        layer.flush().expect("flushed");
        drop(layer);
        run(&folder, "qemu-img", &["check", "disk.qcow2"]);
        run(&folder, "qemu-img", &["convert", "-O", "raw", "disk.qcow2", "through"]);
        assert!(fs::read(folder.path().join("through")).expect("read") == changed, "{name}: written");
    }
}

#[test]
fn images_made_here_are_qemus() {
    if !there(&["qemu-img"]) {
        return;
    }
    let bytes = pattern(12);
    for old in [false, true] {
        let folder = folder();
        fs::write(folder.path().join("base"), &bytes).expect("written");
        drop(
            make::create(&New { old, ..new(&folder, "plain.qcow2", Format::Qcow2, None) }, None)
                .expect("made"),
        );
        let backing = Some((PathBuf::from("base"), Format::Raw));
        let over = New { old, backing, ..new(&folder, "over.qcow2", Format::Qcow2, None) };
        let layer = make::create(&over, None).expect("made");
        assert!(all(&*layer) == bytes);
        layer.write(Sector(0), &[1; 4096]).expect("written");
        layer.flush().expect("flushed");
        drop(layer);
        for name in ["plain.qcow2", "over.qcow2"] {
            run(&folder, "qemu-img", &["check", name]);
            let info = run(&folder, "qemu-img", &["info", name]);
            assert!(info.contains(if old { "compat: 0.10" } else { "compat: 1.1" }), "{info}");
            assert_eq!(name == "over.qcow2", info.contains("backing file format: raw"), "{info}");
        }
        run(&folder, "qemu-img", &["convert", "-O", "raw", "over.qcow2", "through"]);
        let through = fs::read(folder.path().join("through")).expect("read");
        assert!(through[..4096] == [1; 4096] && through[4096..] == bytes[4096..]);
        let found =
            make::describe(&folder.path().join("over.qcow2"), Some(Format::Qcow2)).expect("described");
        let qcow2 = found.qcow2.expect("a header");
        assert_eq!((qcow2.version, qcow2.backing.as_deref()), (if old { 2 } else { 3 }, Some("base")));
    }
}

/// A server that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and waits for its socket.
fn serve(folder: &TempDir, program: &str, arguments: &[&str]) -> (Server, Image) {
    let socket = folder.path().join("socket");
    let child = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("it starts");
    let until = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        assert!(Instant::now() < until, "{program} makes no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    (Server(child), Image::new(format!("nbd+unix:///?socket={}", socket.display())))
}

#[test]
fn servers_of_nbd_are_disks() {
    let bytes = pattern(13);
    let mut servers: Vec<(&str, Vec<&str>)> = Vec::new();
    if there(&["nbdkit"]) {
        servers.push(("nbdkit", vec!["-f", "-U", "socket", "file", "disk"]));
        servers.push(("nbdkit", vec!["-f", "-U", "socket", "--filter=offset", "file", "disk", "offset=0"]));
    }
    if there(&["qemu-nbd", "qemu-img"]) {
        servers.push(("qemu-nbd", vec!["-t", "-f", "raw", "-e", "4", "-k", "socket", "disk"]));
    }
    for (program, arguments) in servers {
        let folder = folder();
        fs::write(folder.path().join("disk"), &bytes).expect("written");
        let arguments: Vec<String> = arguments
            .iter()
            .map(|word| {
                if *word == "socket" {
                    folder.path().join(word).display().to_string()
                } else {
                    (*word).to_owned()
                }
            })
            .collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (server, image) = serve(&folder, program, &words);
        let layer = open(&image);
        assert!(all(&*layer) == bytes, "{program}: read");
        layer.write(Sector(2), &[3; 1024]).expect("written");
        layer.zero(Sector(100), 1000, true).expect("zeroed");
        layer.discard(Sector(8000), 100).expect("discarded");
        layer.flush().expect("flushed");
        let after = fs::read(folder.path().join("disk")).expect("read");
        assert!(
            after[1024..2048] == [3; 1024] && after[51_200..563_200].iter().all(|byte| *byte == 0),
            "{program}"
        );
        // Several threads, and the server dies under them.
        std::thread::scope(|scope| {
            for number in 0..4 {
                let layer = &layer;
                scope.spawn(move || {
                    for turn in 0..50 {
                        let mut sector = [0; 512];
                        layer.write(Sector(9000 + number), &[turn; 512]).expect("written");
                        layer.read(Sector(9000 + number), &mut sector).expect("read");
                        assert_eq!(sector, [turn; 512]);
                    }
                });
            }
        });
        drop(server);
        assert!(matches!(layer.write(Sector(0), &[0; 512]), Err(DiskError::Host(_))), "{program} is gone");
        assert!(matches!(layer.read(Sector(0), &mut [0; 512]), Err(DiskError::Host(_))));
        assert!(matches!(layer.flush(), Err(DiskError::Host(_))), "nothing is said to be safe");
        assert!(disk::open(&image).is_err());
    }
}

#[test]
fn nbdkit_with_its_luks_filter_is_a_plug_in() {
    if !there(&["nbdkit", "qemu-img"]) {
        return;
    }
    let folder = folder();
    // It takes the first line of a file.
    fs::write(folder.path().join("key"), "one line").expect("written");
    let bytes = pattern(14);
    fs::write(folder.path().join("clear"), &bytes).expect("written");
    run(
        &folder,
        "qemu-img",
        &[
            "convert",
            "--object",
            "secret,id=s,file=key",
            "-O",
            "luks",
            "-o",
            "key-secret=s,iter-time=10",
            "clear",
            "disk",
        ],
    );
    let key = folder.path().join("key");
    let command = format!("exec nbdkit -s --filter=luks file \"$OMBRA_DISK\" passphrase=+{}", key.display());
    let image =
        Image { encryption: Some(Encryption::Server { command }), ..Image::new(folder.path().join("disk")) };
    let probe = disk::open(&image);
    if let Err(error) = &probe {
        // Distributions build it without that filter, too.
        let mut text = String::new();
        let filters = Command::new("nbdkit").arg("--dump-config").stdout(Stdio::piped()).spawn();
        let _ = filters.map(|mut child| child.stdout.take().map(|mut out| out.read_to_string(&mut text)));
        let folder = text.lines().find_map(|line| line.strip_prefix("filterdir="));
        let filter = folder.map(|folder| Path::new(folder).join("nbdkit-luks-filter.so"));
        assert!(filter.is_none_or(|filter| !filter.exists()), "the filter is there: {error}");
        eprintln!("SKIPPED: nbdkit has no LUKS filter here");
        return;
    }
    let layer = probe.expect("opened");
    assert!(all(&*layer) == bytes);
    let other = pattern(15);
    put(&*layer, &other);
    drop(layer);
    assert!(all(&*open(&luks(&folder, "disk"))) == other, "we read what it has written");
}
