//! Parsed programs, shared by all processes that run one file: read once for each (device, inode, time of
//! change, size), also when it turned out to be no Go program.
//!
//! What is not in use any more stays for a while: a program that is started every minute is not read every
//! minute.

use std::{
    collections::HashMap,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::Arc,
};

use gotrace_common::ROW_SYSCALL;

use super::LineError;
use crate::{
    gobin::{Binary, Error, may_be_go},
    process::Target,
};

/// Parsed programs that are kept though nobody runs them, beyond those in use.
const IDLE_PROGRAMS: usize = 16;
/// Files known to be no Go programs, beyond which they are looked at anew.
const OTHERS: usize = 1 << 16;

/// What tells an executable file from others, and from itself before it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

/// A Go program.
#[derive(Debug)]
pub(super) struct Program {
    pub key: FileKey,
    pub binary: Arc<Binary>,
    /// Names of its version's wait reasons, 256 of them.
    pub reasons: Arc<[Arc<str>]>,
}

/// All that is known of files.
#[derive(Debug, Default)]
pub(super) struct Programs {
    go: HashMap<FileKey, (Arc<Program>, u64)>,
    others: HashMap<FileKey, Error>,
    uses: u64,
    parsed: u64,
}

impl Programs {
    /// The program that a process runs.
    ///
    /// # Errors
    /// [`LineError::Program`] when it is not one that gotrace traces, [`LineError::Process`] when it cannot
    /// be read.
    pub fn of(&mut self, target: &Target) -> Result<Arc<Program>, LineError> {
        let pid = target.pid();
        let file = target.executable_file();
        let metadata = file.metadata().map_err(|e| target.cannot("look at its executable", e))?;
        let key = FileKey {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        };
        self.uses += 1;
        if let Some((program, used)) = self.go.get_mut(&key) {
            *used = self.uses;
            return Ok(Arc::clone(program));
        }
        let refuse =
            |error| LineError::Program { pid, executable: target.executable.display().to_string(), error };
        if let Some(error) = self.others.get(&key) {
            return Err(refuse(error.clone()));
        }
        let piece = |offset, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        let parsed = if may_be_go(&piece) {
            self.parsed += 1;
            Binary::parse(&target.exe_bytes()?)
        } else {
            Err(Error::NotGo { why: "none of its sections is Go's" })
        };
        match parsed {
            Ok(binary) => {
                let reasons = reasons(&binary);
                let program = Arc::new(Program { key, binary: Arc::new(binary), reasons });
                self.go.insert(key, (Arc::clone(&program), self.uses));
                self.let_go();
                Ok(program)
            }
            Err(error) => {
                if self.others.len() >= OTHERS {
                    self.others.clear();
                }
                self.others.insert(key, error.clone());
                Err(refuse(error))
            }
        }
    }

    /// Files that were read whole so far.
    pub fn parsed(&self) -> u64 {
        self.parsed
    }

    /// Forgets programs that nobody runs, the longest unused first.
    fn let_go(&mut self) {
        let mut idle: Vec<_> = self
            .go
            .iter()
            .filter(|(_, (program, _))| Arc::strong_count(program) == 1)
            .map(|(key, (_, used))| (*used, *key))
            .collect();
        if idle.len() > IDLE_PROGRAMS {
            idle.sort_unstable_by_key(|(used, _)| *used);
            for (_, key) in &idle[..idle.len() - IDLE_PROGRAMS] {
                self.go.remove(key);
            }
        }
    }
}

fn reasons(binary: &Binary) -> Arc<[Arc<str>]> {
    let known = binary.wait_reasons();
    (0..256)
        .map(|n| match known.get(n) {
            Some(&"") => Arc::from("unspecified"),
            Some(name) => Arc::from(*name),
            None if n == ROW_SYSCALL as usize => Arc::from("syscall"),
            None => Arc::from(format!("reason {n}")),
        })
        .collect()
}
