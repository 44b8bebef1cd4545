use super::*;
use crate::luks::Version;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A disk in memory.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Store for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = at as usize;
        let from = self.0.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::copy(bytes).expect("memory")
}

fn disk(header: &Header, bytes: usize) -> Bytes {
    let mut disk = vec![0; header.offset as usize + bytes];
    for (at, piece) in &header.pieces {
        disk[*at as usize..][..piece.len()].copy_from_slice(piece);
    }
    Bytes(disk)
}

fn quick(version: Version) -> luks::Creation {
    luks::Creation {
        effort: Duration::from_millis(1),
        memory: (version == Version::Two).then_some(1024),
        ..luks::Creation::new(version)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 512) as u8).collect()
}

#[test]
fn xts_is_what_the_crate_xts_mode_does() {
    use aes::cipher::KeyInit;
    let key = pattern(64);
    for (size, sectors) in [(512usize, 70usize), (4096, 3), (512, 1)] {
        let clear = pattern(size * sectors);
        let mut ours = clear.clone();
        let technique = Spec::AES_XTS.technique(&key, size as u32, 5).expect("a key");
        technique.encrypt(1 << 40, &mut ours).expect("encrypted");
        let cipher = |key: &[u8]| aes::Aes256::new_from_slice(key).expect("a key");
        let oracle = xts_mode::Xts128::new(cipher(&key[..32]), cipher(&key[32..]));
        let mut theirs = clear.clone();
        for (index, sector) in theirs.chunks_exact_mut(size).enumerate() {
            let number = (1u128 << 40) + 5 + (index * size / 512) as u128;
            oracle.encrypt_sector(sector, number.to_le_bytes().into());
        }
        assert!(ours == theirs && ours != clear, "{size} bytes");
        technique.decrypt(1 << 40, &mut ours).expect("decrypted");
        assert!(ours == clear);
    }
}

#[test]
fn the_standards_vector_of_xts() {
    // IEEE 1619-2007, vector 2.
    let mut key = [0x11; 32];
    key[16..].fill(0x22);
    let technique = Spec::AES_XTS.technique(&key, 512, 0).expect("a key");
    let mut sector = vec![0x44; 512];
    technique.encrypt(0x33_3333_3333, &mut sector).expect("encrypted");
    let expected = [
        0xc4, 0x54, 0x18, 0x5e, 0x6a, 0x16, 0x93, 0x6e, 0x39, 0x33, 0x40, 0x38, 0xac, 0xef, 0x83, 0x8b, 0xfb,
        0x18, 0x6f, 0xff, 0x74, 0x80, 0xad, 0xc4, 0x28, 0x93, 0x82, 0xec, 0xd6, 0xd3, 0x94, 0xf0,
    ];
    assert_eq!(sector[..32], expected);
}

#[test]
fn every_cipher_comes_back_and_no_two_sectors_are_alike() {
    for name in [
        "aes-xts-plain64",
        "aes-xts-plain",
        "aes-cbc-essiv:sha256",
        "aes-cbc-plain64",
        "serpent-xts-plain64",
        "twofish-cbc-essiv:sha256",
    ] {
        let spec: Spec = name.parse().expect("known");
        assert_eq!(spec.to_string(), name);
        let technique = spec.technique(&pattern(spec.key_bytes()), 512, 0).expect("a key");
        let mut data = vec![7; 2048];
        technique.encrypt(9, &mut data).expect("encrypted");
        assert!(data[..512] != data[512..1024], "{name}");
        technique.decrypt(9, &mut data).expect("decrypted");
        assert!(data.iter().all(|byte| *byte == 7), "{name}");
    }
    assert!("des-xts-plain64".parse::<Spec>().is_err());
    assert!("aes-xts".parse::<Spec>().is_err());
    assert!(matches!(Spec::AES_XTS.technique(&[1; 31], 512, 0), Err(CryptError::KeySize { .. })));
}

#[test]
fn luks_headers_open_with_their_key_and_no_other() {
    let mut large = quick(Version::Two);
    large.sector_bytes = 4096;
    large.memory = None;
    for creation in [quick(Version::One), quick(Version::Two), large] {
        let header = create(&Creation::Luks(creation.clone()), 1 << 20, &secret(b"open")).expect("made");
        let store = disk(&header, 1 << 20);
        let open = |key: &[u8]| open(&store, &Method::Luks, &secret(key), Limits::default());
        let volume = open(b"open").expect("opened");
        assert_eq!((volume.bytes, volume.sector_bytes), (1 << 20, creation.sector_bytes));
        let info = luks::info(&store).expect("a header");
        assert_eq!((info.offset, info.cipher.as_str()), (volume.offset, "aes-xts-plain64"));
        assert!(matches!(open(b"opem"), Err(CryptError::WrongKey)));
        assert!(matches!(open(b""), Err(CryptError::WrongKey)));
    }
}

