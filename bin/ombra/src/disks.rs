//! The value of `--disk`: a file and options, separated by commas. A comma in a file's name is written twice.

use crate::keys;
use control::{DiskBus, DiskConfig, DiskEncryption, DiskFormat, KeySource};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes of a serial number (VIRTIO 1.2, 5.2.6; NVM Express 1.4, 5.15).
const SERIAL: usize = 20;

/// One disk, as the user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Disk {
    config: DiskConfig,
    encryption: Option<Encryption>,
}

impl Disk {
    /// What the guest finds it behind.
    pub(crate) fn bus(&self) -> DiskBus {
        self.config.bus
    }

    /// The image.
    pub(crate) fn file(&self) -> &Path {
        &self.config.file
    }

    /// Its format in the words of `disk`, where it is said.
    pub(crate) fn format(&self) -> Option<disk::Format> {
        self.config.format.map(|format| match format {
            DiskFormat::Raw => disk::Format::Raw,
            DiskFormat::Qcow2 => disk::Format::Qcow2,
        })
    }

    /// How it is encrypted.
    pub(crate) fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_ref()
    }

    /// What the machine is told; asks for a passphrase where it is to be asked for.
    ///
    /// # Errors
    /// No passphrase.
    pub(crate) fn config(&self) -> anyhow::Result<DiskConfig> {
        let encryption = match &self.encryption {
            Some(encryption) => Some(encryption.config(|| keys::ask(&self.config.file))?),
            None => None,
        };
        Ok(DiskConfig { encryption, ..self.config.clone() })
    }
}

/// `encrypt=`, and where its key is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Encryption {
    pub(crate) how: How,
    pub(crate) key: Option<Key>,
    pub(crate) plugin_options: String,
}

/// The value of `encrypt=`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// LUKS; which version, where one is to be made.
    Luks(Option<u8>),
    Plain(String),
    Plugin(PathBuf),
    Server(String),
}

/// Where a key is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    At(KeySource),
    Prompt,
}

impl Encryption {
    /// As the machine knows it. `ask` asks for a passphrase.
    ///
    /// # Errors
    /// Those of `ask`.
    pub(crate) fn config(
        &self,
        ask: impl Fn() -> anyhow::Result<KeySource>,
    ) -> anyhow::Result<DiskEncryption> {
        let key = || match &self.key {
            Some(Key::At(source)) => Ok(source.clone()),
            Some(Key::Prompt) | None => ask(),
        };
        Ok(match &self.how {
            How::Luks(_) => DiskEncryption::Luks { key: key()? },
            How::Plain(cipher) => DiskEncryption::Plain { cipher: cipher.clone(), key: key()? },
            How::Plugin(path) => DiskEncryption::Plugin {
                path: path.clone(),
                options: self.plugin_options.clone(),
                key: key()?,
            },
            How::Server(command) => DiskEncryption::Server { command: command.clone() },
        })
    }
}

/// The options of encryption, as they are found one by one.
#[derive(Default)]
pub(crate) struct Options {
    how: Option<How>,
    key: Option<Key>,
    plugin_options: Option<String>,
}

impl Options {
    /// Takes one. `false`: it isn't about encryption.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn take(&mut self, part: &str) -> Result<bool, String> {
        let key = match part.split_once('=') {
            Some(("encrypt", value)) => {
                self.how = Some(match value.split_once(':') {
                    _ if value == "luks" => How::Luks(None),
                    _ if value == "luks1" => How::Luks(Some(1)),
                    _ if value == "luks2" => How::Luks(Some(2)),
                    _ if value == "xts" => How::Plain("aes-xts-plain64".to_owned()),
                    Some(("plugin", path)) if !path.is_empty() => How::Plugin(path.into()),
                    Some(("nbd", command)) if !command.is_empty() => How::Server(command.to_owned()),
                    _ if value.split('-').count() == 3 => How::Plain(value.to_owned()),
                    _ => {
                        return Err(format!(
                            "encrypt is luks, xts, a cipher such as aes-cbc-essiv:sha256, plugin:PATH or nbd:COMMAND, \
                             not `{value}`"
                        ));
                    }
                });
                return Ok(true);
            }
            Some(("plugin-options", value)) => {
                self.plugin_options = Some(value.to_owned());
                return Ok(true);
            }
            Some(("key-file", path)) if !path.is_empty() => Key::At(KeySource::File(path.into())),
            Some(("key-fd", number)) => {
                let number = number.parse().ok().filter(|number| *number > 2);
                Key::At(KeySource::Inherited(
                    number.ok_or("key-fd is the number of an open file, from 3 on")?,
                ))
            }
            Some(("prompt", value)) if switch("prompt", value)? => Key::Prompt,
            Some(("prompt", _)) => return Ok(true),
            None if part == "prompt" => Key::Prompt,
            _ => return Ok(false),
        };
        if self.key.replace(key).is_some() {
            return Err("names two keys".to_owned());
        }
        Ok(true)
    }

    /// All together.
    ///
    /// # Errors
    /// What doesn't go together.
    pub(crate) fn finish(self) -> Result<Option<Encryption>, String> {
        let Self { how, key, plugin_options } = self;
        let Some(how) = how else {
            return match (key, plugin_options) {
                (None, None) => Ok(None),
                _ => Err("has a key or a plug-in's options, but no encrypt=".to_owned()),
            };
        };
        match (&how, &key) {
            (How::Server(_), Some(_)) => {
                return Err("the command of encrypt=nbd: has its key itself".to_owned());
            }
            (How::Plain(_), Some(Key::Prompt)) => {
                return Err("a passphrase is no key: encrypt=luks takes one".to_owned());
            }
            (How::Plain(_) | How::Plugin(_), None) => {
                return Err("wants a key: key-file=PATH or key-fd=N".to_owned());
            }
            _ => {}
        }
        if plugin_options.is_some() && !matches!(how, How::Plugin(_)) {
            return Err("has plugin-options, but no encrypt=plugin:PATH".to_owned());
        }
        Ok(Some(Encryption { how, key, plugin_options: plugin_options.unwrap_or_default() }))
    }
}

