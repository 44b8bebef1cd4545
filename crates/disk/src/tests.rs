use super::*;
use imago::file::File as Storage;
use imago::qcow2::Qcow2CreateBuilder;
use imago::{FormatCreateBuilder, Storage as _, StorageCreateOptions};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn image(file: &Path) -> Image {
    Image::new(file)
}

/// A raw file with a pattern of its own in each sector.
pub(crate) fn raw_file(folder: &TempDir, name: &str, sectors: u64) -> PathBuf {
    let path = folder.path().join(name);
    let bytes: Vec<u8> = (0..sectors).flat_map(|sector| vec![sector as u8 ^ 0x5a; 512]).collect();
    fs::write(&path, bytes).expect("written");
    path
}

pub(crate) fn qcow2_file(folder: &TempDir, name: &str, backing: Option<(&str, &str)>) -> PathBuf {
    let path = folder.path().join(name);
    let storage = Storage::create_open(StorageCreateOptions::new().filename(&path)).expect("created");
    let mut builder = Qcow2CreateBuilder::<Storage>::new(storage).size(MIB);
    if let Some((file, format)) = backing {
        builder = builder.backing(file.to_owned(), format.to_owned());
    }
    builder.create().expect("an image");
    path
}

pub(crate) fn sector(layer: &dyn Layer, number: u64) -> u8 {
    let mut bytes = [0; 512];
    layer.read(Sector(number), &mut bytes).expect("it can be read");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "one pattern a sector");
    bytes[0]
}

/// What every writable layer of 1 MiB does.
fn behaves(layer: &dyn Layer) {
    assert_eq!(layer.info(), LayerInfo { sectors: 2048, read_only: false });
    layer.write(Sector(3), &[7; 1024]).expect("written");
    assert_eq!([2, 3, 4, 5].map(|number| sector(layer, number) == 7), [false, true, true, false]);
    layer.zero(Sector(4), 1, false).expect("zeroed");
    assert_eq!((sector(layer, 3), sector(layer, 4)), (7, 0));
    layer.write(Sector(0), &vec![9; MIB as usize]).expect("written");
    layer.zero(Sector(128), 256, true).expect("zeroed");
    assert_eq!(
        (sector(layer, 127), sector(layer, 128), sector(layer, 383), sector(layer, 384)),
        (9, 0, 0, 9)
    );
    layer.discard(Sector(512), 512).expect("discarded");
    assert_eq!((sector(layer, 511), sector(layer, 1024)), (9, 9));
    layer.flush().expect("flushed");
    for (first, bytes) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (0, 100), (0, 2 * MIB as usize)] {
        assert!(matches!(layer.read(Sector(first), &mut vec![0; bytes]), Err(DiskError::Range)), "{first}");
        assert!(matches!(layer.write(Sector(first), &vec![0; bytes]), Err(DiskError::Range)), "{first}");
    }
    for (first, count) in [(2047, 2), (0, u64::MAX), (u64::MAX, 1), (0, 2049)] {
        assert!(matches!(layer.zero(Sector(first), count, true), Err(DiskError::Range)));
        assert!(matches!(layer.discard(Sector(first), count), Err(DiskError::Range)));
    }
}

#[test]
fn a_raw_file_is_a_disk() {
    let folder = folder();
    let path = raw_file(&folder, "disk", 2048);
    behaves(&*open(&image(&path)).expect("opened"));
    let mut byte = [0];
    fs::File::open(&path).and_then(|file| file.read_exact_at(&mut byte, 3 * 512)).expect("read");
    assert_eq!(byte, [9], "in the file itself");
}

#[test]
fn a_qcow2_image_is_a_disk_and_keeps_what_was_flushed() {
    let folder = folder();
    let path = qcow2_file(&folder, "disk.qcow2", None);
    let layer = open(&image(&path)).expect("opened");
    behaves(&*layer);
    // A reader that comes by while it is open sees what has been flushed.
    let copy = folder.path().join("copy.qcow2");
    fs::copy(&path, &copy).expect("copied");
    let copy = open(&Image { read_only: true, ..image(&copy) }).expect("opened");
    assert_eq!((sector(&*copy, 3), sector(&*copy, 128), sector(&*copy, 384)), (9, 0, 9));
    drop(layer);
    assert_eq!(sector(&*open(&image(&path)).expect("opened again"), 2000), 9);
}

#[test]
fn an_image_may_be_backed_by_a_chain_of_others() {
    let folder = folder();
    raw_file(&folder, "base", 2048);
    qcow2_file(&folder, "middle.qcow2", Some(("base", "raw")));
    let top = qcow2_file(&folder, "top.qcow2", Some(("middle.qcow2", "qcow2")));
    {
        let layer = open(&image(&top)).expect("opened");
        assert_eq!(sector(&*layer, 5), 5 ^ 0x5a);
        behaves(&*layer);
    }
    let base = open(&Image { read_only: true, ..image(&folder.path().join("base")) }).expect("opened");
    assert_eq!(sector(&*base, 5), 5 ^ 0x5a, "what it is backed by is not written");
}

