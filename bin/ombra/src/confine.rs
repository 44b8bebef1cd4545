//! `--sandbox`: what this process can still do once the guest runs. `sandbox` does it, `machine` says what is needed.

use crate::cli::Sandbox;
use anyhow::{Context, Result};
use sandbox::Needs;

/// A process that is confined in two steps.
pub(crate) struct Confined {
    /// `None`: not at all.
    needs: Option<Needs>,
    must: bool,
}

impl Confined {
    /// The first step, before there are threads: files.
    ///
    /// # Errors
    /// The host can't, and it must be.
    pub(crate) fn files(sandbox: Sandbox, needs: Needs) -> Result<Self> {
        let must = sandbox == Sandbox::On;
        if sandbox == Sandbox::Off {
            return Ok(Self { needs: None, must });
        }
        match sandbox::files(&needs) {
            Ok(true) => {}
            Ok(false) => tracing::info!("files aren't confined, since a plug-in may need any"),
            Err(error) if must => {
                return Err(error).context("this process can't be confined (--sandbox=off does without)");
            }
            Err(error) => tracing::info!("{error}"),
        }
        Ok(Self { needs: Some(needs), must })
    }

    /// The second one, when all is set up: system calls.
    ///
    /// # Errors
    /// The host can't, and it must be.
    pub(crate) fn calls(self) -> Result<()> {
        let Some(needs) = self.needs else { return Ok(()) };
        match sandbox::calls(&needs) {
            Err(error) if self.must => {
                Err(error).context("this process can't be confined (--sandbox=off does without)")
            }
            Err(error) => {
                tracing::info!("{error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
