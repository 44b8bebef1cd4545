use super::tests::{folder, qcow2_file, raw_file, sector};
use super::*;
use crypt::luks::{self, Version};
use crypt::secret::Source;
use crypt::{Creation, Method, Secret};
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const CANARY: &[u8; 16] = b"yellow, feathery";

fn key(folder: &TempDir, text: &[u8]) -> Source {
    let path = folder.path().join(format!("key{}", text.len()));
    fs::write(&path, text).expect("written");
    Source::File(path)
}

/// A raw file that has a header and 1 MiB.
fn luks_file(folder: &TempDir, name: &str, version: Version, sector_bytes: u32) -> PathBuf {
    let creation = luks::Creation {
        effort: Duration::from_millis(1),
        memory: (version == Version::Two).then_some(1024),
        sector_bytes,
        ..luks::Creation::new(version)
    };
    let key = Secret::copy(b"secret").expect("memory");
    let header = crypt::create(&Creation::Luks(creation), MIB, &key).expect("made");
    let path = folder.path().join(name);
    let file = fs::File::create(&path).expect("a file");
    file.set_len(header.offset + MIB).expect("room");
    for (at, piece) in &header.pieces {
        file.write_all_at(piece, *at).expect("written");
    }
    path
}

fn luks(path: &Path, key: &Source) -> Image {
    let encryption = Encryption::Sectors { method: Method::Luks, key: key.clone() };
    Image { encryption: Some(encryption), ..Image::new(path) }
}

fn finds(path: &Path, what: &[u8]) -> bool {
    fs::read(path).expect("read").windows(what.len()).any(|window| window == what)
}

/// What every encrypted layer of 1 MiB does.
fn behaves(layer: &dyn Layer) {
    assert_eq!(layer.info(), LayerInfo { sectors: 2048, read_only: false });
    layer.zero(Sector(0), 2048, true).expect("zeroed");
    layer.write(Sector(3), &CANARY.repeat(64)).expect("written");
    layer.write(Sector(100), &vec![9; 300 << 10]).expect("written");
    layer.write(Sector(2047), &[5; 512]).expect("written");
    assert_eq!(
        [2, 5, 99, 100, 699, 700, 2046, 2047].map(|number| sector(layer, number)),
        [0, 0, 0, 9, 9, 0, 0, 5]
    );
    let mut bytes = [0; 1536];
    layer.read(Sector(3), &mut bytes).expect("read");
    assert!(bytes[..1024] == CANARY.repeat(64) && bytes[1024..] == [0; 512]);
    layer.zero(Sector(101), 598, false).expect("zeroed");
    assert_eq!([100, 101, 698, 699].map(|number| sector(layer, number)), [9, 0, 0, 9]);
    layer.discard(Sector(100), 1).expect("let be");
    layer.flush().expect("flushed");
    assert!(matches!(layer.write(Sector(2047), &[0; 1024]), Err(DiskError::Range)));
    assert!(matches!(layer.read(Sector(u64::MAX), &mut [0; 512]), Err(DiskError::Range)));
    assert!(matches!(layer.zero(Sector(1), u64::MAX, true), Err(DiskError::Range)));
}

#[test]
fn an_encrypted_file_is_a_disk_and_shows_nothing() {
    let folder = folder();
    let key = key(&folder, b"secret");
    for (name, version, bytes) in
        [("one", Version::One, 512), ("two", Version::Two, 512), ("large", Version::Two, 4096)]
    {
        let path = luks_file(&folder, name, version, bytes);
        behaves(&*open(&luks(&path, &key)).expect("opened"));
        assert!(!finds(&path, CANARY) && !finds(&path, &[9; 64]), "{name}");
        let layer = open(&Image { read_only: true, ..luks(&path, &key) }).expect("opened again");
        assert_eq!((sector(&*layer, 99), sector(&*layer, 100), sector(&*layer, 2047)), (0, 9, 5));
        assert!(matches!(layer.write(Sector(0), &[0; 512]), Err(DiskError::ReadOnly)));
    }
}

#[test]
fn a_wrong_key_says_so_and_a_missing_one_too() {
    let folder = folder();
    let path = luks_file(&folder, "disk", Version::One, 512);
    let problem = |key: Source| {
        let error = anyhow_chain(&open(&luks(&path, &key)).err().expect("refused"));
        assert!(!error.contains("guess"), "no key in a message: {error}");
        error
    };
    assert!(problem(key(&folder, b"guess")).contains("wrong"));
    assert!(problem(key(&folder, b"")).contains("empty"));
    assert!(problem(Source::File(folder.path().join("none"))).contains("can't read the key"));
    assert!(problem(Source::Inherited(250)).contains("file descriptor 250"));
    let raw = raw_file(&folder, "raw", 2048);
    let error = open(&luks(&raw, &key(&folder, b"secret"))).err().expect("refused");
    assert!(anyhow_chain(&error).contains("no LUKS header"), "{error}");
}

/// An error with its reasons.
fn anyhow_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

#[test]
fn plain_ciphers_need_no_header() {
    let folder = folder();
    let path = raw_file(&folder, "disk", 2048);
    let method = Method::Plain("aes-xts-plain64".parse().expect("known"));
    let image = |key: Source| {
        let encryption = Some(Encryption::Sectors { method: method.clone(), key });
        Image { encryption, ..Image::new(&path) }
    };
    behaves(&*open(&image(key(&folder, &[7; 64]))).expect("opened"));
    assert!(!finds(&path, CANARY));
    assert!(open(&image(key(&folder, &[7; 63]))).is_err(), "no key of 63 bytes");
}

#[test]
fn qcow2_below_encryption_and_overlays_show_nothing_either() {
    let folder = folder();
    let key = key(&folder, &[7; 64]);
    let method = Method::Plain("aes-xts-plain64".parse().expect("known"));
    let path = qcow2_file(&folder, "disk.qcow2", None);
    let image = |snapshot| Image {
        encryption: Some(Encryption::Sectors { method: method.clone(), key: key.clone() }),
        snapshot,
        ..Image::new(&path)
    };
    behaves(&*open(&image(false)).expect("opened"));
    assert!(!finds(&path, CANARY));
    let before = fs::read(&path).expect("read");
    let overlay = open(&image(true)).expect("opened");
    assert_eq!(sector(&*overlay, 100), 9, "the image shows through");
    behaves(&*overlay);
    assert!(fs::read(&path).expect("read") == before);
}