#[test]
fn a_chain_that_never_ends_is_refused() {
    let folder = folder();
    let path = qcow2_file(&folder, "ring.qcow2", Some(("ring.qcow2", "qcow2")));
    assert!(open(&Image { read_only: true, ..image(&path) }).is_err());
}

#[test]
fn a_snapshot_forgets_and_leaves_the_image_alone() {
    let folder = folder();
    for path in [raw_file(&folder, "disk", 2048), qcow2_file(&folder, "disk.qcow2", None)] {
        let before = fs::read(&path).expect("read");
        let layer = open(&Image { snapshot: true, ..image(&path) }).expect("opened");
        behaves(&*layer);
        drop(layer);
        assert!(fs::read(&path).expect("read") == before);
    }
}

#[test]
fn formats_are_said_or_named_and_guessed_only_for_reading() {
    let folder = folder();
    let path = qcow2_file(&folder, "disk", Some(("base", "raw")));
    raw_file(&folder, "base", 2048);
    let refused = |image: &Image| open(image).err().expect("refused").to_string();
    assert!(refused(&image(&path)).contains("format=qcow2"));
    let qcow2 = Image { format: Some(Format::Qcow2), ..image(&path) };
    assert_eq!(sector(&*open(&qcow2).expect("opened"), 1), 1 ^ 0x5a);
    let raw = Image { format: Some(Format::Raw), ..image(&path) };
    let mut first = [0; 512];
    open(&raw).expect("opened").read(Sector(0), &mut first).expect("read");
    assert_eq!(&first[..4], b"QFI\xfb");
    // Guessed: what it names is not opened.
    assert!(open(&Image { read_only: true, ..image(&path) }).is_err());
    let lone = qcow2_file(&folder, "lone", None);
    assert_eq!(open(&Image { read_only: true, ..image(&lone) }).expect("opened").info().sectors, 2048);
    let named = raw_file(&folder, "not.qcow2", 4);
    assert!(refused(&image(&named)).contains("no qcow2 image"));
}

#[test]
fn one_writer_or_any_number_of_readers() {
    let folder = folder();
    let path = raw_file(&folder, "disk", 4);
    let reading = Image { read_only: true, ..image(&path) };
    let writer = open(&image(&path)).expect("opened");
    for second in [&image(&path), &reading, &Image { snapshot: true, ..image(&path) }] {
        assert!(matches!(open(second), Err(OpenError::Locked { .. })));
    }
    drop(writer);
    let _readers = [open(&reading).expect("opened"), open(&reading).expect("opened")];
    assert!(matches!(open(&image(&path)), Err(OpenError::Locked { .. })));
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = folder();
    let short = folder.path().join("short");
    fs::write(&short, [1; 511]).expect("written");
    assert!(matches!(open(&image(&short)), Err(OpenError::Empty { .. })));
    assert!(matches!(open(&image(&folder.path().join("none"))), Err(OpenError::Host { .. })));
    let null = Image { read_only: true, ..image(Path::new("/dev/null")) };
    assert!(matches!(open(&null), Err(OpenError::Kind { .. })));
    let this = Image { read_only: true, ..image(folder.path()) };
    assert!(matches!(open(&this), Err(OpenError::Kind { .. })));
}

#[test]
fn nothing_is_written_to_what_is_read_only() {
    let folder = folder();
    for path in [raw_file(&folder, "disk", 2048), qcow2_file(&folder, "disk.qcow2", None)] {
        let layer = open(&Image { read_only: true, ..image(&path) }).expect("opened");
        assert!(layer.info().read_only);
        assert!(matches!(layer.write(Sector(0), &[0; 512]), Err(DiskError::ReadOnly)));
        assert!(matches!(layer.zero(Sector(0), 1, true), Err(DiskError::ReadOnly)));
        assert!(matches!(layer.discard(Sector(0), 1), Err(DiskError::ReadOnly)));
        layer.flush().expect("nothing to do");
    }
}

#[test]
fn a_file_that_became_shorter_fails_the_request() {
    let folder = folder();
    let path = raw_file(&folder, "disk", 2048);
    let layer = open(&image(&path)).expect("opened");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(512)).expect("cut");
    assert!(matches!(layer.read(Sector(1), &mut [0; 512]), Err(DiskError::Host(_))));
    assert_eq!(sector(&*layer, 0), 0x5a, "the rest goes on");
}

#[test]
fn what_is_unmapped_needs_no_space() {
    let folder = folder();
    let path = raw_file(&folder, "disk", 2048);
    let layer = open(&image(&path)).expect("opened");
    layer.flush().expect("flushed");
    let before = fs::metadata(&path).expect("there").blocks();
    layer.zero(Sector(0), 2048, true).expect("zeroed");
    layer.flush().expect("flushed");
    let after = fs::metadata(&path).expect("there");
    assert_eq!(after.len(), MIB);
    assert!(after.blocks() < before, "{before} blocks, then {}", after.blocks());
}
