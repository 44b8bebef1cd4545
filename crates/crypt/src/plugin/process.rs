//! Plug-ins that are processes of their own: what goes wrong in them, and what they know, stays there.
//!
//! A program is started without arguments, with the connection as its standard input; it is to end when that does. It gets neither Ombra's
//! terminal signals nor other files of Ombra's.
//!
//! Threads call from anywhere and take turns: a lock around the connection. A connection that has failed once, or from which nothing has come
//! for [`PATIENCE`], is never used again, since nobody knows what it would answer.

use super::protocol::{self, Kind, MOST_DATA};
use super::{Answer, Disk, Opener, Plugin};
use crate::{CryptError, Technique, shown};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a plug-in may take for one answer; deriving keys may take some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// A process and the way to it.
pub(super) struct Connection {
    plugin: String,
    link: Option<Link>,
}

struct Link {
    stream: UnixStream,
    answer: Vec<u8>,
    _child: Option<Started>,
}

/// A process that ends with us.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until {
            match self.0.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The child's wait comes after this.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Connection {
    pub(super) fn to_program(plugin: &Plugin) -> Result<Self, CryptError> {
        let failed = |error: io::Error| plugin.problem(format!("it can't be started: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // A bare name would be looked for in PATH.
        let child = Command::new(path::absolute(&plugin.path).map_err(failed)?)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Self::new(plugin, ours, Some(Started(child)))
    }

    pub(super) fn to_socket(plugin: &Plugin) -> Result<Self, CryptError> {
        let stream = UnixStream::connect(&plugin.path)
            .map_err(|error| plugin.problem(format!("nobody answers there: {error}")))?;
        Self::new(plugin, stream, None)
    }

    fn new(plugin: &Plugin, stream: UnixStream, child: Option<Started>) -> Result<Self, CryptError> {
        let link = Link { stream, answer: Vec::new(), _child: child };
        let timed = |stream: &UnixStream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))
        };
        timed(&link.stream).map_err(|error| plugin.problem(error.to_string()))?;
        Ok(Self { plugin: shown(&plugin.path), link: Some(link) })
    }

    fn ask(
        &mut self,
        kind: Kind,
        sector: u64,
        payload: &[&[u8]],
        exactly: Option<usize>,
    ) -> Result<&mut Vec<u8>, CryptError> {
        let problem = |plugin: &str, reason: String| CryptError::Plugin { plugin: plugin.to_owned(), reason };
        let Some(mut link) = self.link.take() else {
            return Err(problem(&self.plugin, "it has failed before".to_owned()));
        };
        let Link { stream, answer, .. } = &mut link;
        match protocol::ask(stream, kind, sector, payload, answer, exactly) {
            Ok(Ok(())) => Ok(&mut self.link.insert(link).answer),
            Ok(Err(text)) => {
                self.link = Some(link);
                Err(problem(&self.plugin, text))
            }
            Err(error) => Err(problem(
                &self.plugin,
                match error.kind() {
                    io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset => "it has ended".to_owned(),
                    io::ErrorKind::WouldBlock => "it doesn't answer".to_owned(),
                    _ => error.to_string(),
                },
            )),
        }
    }

    fn tell(&mut self, kind: Kind, disk: &Disk<'_>) -> Result<(Answer, Vec<u8>), CryptError> {
        let sizes = protocol::sizes(disk.bytes, disk.header.len(), disk.key.len(), disk.options.len());
        let payload = [&sizes, disk.header, disk.key, disk.options.as_bytes()];
        let bytes = self.ask(kind, 0, &payload, None)?;
        match protocol::answer(bytes) {
            Ok((answer, rest)) => Ok((answer, rest.to_vec())),
            Err(error) => Err(CryptError::Plugin { plugin: self.plugin.clone(), reason: error.to_string() }),
        }
    }
}

impl Opener for Connection {
    fn open(&mut self, disk: &Disk<'_>) -> Result<(Answer, Option<Arc<dyn Technique>>), CryptError> {
        let (answer, _) = self.tell(Kind::Open, disk)?;
        if answer.header_bytes as usize > disk.header.len() {
            return Ok((answer, None));
        }
        let connection = Self { plugin: self.plugin.clone(), link: self.link.take() };
        Ok((answer, Some(Arc::new(Process(Mutex::new(connection))))))
    }

    fn create(&mut self, disk: &Disk<'_>) -> Result<(Answer, Vec<u8>), CryptError> {
        self.tell(Kind::Create, disk)
    }
}

/// The technique of a disk that is open.
struct Process(Mutex<Connection>);

impl Process {
    fn run(&self, kind: Kind, mut sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in data.chunks_mut(MOST_DATA) {
            let turned = connection.ask(kind, sector, &[piece], Some(piece.len()))?;
            piece.copy_from_slice(turned);
            sector += piece.len() as u64 / crate::SECTOR_BYTES;
        }
        Ok(())
    }
}

impl Technique for Process {
    fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        self.run(Kind::Encrypt, sector, data)
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), CryptError> {
        self.run(Kind::Decrypt, sector, data)
    }
}