/// Splits at commas that aren't doubled.
pub(crate) fn parts(text: &str) -> Vec<String> {
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
            encryption: None,
            serial: None,
            bus: DiskBus::Virtio,
        };
        let mut encryption = Options::default();
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
                Some(("bus", value)) => {
                    disk.bus = match value {
                        "virtio" => DiskBus::Virtio,
                        "nvme" => DiskBus::Nvme,
                        _ => return Err(format!("bus is virtio or nvme, not `{value}`")),
                    };
                }
                _ if number > 0 && encryption.take(&part)? => {}
                // A bare value is a file's name, which may have an equals sign in it.
                _ if number == 0 => file = Some(part),
                _ if part == "readonly" || part == "ro" => disk.read_only = true,
                _ if part == "snapshot" => disk.snapshot = true,
                _ => {
                    return Err(format!(
                        "has no option `{part}`: there are bus=virtio|nvme, format=raw|qcow2, readonly=on, snapshot=on, serial=TEXT, \
                         encrypt=HOW, key-file=PATH, key-fd=N, prompt and plugin-options=TEXT (a comma in a file's name is written twice)"
                    ));
                }
            }
        }
        disk.file = file.filter(|file| !file.is_empty()).ok_or("wants a file")?.into();
        if disk.read_only && disk.snapshot {
            return Err("is either readonly or a snapshot".to_owned());
        }
        Ok(Disk { config: disk, encryption: encryption.finish()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> DiskConfig {
        text.parse::<Disk>().unwrap().config().unwrap()
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
            encryption: None,
            serial: None,
            bus: DiskBus::Virtio,
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
        assert_eq!((disk("a,bus=nvme").bus, disk("a,bus=virtio").bus), (DiskBus::Nvme, DiskBus::Virtio));
    }

    #[test]
    fn encryption_says_how_and_where_the_key_is() {
        let file = || KeySource::File("k".into());
        let how = |text: &str| disk(text).encryption.unwrap();
        assert_eq!(how("a,encrypt=luks,key-file=k"), DiskEncryption::Luks { key: file() });
        assert_eq!(how("a,key-fd=7,encrypt=luks"), DiskEncryption::Luks { key: KeySource::Inherited(7) });
        let xts = DiskEncryption::Plain { cipher: "aes-xts-plain64".to_owned(), key: file() };
        assert_eq!(how("a,encrypt=xts,key-file=k"), xts);
        let plugin = DiskEncryption::Plugin { path: "p,q".into(), options: "x=y".to_owned(), key: file() };
        assert_eq!(how("a,encrypt=plugin:p,,q,plugin-options=x=y,key-file=k"), plugin);
        let server = DiskEncryption::Server { command: "nbdkit -s x=y".to_owned() };
        assert_eq!(how("a,encrypt=nbd:nbdkit -s x=y"), server);
        assert!(problem("a,encrypt=rot13").contains("`rot13`"));
        assert!(problem("a,encrypt=luks,key-file=k,key-fd=3").contains("two keys"));
        assert!(problem("a,encrypt=luks,key-fd=0").contains("from 3 on"));
        assert!(problem("a,key-file=k").contains("no encrypt="));
        assert!(problem("a,encrypt=xts").contains("wants a key"));
        assert!(problem("a,encrypt=xts,prompt").contains("no key"));
        assert!(problem("a,encrypt=luks,key-file=k,plugin-options=x").contains("plugin-options"));
        assert!(problem("a,encrypt=nbd:x,key-file=k").contains("itself"));
    }

    #[test]
    fn nonsense_is_named() {
        assert!(problem("").contains("wants a file"));
        assert!(problem("readonly=on").contains("wants a file"));
        assert!(problem("a,format=vmdk").contains("`vmdk`"));
        assert!(problem("a,bus=ide").contains("`ide`"));
        assert!(problem("a,readonly=perhaps").contains("`perhaps`"));
        assert!(problem("a,b").contains("`b`"));
        assert!(problem("a,cache=none").contains("`cache=none`"));
        assert!(problem("a,path=b").contains("two files"));
        assert!(problem("a,readonly=on,snapshot=on").contains("either"));
        assert!(problem("a,serial=123456789012345678901").contains("20 bytes"));
    }
}
