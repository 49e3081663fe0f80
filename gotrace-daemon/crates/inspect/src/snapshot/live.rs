//! The living process as a source of snapshots: its program, where it is mapped, its memory.

use std::sync::Arc;

use super::{Engine, Names, Options, References, Snapshot, SnapshotError, Suspect};
use gotrace_go::Binary;
use gotrace_process::{Memory, OpenFiles, ProcessError, Target};

/// A process that snapshots are taken of.
#[derive(Debug)]
pub struct Live {
    pid: u32,
    engine: Engine,
    memory: Memory,
    files: OpenFiles,
}

impl Live {
    /// Prepares; reads where the program is mapped, and nothing of its memory.
    ///
    /// # Errors
    /// When the process is gone, its maps may not be read, or the program does not tell what is needed.
    pub fn new(target: &Target, binary: Arc<Binary>) -> Result<Self, SnapshotError> {
        let mut engine = Engine::new(Arc::clone(&binary), bias(target, &binary)?)?;
        engine.clock_offset_ns = target.monotonic_offset();
        Ok(Self { pid: target.pid(), engine, memory: target.memory(), files: target.open_files() })
    }

    /// Reads all goroutines now.
    ///
    /// # Errors
    /// As [`Engine::take`].
    pub fn take(&mut self, options: Options) -> Result<Snapshot, SnapshotError> {
        let mut snapshot = self.engine.take(&self.memory, options)?;
        snapshot.pid = self.pid;
        Ok(snapshot)
    }

    /// Looks up what goroutines of a snapshot of this process wait for outside of it, and adds that to
    /// [`Snapshot::outside`]. What cannot be read is left out.
    pub fn look_outside(&self, snapshot: &mut Snapshot, goids: impl IntoIterator<Item = u64>) {
        let goids = &mut goids.into_iter();
        // That the process is gone is said by whoever reads its memory next.
        let _ = self.engine.look_outside(&self.memory, &self.files, snapshot, goids);
    }

    /// Who holds the addresses that suspects wait on.
    ///
    /// # Errors
    /// As [`Engine::find_references`].
    pub fn find_references(
        &self,
        snapshot: &Snapshot,
        suspects: &[Suspect],
    ) -> Result<References, ProcessError> {
        self.engine.find_references(&self.memory, snapshot, suspects)
    }

    /// Whether the process looks like a Go program of its version: cheap, for a check before anything is
    /// believed.
    ///
    /// # Errors
    /// As [`Engine::check_layout`].
    pub fn check_layout(&mut self) -> Result<(), SnapshotError> {
        self.engine.check_layout(&self.memory)
    }

    /// What must be known before its snapshots are believed; told after the first look.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.engine.warning()
    }

    /// How many goroutines it reads at most.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.engine.most()
    }

    /// As [`Engine::set_most`].
    pub fn set_most(&mut self, goroutines: u64) {
        self.engine.set_most(goroutines);
    }

    /// As [`Engine::set_most_frames`].
    pub fn set_most_frames(&mut self, frames: u64) {
        self.engine.set_most_frames(frames);
    }

    /// As [`Engine::listed`].
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.engine.listed(&self.memory)
    }

    /// As [`Engine::always_use_two_readers`].
    pub fn always_use_two_readers(&mut self) {
        self.engine.always_use_two_readers();
    }

    /// Names for its addresses.
    #[must_use]
    pub fn names(&self, target: &Target) -> Names {
        let file = Some(Arc::clone(target.executable_file()));
        Names::new(Arc::clone(self.engine.binary()), self.engine.bias(), file)
    }

    /// Mapped address less link-time address.
    #[must_use]
    pub fn bias(&self) -> u64 {
        self.engine.bias()
    }

    /// Its program.
    #[must_use]
    pub fn binary(&self) -> &Arc<Binary> {
        self.engine.binary()
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Mapped address less link-time address.
fn bias(target: &Target, binary: &Binary) -> Result<u64, SnapshotError> {
    if !binary.build().pie {
        return Ok(0);
    }
    let mappings = target.executable_mappings()?;
    mappings.iter().find_map(|m| binary.load_bias(m.start, m.file_offset)).ok_or_else(|| {
        SnapshotError::Implausible {
            version: binary.go_version().text.clone(),
            why: format!("its executable {} is not mapped", target.executable.display()),
        }
    })
}