#[test]
fn a_damaged_header_is_refused_or_repaired_from_its_copy() {
    let open = |store: &Bytes| open(store, &Method::Luks, &secret(b"key"), Limits::default());
    let header = create(&Creation::Luks(quick(Version::Two)), 4096, &secret(b"key")).expect("made");
    let mut store = disk(&header, 4096);
    for at in [0, 300, 4100] {
        store.0[at] ^= 1;
        open(&store).expect("the second copy");
        store.0[at] ^= 1;
    }
    store.0[4100] ^= 1;
    store.0[0x4000 + 4100] ^= 1;
    assert!(matches!(open(&store), Err(CryptError::Header(_))));
    store.0[4100] ^= 1;
    store.0.truncate(40_000);
    assert!(matches!(open(&store), Err(CryptError::Header(_))));

    let header = create(&Creation::Luks(quick(Version::One)), 4096, &secret(b"key")).expect("made");
    let store = disk(&header, 4096);
    // The digest, the salt, the slot's state, the key material.
    for at in [115, 216, 209, 4096] {
        let mut bad = Bytes(store.0.clone());
        bad.0[at] ^= 4;
        assert!(open(&bad).is_err(), "byte {at}");
    }
    for len in [8, 100, 600, 4097, 300_000] {
        assert!(open(&Bytes(store.0[..len].to_vec())).is_err(), "{len} bytes");
    }
    assert!(matches!(open(&Bytes(vec![0; 1 << 20])), Err(CryptError::NotLuks)));
}

#[test]
fn keys_are_locked_left_out_of_dumps_and_never_printed() {
    let secret = secret(b"a very secret key");
    assert!(!format!("{secret:?}").contains("secret key"));
    let at = secret.as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
    let mut ours = false;
    let mut flags = "";
    for line in maps.lines() {
        if let Some((start, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')) {
            let hex = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (hex(start), hex(end)) {
                ours = (start..end).contains(&at);
            }
        }
        if let Some(text) = line.strip_prefix("VmFlags:").filter(|_| ours) {
            flags = text;
        }
    }
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    // An old kernel, or one that isn't Linux, shows none.
    if flags.is_empty() {
        eprintln!("SKIPPED the flags of a key's pages: this host doesn't show them");
        return;
    }
    assert!(has("dd") && has("wf"), "{flags}");
    assert!(has("lo"), "the host locks: {flags}");
}

#[test]
fn long_keys_are_read_whole_and_endless_ones_refused() {
    let long = pattern(100_000);
    assert!(*Secret::read(&long[..]).expect("read") == *long);
    assert!(Secret::read(io::repeat(1)).is_err());
    assert_eq!(Secret::read(io::empty()).expect("read").len(), 0);
}

/// A library made of the example.
fn library(folder: &Path) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("example.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-I"])
        .arg(here.join("include"))
        .arg(here.join("examples/library.c"))
        .arg("-o")
        .arg(&path)
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "the example compiles");
            Some(path)
        }
        Err(error) => {
            eprintln!("SKIPPED: no C compiler: {error}");
            None
        }
    }
}

/// A process made of the example.
fn program(folder: &Path) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("example");
    let source = here.join("examples/process.c");
    let status = Command::new("cc").args(["-Wall", "-Werror"]).arg(source).arg("-o").arg(&path).status();
    match status {
        Ok(status) => {
            assert!(status.success(), "the example compiles");
            Some(path)
        }
        Err(error) => {
            eprintln!("SKIPPED: no C compiler: {error}");
            None
        }
    }
}

/// What every plug-in of the examples does.
fn behaves(path: PathBuf) {
    let plugin = plugin::Plugin { path, options: "whatever".to_owned() };
    let header = create(&Creation::Plugin(plugin.clone()), 8192, &secret(b"key")).expect("made");
    assert_eq!(header.offset, 4096);
    let store = disk(&header, 8192);
    let open = |key: &[u8]| open(&store, &Method::Plugin(plugin.clone()), &secret(key), Limits::default());
    let volume = open(b"key").expect("opened");
    assert_eq!((volume.offset, volume.bytes), (4096, 8192));
    let clear = pattern(8192);
    let mut data = clear.clone();
    volume.technique.encrypt(0, &mut data).expect("encrypted");
    assert!(data != clear && data[..512] != data[512..1024]);
    let mut second = data[512..1024].to_vec();
    volume.technique.decrypt(1, &mut second).expect("decrypted");
    assert!(second == clear[512..1024]);
    let problem = open(b"other").expect_err("refused").to_string();
    assert!(problem.contains("example") && problem.contains("wrong key"), "{problem}");
}

#[test]
fn a_library_can_be_a_plug_in() {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(path) = library(folder.path()) {
        behaves(path);
    }
    let other = folder.path().join("other.so");
    std::fs::write(&other, "no library").expect("written");
    let plugin = Method::Plugin(plugin::Plugin { path: other, options: String::new() });
    assert!(matches!(
        open(&Bytes(vec![0; 4096]), &plugin, &secret(b"key"), Limits::default()),
        Err(CryptError::Plugin { .. })
    ));
}

#[test]
fn a_process_can_be_a_plug_in() {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(path) = program(folder.path()) {
        behaves(path);
    }
}

#[test]
fn a_process_that_ends_or_babbles_is_an_error() {
    use std::io::Write;
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let _ = stream.write_all(&[b'x'; 64]);
    });
    for path in ["/bin/true".into(), "/nowhere".into(), socket] {
        let plugin = Method::Plugin(plugin::Plugin { path, options: String::new() });
        let error =
            open(&Bytes(vec![0; 4096]), &plugin, &secret(b"key"), Limits::default()).expect_err("refused");
        assert!(matches!(error, CryptError::Plugin { .. }), "{error}");
    }
}
