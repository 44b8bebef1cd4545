//! Which ports lead into the guest, and what is at our end of each.
//!
//! A command has ports of a virtio console and serial ports, of which its init takes one kind; where the kernel is known to have a
//! driver for the first kind, there are none of the second. `run` asks for all of it, once.

use crate::cli::{Run, Serial};
use crate::guest::{Control, ControlWriter, Counted, Lines, Log, LogWriter, Piped};
use crate::initramfs::Mode;
use crate::modules::Kernel;
use anyhow::{Context, Result};
use control::{PortConfig, SerialConfig};
use machine::{Stream, Streams};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

/// The command's ports, as `guests/init` knows them.
const PORTS: [&str; 4] = ["ombra.in", "ombra.out", "ombra.err", "ombra.control"];

/// Which ports there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wires {
    mode: Option<Mode>,
    /// The command's streams may be a console's ports.
    console: bool,
    /// They may be serial ports.
    serial: bool,
}

/// Our ends of the pipes into the guest.
pub(crate) struct Inputs {
    /// The serial port that stdin goes to.
    pub(crate) stdin: Option<PipeWriter>,
    /// The console's port that it goes to instead, if the guest says so.
    pub(crate) console: Option<PipeWriter>,
    /// Where the guest's init listens.
    pub(crate) init: Option<Arc<Mutex<Lines>>>,
}

fn pipe() -> Result<(PipeReader, PipeWriter)> {
    io::pipe().context("the host refuses a pipe")
}

fn has_streams(mode: Option<Mode>) -> bool {
    matches!(mode, Some(Mode::Command | Mode::Terminal))
}

impl Wires {
    /// What a guest of this kind and this kernel needs.
    pub(crate) fn plan(flags: &Run, mode: Option<Mode>, kernel: &Kernel) -> Self {
        let is_sure = kernel.has("virtio_console") && kernel.has("virtio_pci");
        if has_streams(mode) && !is_sure {
            let place = kernel.place();
            tracing::info!("the kernel may have no virtio_console ({place}): serial ports are there, too");
        }
        let console = has_streams(mode) && !flags.no_console;
        Self { mode, console, serial: has_streams(mode) && !(is_sure && console) }
    }

    /// COM1 to COM4.
    pub(crate) fn serial(self, flags: &Run) -> [Option<SerialConfig>; 4] {
        let stream = || Some(SerialConfig::Stream);
        let first = match &flags.serial {
            Serial::Stdio => SerialConfig::Stream,
            Serial::File(path) => SerialConfig::File(path.clone()),
            Serial::Null => SerialConfig::Null,
        };
        match self.mode {
            None => [Some(first), None, None, None],
            Some(Mode::Shell) => [Some(first), None, None, stream()],
            Some(Mode::Command | Mode::Terminal) if self.serial => [stream(), stream(), stream(), stream()],
            Some(Mode::Command | Mode::Terminal) => [stream(), None, None, None],
        }
    }

    /// The console's ports.
    pub(crate) fn ports(self) -> Vec<PortConfig> {
        let names: &[&str] = if self.console { &PORTS } else { &[] };
        names.iter().map(|&name| PortConfig { name: name.to_owned(), is_console: false }).collect()
    }

    /// Our ends of all ports.
    ///
    /// # Errors
    /// The host refuses a pipe.
    pub(crate) fn connect(self, flags: &Run, log: &Log, control: &Control) -> Result<(Streams, Inputs)> {
        let mut streams = Streams::default();
        let mut inputs = Inputs { stdin: None, console: None, init: None };
        let is_command = has_streams(self.mode);
        if is_command || flags.serial == Serial::Stdio {
            let (reader, writer) = pipe()?;
            inputs.stdin = Some(writer);
            let port = usize::from(is_command);
            streams.serial[port] =
                Some(Stream { output: Box::new(io::stdout()), input: Some(Box::new(Piped(reader))) });
        }
        if is_command {
            let show = flags.verbose;
            streams.serial[0] =
                Some(Stream { output: Box::new(LogWriter { log: log.clone(), show }), input: None });
            streams.serial[2] = Some(Stream { output: Box::new(io::stderr()), input: None });
        }
        if self.mode.is_some() {
            let (reader, serial) = pipe()?;
            streams.serial[3] = Some(Stream {
                output: Box::new(ControlWriter::new(control.clone())),
                input: Some(Box::new(Piped(reader))),
            });
            let console =
                if self.console { Some(self.console(control, &mut streams, &mut inputs)?) } else { None };
            inputs.init = Some(Arc::new(Mutex::new(Lines { serial, console, control: control.clone() })));
        }
        Ok((streams, inputs))
    }

    /// The console's ports; gives where init listens.
    fn console(self, control: &Control, streams: &mut Streams, inputs: &mut Inputs) -> Result<PipeWriter> {
        let (input, stdin) = pipe()?;
        inputs.console = Some(stdin);
        let (lines, writer) = pipe()?;
        control.parts_by(writer.try_clone().context("the host refuses a file descriptor")?);
        let counted = |fd: &dyn AsFd, stream| -> Result<Box<Counted>> {
            // Not the standard library's, which looks for ends of lines.
            let to = fd.as_fd().try_clone_to_owned().context("the host refuses a file descriptor")?;
            Ok(Box::new(Counted { to: File::from(to), control: control.clone(), stream }))
        };
        streams.ports = vec![
            Stream { output: Box::new(io::sink()), input: Some(Box::new(Piped(input))) },
            Stream { output: counted(&io::stdout(), 0)?, input: None },
            Stream { output: counted(&io::stderr(), 1)?, input: None },
            Stream {
                output: Box::new(ControlWriter::new(control.clone())),
                input: Some(Box::new(Piped(lines))),
            },
        ];
        Ok(writer)
    }
}
