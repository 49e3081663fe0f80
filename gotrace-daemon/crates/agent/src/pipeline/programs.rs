//! Parsed programs, shared by all processes that run the same content: containers of one image, copies, hard links.
//!
//! A file is known again by device, inode, time of change and size, and then only if it has the same bytes at every
//! place where probes would go and its last change is older than the grain of its clock; otherwise it is read, and its
//! content tells. What is kept beyond the life of its processes holds no file open: an ended container can be unmounted.
//!
//! What is not in use any more stays for a while: a program that is started every minute is not parsed every minute.

use std::{collections::HashMap, sync::Arc};

use gotrace_common::ROW_SYSCALL;
use sha2::{Digest as _, Sha256};

use super::{LineError, TraceRequests, text::Text};
use gotrace_go::{Binary, Error, gnu_build_id, may_be_go, requests::Requests};
use gotrace_model::Level;
use gotrace_process::{Executable, FileIdentity, Target};

/// Parsed programs that are kept though nobody runs them, beyond those in use; and as many bytes of them.
const IDLE_PROGRAMS: usize = 16;
const IDLE_BYTES: usize = 16 << 20;
/// Files whose content is known, beyond which they are read anew.
const FILES: usize = 1 << 12;
/// Files known to be no Go programs, beyond which they are looked at anew.
const OTHERS: usize = 1 << 16;

/// SHA-256 of a whole executable.
pub(super) type Content = [u8; 32];

/// A Go program.
#[derive(Debug)]
pub(super) struct Program {
    /// What tells it from all others.
    pub content: Content,
    pub binary: Arc<Binary>,
    /// Names of its version's wait reasons, 256 of them.
    pub reasons: Arc<[Arc<str>]>,
    /// What it tells of its requests; nothing where those are not wanted.
    pub requests: Requests,
    /// What its file has where probes go, at the highest level.
    pub text: Text,
    /// Its GNU build id, in hexadecimal digits.
    pub build_id: Option<String>,
}

/// A program, and the file that it was found in.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    pub program: Arc<Program>,
    /// The file as it was before its content was looked at.
    pub file: FileIdentity,
    /// Whether a change of the file since then shows in its identity.
    pub settled: bool,
}

impl Parsed {
    /// Whether the file still has the content that was parsed. To be asked once it can change no more.
    pub fn is_content_of(&self, file: &Executable) -> std::io::Result<bool> {
        if self.settled && file.identity()? == self.file {
            return self.program.text.is_in(file);
        }
        Ok(hash(file)? == self.program.content)
    }
}

/// All that is known of files.
#[derive(Debug, Default)]
pub(super) struct Programs {
    go: HashMap<Content, (Arc<Program>, u64)>,
    files: HashMap<FileIdentity, Content>,
    others: HashMap<FileIdentity, Error>,
    /// What the tables of a program take that found no room.
    too_large: HashMap<FileIdentity, u64>,
    uses: u64,
    parsed: u64,
    /// Programs that nobody ran when that was looked at.
    idle: usize,
    /// Whether files are read whole that do not look like Go programs at first sight.
    thorough: bool,
    /// Functions of which each call is a request; `None` where requests are not traced.
    requests: Option<Arc<[String]>>,
}

impl Programs {
    /// For a program that somebody has named, as opposed to all that there are.
    pub fn thorough() -> Self {
        Self { thorough: true, ..Self::default() }
    }

    /// The same where requests are to be traced.
    pub fn with_requests(self, requests: Option<&TraceRequests>) -> Self {
        Self { requests: requests.map(|requests| Arc::clone(&requests.functions)), ..self }
    }

