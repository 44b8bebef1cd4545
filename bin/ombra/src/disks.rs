//! The value of `--disk`: a file and options, separated by commas. A comma in a file's name is written twice.

use control::{DiskConfig, DiskFormat};
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a serial number (VIRTIO 1.2, 5.2.6).
const SERIAL: usize = 20;

/// One disk, as the user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Disk(DiskConfig);

impl From<Disk> for DiskConfig {
    fn from(disk: Disk) -> Self {
        disk.0
    }
}

/// Splits at commas that aren't doubled.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(next);
        }
    }
    parts
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(format!("{key} is on or off, not `{value}`")),
    }
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Disk, String> {
        let mut file = None;
        let mut disk = DiskConfig {
            file: PathBuf::new(),
            format: None,
            read_only: false,
            snapshot: false,
            serial: None,
        };
        for (number, part) in parts(text).into_iter().enumerate() {
            match part.split_once('=') {
                Some(("path" | "file", path)) if file.is_none() => file = Some(path.to_owned()),
                Some(("path" | "file", _)) => return Err("names two files".to_owned()),
                Some(("format", value)) => {
                    disk.format = Some(match value {
                        "raw" => DiskFormat::Raw,
                        "qcow2" => DiskFormat::Qcow2,
                        _ => return Err(format!("format is raw or qcow2, not `{value}`")),
                    });
                }
                Some(("readonly", value)) => disk.read_only = switch("readonly", value)?,
                Some(("snapshot", value)) => disk.snapshot = switch("snapshot", value)?,
                Some(("serial", value)) if value.len() <= SERIAL => disk.serial = Some(value.to_owned()),
                Some(("serial", _)) => return Err(format!("a serial number has {SERIAL} bytes at most")),
                // A bare value is a file's name, which may have an equals sign in it.
                _ if number == 0 => file = Some(part),
                _ if part == "readonly" || part == "ro" => disk.read_only = true,
                _ if part == "snapshot" => disk.snapshot = true,
                _ => {
                    return Err(format!(
                        "has no option `{part}`: there are format=raw|qcow2, readonly=on, snapshot=on and serial=TEXT \
                         (a comma in a file's name is written twice)"
                    ));
                }
            }
        }
        disk.file = file.filter(|file| !file.is_empty()).ok_or("wants a file")?.into();
        if disk.read_only && disk.snapshot {
            return Err("is either readonly or a snapshot".to_owned());
        }
        Ok(Disk(disk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> DiskConfig {
        text.parse::<Disk>().unwrap().into()
    }

    fn problem(text: &str) -> String {
        text.parse::<Disk>().unwrap_err()
    }

    #[test]
    fn a_bare_value_is_the_file() {
        let plain = DiskConfig {
            file: "a.img".into(),
            format: None,
            read_only: false,
            snapshot: false,
            serial: None,
        };
        assert_eq!(disk("a.img"), plain);
        assert_eq!(disk("path=a.img"), plain);
        assert_eq!(disk("x=y.img").file, PathBuf::from("x=y.img"));
        assert_eq!(disk("a,,b,readonly=on").file, PathBuf::from("a,b"));
    }

    #[test]
    fn options_follow_in_any_order() {
        let all = disk("format=qcow2,path=a,snapshot=on,serial=12=3,readonly=off");
        assert_eq!(all.format, Some(DiskFormat::Qcow2));
        assert!(all.snapshot && !all.read_only);
        assert_eq!(all.serial.as_deref(), Some("12=3"));
        assert!(disk("a,ro").read_only);
    }

    #[test]
    fn nonsense_is_named() {
        assert!(problem("").contains("wants a file"));
        assert!(problem("readonly=on").contains("wants a file"));
        assert!(problem("a,format=vmdk").contains("`vmdk`"));
        assert!(problem("a,readonly=perhaps").contains("`perhaps`"));
        assert!(problem("a,b").contains("`b`"));
        assert!(problem("a,cache=none").contains("`cache=none`"));
        assert!(problem("a,path=b").contains("two files"));
        assert!(problem("a,readonly=on,snapshot=on").contains("either"));
        assert!(problem("a,serial=123456789012345678901").contains("20 bytes"));
    }
}
