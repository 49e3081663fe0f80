//! Runs the Go program that parks goroutines in every way, takes a snapshot of it, and holds that against
//! its own tracebacks: `runtime.Stack` before, and the whole one on SIGQUIT after, which ends it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gotrace_go::Binary;
use gotrace_inspect::snapshot::{
    Counts, Engine, Goroutine, Live, Names, ObjectKind, Op, Options, Snapshot, Status,
};
use gotrace_process::Target;

use crate::{
    fixture::{PATIENCE, read_lines},
    traceback::{self, Frame, parse},
};

/// The running program.
#[derive(Debug)]
pub struct Stacks {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
    /// Addresses of its locks, by name; and numbers of its descriptors, with `fd:` before their names.
    pub objects: BTreeMap<String, u64>,
}

impl Stacks {
    /// Starts it, and waits until all goroutines are parked. `launcher`: what runs a program of another
    /// architecture.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path, launcher: Option<&str>) -> Result<Self> {
        let mut command = Command::new(launcher.map_or(program, Path::new));
        if launcher.is_some() {
            command.arg(program);
        }
        let mut child = command
            .env("GOTRACEBACK", "system")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let stdin = child.stdin.take().context("a pipe")?;
        let lines = read_lines(child.stdout.take().context("a pipe")?);
        let mut stderr = child.stderr.take().context("a pipe")?;
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut this = Self { child, stdin, lines, errors: Some(errors), objects: BTreeMap::new() };
        let ready = this.line()?;
        let words: Vec<&str> = ready.split(' ').collect();
        ensure!(words.first() == Some(&"READY"), "the program said {ready}");
        for pair in words[1..].chunks_exact(2) {
            let address = u64::from_str_radix(pair[1].trim_start_matches("0x"), 16)?;
            this.objects.insert(pair[0].to_owned(), address);
        }
        Ok(this)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&self) -> Result<String> {
        self.lines.recv_timeout(PATIENCE).map_err(|e| anyhow!("the program says nothing: {e}"))
    }

    /// What `runtime.Stack` says of all goroutines.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn own(&mut self) -> Result<BTreeMap<u64, traceback::Goroutine>> {
        Ok(parse(&self.own_text()?))
    }

    /// The text of `runtime.Stack` of all goroutines. Afterwards its first goroutine waits for input again.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn own_text(&mut self) -> Result<String> {
        self.say("stacks")
    }

    /// Its goroutine profile as text, `pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)`.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn own_profile(&mut self) -> Result<String> {
        self.say("profile")
    }

    fn say(&mut self, command: &str) -> Result<String> {
        writeln!(self.stdin, "{command}")?;
        let mut text = String::new();
        loop {
            let line = self.line()?;
            if line == "END" {
                self.wait_until_it_reads()?;
                return Ok(text);
            }
            text.push_str(&line);
            text.push('\n');
        }
    }

    /// It still writes when its last line can be read already, under an emulator for longer.
    fn wait_until_it_reads(&self) -> Result<()> {
        let reads = format!("{} 0x0 ", libc::SYS_read);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                // A thread may have ended.
                let call = std::fs::read_to_string(task?.path().join("syscall")).unwrap_or_default();
                if call.starts_with(&reads) {
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("the program does not read its input again")
    }

    /// What the runtime prints when it ends the program on SIGQUIT.
    ///
    /// # Errors
    /// Where it has ended before.
    pub fn quit(mut self) -> Result<BTreeMap<u64, traceback::Goroutine>> {
        let pid = i32::try_from(self.pid())?;
        // SAFETY: kill takes no pointer; the process is our child and not yet waited for.
        ensure!(unsafe { libc::kill(pid, libc::SIGQUIT) } == 0, "the program could not be told to quit");
        self.child.wait()?;
        let errors = self.errors.take().and_then(|t| t.join().ok()).unwrap_or_default();
        Ok(parse(&errors))
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What agreed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    /// Goroutines of both.
    pub goroutines: usize,
    /// Frames that were compared.
    pub frames: usize,
}

/// Takes a snapshot of the program, with one thread or two, and holds it against both of its tracebacks.
///
/// # Errors
/// Every disagreement, one a line.
pub fn check(program: &Path, two_readers: bool) -> Result<Agreed> {
    let mut stacks = Stacks::start(program, None)?;
    let own = stacks.own()?;
    let target = Target::open(stacks.pid())?;
    let binary = Arc::new(Binary::parse(&target.exe_bytes()?)?);
    let mut live = Live::new(&target, binary)?;
    live.check_layout()?;
    if two_readers {
        live.always_use_two_readers();
    }
    let snapshot = live.take(EVERYTHING)?;
    judge(stacks, &own, &snapshot, &mut live.names(&target))
}

const EVERYTHING: Options =
    Options { stacks: true, waits: true, labels: true, arguments: true, callees: false };

/// The emulator that runs programs for arm64.
const EMULATOR: &str = "qemu-aarch64";

/// As [`check`], for a program for arm64 that an emulator runs, whose memory lies in the emulator's own
/// at the addresses that the program has.
///
/// # Errors
/// Every disagreement, one a line; the emulator not being there, with the command that installs it.
pub fn check_emulated(program: &Path) -> Result<Agreed> {
    let mut stacks = Stacks::start(program, Some(EMULATOR)).with_context(|| {
        format!("{EMULATOR} does not run: `cargo xtask setup` installs what the tests need (qemu-user)")
    })?;
    let own = stacks.own()?;
    let binary = Arc::new(Binary::parse(&std::fs::read(program)?)?);
    let mut engine = Engine::new(Arc::clone(&binary), 0)?;
    let memory = Target::open(stacks.pid())?.memory();
    engine.check_layout(&memory)?;
    let snapshot = engine.take(&memory, EVERYTHING)?;
    judge(stacks, &own, &snapshot, &mut Names::new(binary, 0, None))
}

fn judge(
    mut stacks: Stacks,
    own: &BTreeMap<u64, traceback::Goroutine>,
    snapshot: &Snapshot,
    names: &mut Names,
) -> Result<Agreed> {
    let mut wrong = Vec::new();
    locks(snapshot, &stacks.objects, &mut wrong);
    descriptors(snapshot, &stacks.objects, &mut wrong);
    labels(snapshot, &mut wrong);
    arguments(snapshot, names, own, &stacks.own()?, &mut wrong);
    let whole = stacks.quit()?;
    let Counts { stacks_incomplete, stacks_missing, unreadable, implausible, duplicates, .. } =
        snapshot.counts;
    let Counts { torn, waits_unreadable, labels_unreadable, .. } = snapshot.counts;
    let unread = stacks_incomplete + stacks_missing + unreadable + implausible + duplicates;
    if unread + torn + waits_unreadable + labels_unreadable != 0 {
        wrong.push(format!("a program that stands still is read with {:?}", snapshot.counts));
    }
    let agreed = compare(snapshot, names, &whole, true, &mut wrong);
    compare(snapshot, names, own, false, &mut wrong);
    ensure!(agreed.goroutines > 40, "only {} goroutines", agreed.goroutines);
    ensure!(wrong.is_empty(), "{} disagreements:\n  {}", wrong.len(), wrong.join("\n  "));
    Ok(agreed)
}

/// Holds arguments against those of two tracebacks, before and after, where these agree: the collector may
/// move stacks, and with them what points to them.
fn arguments(
    snapshot: &Snapshot,
    names: &mut Names,
    before: &BTreeMap<u64, traceback::Goroutine>,
    after: &BTreeMap<u64, traceback::Goroutine>,
    wrong: &mut Vec<String>,
) {
    let (mut still, mut numbers) = (0, 0);
    for (goid, theirs) in before {
        let Some(goroutine) = snapshot.goroutine(*goid).filter(|g| g.goid != 1) else { continue };
        if after.get(goid) != Some(theirs) {
            continue;
        }
        still += 1;
        let physical = snapshot.arguments_of(goroutine);
        let shown = names.stack(snapshot.frames(goroutine)).into_iter().filter(|f| !f.internal).map(|f| {
            let known = if f.frame.inlined { Some("...") } else { physical[f.physical].as_deref() };
            known.unwrap_or("unknown").to_owned()
        });
        let inner = theirs.elided_after.unwrap_or(theirs.arguments.len());
        let shown: Vec<String> = shown.take(inner).collect();
        numbers += shown.iter().filter(|a| a.contains("0x")).count();
        if shown != theirs.arguments[..inner] {
            let theirs = &theirs.arguments[..inner];
            wrong.push(format!(
                "goroutine {goid}: arguments:\n    snapshot  {shown:?}\n    traceback {theirs:?}"
            ));
        }
    }
    if still < 30 || numbers < 100 || snapshot.counts.arguments_unreadable != 0 {
        let unreadable = snapshot.counts.arguments_unreadable;
        wrong.push(format!(
            "arguments: {still} goroutines stood still, {numbers} frames with numbers, {unreadable} unreadable"
        ));
    }
}

/// Holds a snapshot against a traceback. `whole`: with the runtime's own goroutines and frames.
pub fn compare(
    snapshot: &Snapshot,
    names: &mut Names,
    dump: &BTreeMap<u64, traceback::Goroutine>,
    whole: bool,
    wrong: &mut Vec<String>,
) -> Agreed {
    let mut agreed = Agreed::default();
    let ours: BTreeSet<u64> =
        snapshot.goroutines.iter().filter(|g| whole || !g.is_system()).map(|g| g.goid).collect();
    let theirs: BTreeSet<u64> = dump.keys().copied().collect();
    if ours != theirs {
        let only = |a: &BTreeSet<u64>, b: &BTreeSet<u64>| a.difference(b).copied().collect::<Vec<_>>();
        wrong.push(format!(
            "goroutines: {:?} only in the snapshot, {:?} only in the traceback",
            only(&ours, &theirs),
            only(&theirs, &ours)
        ));
    }
    for (goid, theirs) in dump {
        // The one that prints its traceback runs meanwhile.
        if !whole && *goid == 1 {
            continue;
        }
        let Some(ours) = snapshot.goroutine(*goid) else { continue };
        agreed.goroutines += 1;
        let mut differs = |what: &str, a: String, b: String| {
            if a != b {
                wrong.push(format!("goroutine {goid}: {what}:\n    snapshot  {a}\n    traceback {b}"));
            }
        };
        differs("state", state(ours, names), theirs.state.clone());
        differs("locked", ours.is_locked_to_thread().to_string(), theirs.locked.to_string());
        let frames: Vec<Frame> = names
            .stack(snapshot.frames(ours))
            .iter()
            .filter(|f| whole || !f.internal)
            .enumerate()
            .map(|(n, f)| Frame {
                function: match f.frame.function.as_str() {
                    "runtime.gopanic" if whole || n > 0 || !f.internal => "panic".to_owned(),
                    name => name.to_owned(),
                },
                position: format!("{}:{}", f.frame.file, f.frame.line),
            })
            .collect();
        // Up to Go 1.20 runtime.Stack ends after 100 frames, hidden ones included, and does not say so.
        let silent = !whole && (90..100).contains(&theirs.frames.len()) && frames.len() > 100;
        let elided = theirs.elided_after.or(silent.then_some(theirs.frames.len()));
        let inner = elided.unwrap_or(theirs.frames.len()).min(frames.len());
        let outer = theirs.frames.len() - elided.unwrap_or(theirs.frames.len());
        if elided.is_none() {
            differs("number of frames", frames.len().to_string(), theirs.frames.len().to_string());
        }
        let show = |f: &[Frame]| format!("{f:?}");
        differs(
            "innermost frames",
            show(&frames[..inner]),
            show(&theirs.frames[..inner.min(theirs.frames.len())]),
        );
        let (a, b) = (frames.len().saturating_sub(outer), theirs.frames.len() - outer);
        differs("outermost frames", show(&frames[a..]), show(&theirs.frames[b..]));
        agreed.frames += theirs.frames.len();
        if let Some(created) = &theirs.created_by {
            let made = names.created_by(ours.created_pc);
            let position = made.first().map(|f| format!("{}:{}", f.file, f.line));
            differs("made at", position.unwrap_or_default(), created.position.clone());
            let function = made.last().map(|f| f.function.clone());
            differs("made by", function.unwrap_or_default(), created.function.clone());
        } else if whole && ours.created_pc != 0 && !snapshot.frames(ours).is_empty() && ours.entry_pc != 0 {
            differs("made by", "somebody".into(), "nobody".into());
        }
        if let (Some(parent), Some(ours)) = (theirs.parent, ours.parent_goid) {
            differs("parent", ours.to_string(), parent.to_string());
        }
    }
    agreed
}

fn state(goroutine: &Goroutine, names: &Names) -> String {
    match goroutine.status {
        Status::Waiting | Status::Leaked => {
            names.binary().wait_reasons()[usize::from(goroutine.wait_reason)].to_owned()
        }
        other => other.name().to_owned(),
    }
}

/// Locks by their kinds and addresses.
fn locks(snapshot: &Snapshot, objects: &BTreeMap<String, u64>, wrong: &mut Vec<String>) {
    for (name, address) in objects.iter().filter(|(name, _)| !name.starts_with("fd:")) {
        let kind = match name.as_str() {
            "mutex" | "cond" => name.as_str(),
            "group" => "waitgroup",
            _ => "rwmutex",
        };
        let found = snapshot.objects.iter().any(|o| o.kind.name() == kind && o.address == *address);
        if !found {
            wrong.push(format!("nothing waits on the {kind} {name} at {address:#x}: {:?}", snapshot.objects));
        }
    }
}

/// Descriptors by number: one goroutine reads from each, and nobody else waits on one.
fn descriptors(snapshot: &Snapshot, objects: &BTreeMap<String, u64>, wrong: &mut Vec<String>) {
    let expected: BTreeSet<Option<u64>> =
        objects.iter().filter(|(name, _)| name.starts_with("fd:")).map(|(_, n)| Some(*n)).collect();
    let waits = snapshot.goroutines.iter().flat_map(|g| snapshot.waits_of(g));
    let found: Vec<(Option<u64>, Option<Op>)> = waits
        .filter_map(|w| Some((snapshot.object(w.object)?, w.op)))
        .filter(|(o, _)| o.kind == ObjectKind::Fd)
        .map(|(o, op)| (o.descriptor().map(u64::from), op))
        .collect();
    let numbers: BTreeSet<Option<u64>> = found.iter().map(|(number, _)| *number).collect();
    if numbers != expected || found.len() != 2 || found.iter().any(|(_, op)| *op != Some(Op::Read)) {
        wrong.push(format!("the descriptors {expected:?} are read from, and gotrace tells {found:?}"));
    }
}

fn labels(snapshot: &Snapshot, wrong: &mut Vec<String>) {
    let sets: Vec<_> = snapshot.goroutines.iter().map(|g| snapshot.labels_of(g)).collect();
    let orders = [("endpoint", "/orders"), ("tenant", "blue")];
    let is_orders =
        |set: &&[(Box<str>, Box<str>)]| set.iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>() == orders;
    let is_many = |set: &&[(Box<str>, Box<str>)]| {
        set.len() == 20
            && set
                .iter()
                .enumerate()
                .all(|(n, (k, v))| **k == format!("key{n:02}") && **v == format!("value{n}"))
    };
    let (few, many) =
        (sets.iter().filter(|s| is_orders(s)).count(), sets.iter().filter(|s| is_many(s)).count());
    if (few, many) != (1, 1) {
        wrong.push(format!("labels: {:?}", snapshot.labels));
    }
}