    /// The program that a process runs. `limit`: bytes that the tables of all programs may take.
    ///
    /// # Errors
    /// [`LineError::Program`] when it is not one that gotrace traces, [`LineError::Process`] when it cannot
    /// be read, [`LineError::NoMemory`] when there is no room for it.
    pub fn of(&mut self, target: &Target, limit: u64) -> Result<Parsed, LineError> {
        let pid = target.pid();
        let file = target.executable_file();
        let looked = |e| target.cannot("stat its executable", e);
        let identity = file.identity().map_err(looked)?;
        let settled = identity.is_settled();
        let found = |program| Parsed { program, file: identity, settled };
        self.uses += 1;
        if settled
            && let Some((program, used)) =
                self.files.get(&identity).and_then(|content| self.go.get_mut(content))
            && program.text.is_in(target.readable_executable()?).map_err(looked)?
        {
            *used = self.uses;
            return Ok(found(Arc::clone(program)));
        }
        let refuse = |error: Error| LineError::Program {
            pid,
            executable: target.executable.display().to_string(),
            error: if target.runs_loader() { error.of_loader() } else { error },
        };
        if let Some(error) = self.others.get(&identity).filter(|_| settled) {
            return Err(refuse(error.clone()));
        }
        if let Some(bytes) = self.too_large.get(&identity).copied().filter(|_| settled) {
            self.check_room(target, bytes, limit)?;
        }
        // What cannot be read is not for that reason no Go program.
        target.readable_executable()?;
        let piece = |offset, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        let parsed = if self.thorough || may_be_go(&piece) {
            let bytes = target.exe_bytes()?;
            // What is mapped is not touched for this.
            let content: Content =
                if bytes.is_copy() { Sha256::digest(&*bytes).into() } else { hash(file).map_err(looked)? };
            if let Some((program, used)) = self.go.get_mut(&content) {
                *used = self.uses;
                let program = Arc::clone(program);
                self.note(identity, content);
                return Ok(found(program));
            }
            self.parsed += 1;
            Binary::parse(&bytes).map(|mut binary| {
                // One that is alone has the room.
                if !self.thorough {
                    binary.pack();
                }
                let mut probes = binary.plan(Level::Full).probes;
                let functions = self.requests.as_deref();
                let requests = functions.map(|named| requests(&binary, &bytes, named)).unwrap_or_default();
                probes.extend(requests.probes());
                let text = Text::read(&bytes, binary.arch(), &probes);
                let reasons = reasons(&binary);
                let build_id = gnu_build_id(&bytes);
                Arc::new(Program { content, binary: Arc::new(binary), reasons, requests, text, build_id })
            })
        } else {
            Err(Error::NotGo { why: "it has no Go sections" })
        };
        match parsed {
            Ok(program) => {
                let bytes = program.binary.bytes() as u64;
                if let Err(error) = self.check_room(target, bytes, limit) {
                    if self.too_large.len() >= OTHERS {
                        self.too_large.clear();
                    }
                    self.too_large.insert(identity, bytes);
                    return Err(error);
                }
                self.go.insert(program.content, (Arc::clone(&program), self.uses));
                self.note(identity, program.content);
                self.let_go();
                Ok(found(program))
            }
            Err(error) => {
                if self.others.len() >= OTHERS {
                    self.others.clear();
                }
                self.others.insert(identity, error.clone());
                Err(refuse(error))
            }
        }
    }

    /// Whether so many bytes more fit, without what nobody runs.
    fn check_room(&self, target: &Target, bytes: u64, limit: u64) -> Result<(), LineError> {
        let used = self.go.values().filter(|(program, _)| Arc::strong_count(program) > 1);
        let used: u64 = used.map(|(program, _)| program.binary.bytes() as u64).sum();
        if used + bytes <= limit {
            return Ok(());
        }
        let executable = target.executable.display().to_string();
        Err(LineError::NoMemory { pid: target.pid(), executable, bytes, limit })
    }

    fn note(&mut self, file: FileIdentity, content: Content) {
        if self.files.len() >= FILES {
            self.files.clear();
        }
        self.files.insert(file, content);
    }

    /// Files that were read whole so far.
    pub fn parsed(&self) -> u64 {
        self.parsed
    }

    /// Forgets programs that nobody runs; whether there are more of those than when this was asked last, so that memory
    /// has become free.
    pub fn tidy(&mut self) -> bool {
        let idle = self.let_go();
        idle > std::mem::replace(&mut self.idle, idle.min(IDLE_PROGRAMS))
    }

    /// Forgets programs that nobody runs, the longest unused first; how many there were.
    fn let_go(&mut self) -> usize {
        let mut idle: Vec<_> = self
            .go
            .iter()
            .filter(|(_, (program, _))| Arc::strong_count(program) == 1)
            .map(|(content, (program, used))| (*used, *content, program.binary.bytes()))
            .collect();
        idle.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let (mut kept, mut bytes) = (0, 0);
        for (_, content, of_it) in &idle {
            bytes += of_it;
            if kept == IDLE_PROGRAMS || bytes > IDLE_BYTES {
                self.go.remove(content);
            } else {
                kept += 1;
            }
        }
        idle.len()
    }
}

/// What a program tells of its requests.
fn requests(binary: &Binary, bytes: &[u8], functions: &[String]) -> Requests {
    binary.requests(bytes, functions).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot look for requests in an executable");
        Requests::default()
    })
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

/// SHA-256 of a whole file.
fn hash(file: &Executable) -> std::io::Result<Content> {
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        match file.read_at(&mut bytes, offset)? {
            0 => return Ok(hash.finalize().into()),
            n => {
                hash.update(&bytes[..n]);
                offset += n as u64;
            }
        }
    }
}
