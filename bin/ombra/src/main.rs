//! `ombra`: the command line of the virtual machine monitor. Parses flags, has the terminal, ends with the right status.
//!
//! Modules: `cli`, `disks`, `keys`, `network` and `shares` (flags), `run`, `wires` and `guest` (a guest, and a command in one), `stats` (what was counted), `confine` (`--sandbox`), `images` (`ombra disk`), `find`, `modules` and `initramfs` (what the user didn't
//! bring), `terminal`, `doctor`. What the machine consists of is `machine`'s business.

mod cli;
mod confine;
mod disks;
mod doctor;
mod find;
mod guest;
mod images;
mod initramfs;
mod keys;
mod modules;
mod network;
mod run;
mod shares;
mod stats;
mod terminal;
mod wires;

use clap::Parser;
use clap::error::ErrorKind;
use std::io::{self, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let default_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        terminal::restore();
        default_panic(panic);
    }));
    let done = match &cli.command {
        cli::Command::Run(flags) => {
            watch(flags);
            run::run(flags)
        }
        cli::Command::Disk(command) => {
            messages("warn");
            images::run(command).map(|()| 0)
        }
        cli::Command::Doctor => doctor::run().map(|()| 0),
        cli::Command::KvmProbe => doctor::probe().map(|()| 0),
    };
    terminal::restore();
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // Not `eprintln`, which panics where stderr is closed.
            let _ = writeln!(io::stderr(), "ombra: {error:#}");
            ExitCode::from(run::FAILED)
        }
    }
}

/// Help and versions as clap writes them; of errors what was wrong, and what might have been meant, without the usage.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
    }
    let text = error.to_string();
    let told: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"))
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .collect();
    let told = told.join("; ");
    let _ = writeln!(io::stderr(), "ombra: {} (see --help)", told.strip_prefix("error: ").unwrap_or(&told));
    ExitCode::from(USAGE)
}

/// Messages go to stderr: warnings, with `--verbose` more, and what `OMBRA_LOG` asks for.
fn watch(flags: &cli::Run) {
    let level = match (flags.quiet, flags.verbose) {
        (true, _) => "error",
        (_, true) => "info",
        _ => "warn",
    };
    messages(level);
}

fn messages(level: &str) {
    let filter = EnvFilter::try_from_env("OMBRA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(terminal::Messages)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .init();
}
