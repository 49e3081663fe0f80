//! The kernel's part of the line: which probes are in which process, and at which level.
//!
//! A breakpoint is only ever in an address space that was chosen, on bytes that were parsed: probes are scoped to one
//! process, go into the file that is held open (never into what a path means by now), while that file cannot change
//! ([`Guard`]), and only where the process's own memory has what the file has. After they are in place the memory is
//! read again. What does not hold is an error ([`kernel::Error::NotSafe`]), and nothing stays in place.
//!
//! The kernel calls all probes of a place, whichever process hits it, so that many processes of one file make each
//! other's hits dear. Where every process of the file is chosen one attachment can serve them all
//! ([`Probes::share`]); it gives way to scoped ones when that no longer holds.
//!
//! Probes are removed level by level, in the background.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    num::NonZeroU32,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gotrace_common::{ProcessConfig, flags};

use super::{
    Follow, LineConfig,
    programs::Content,
    retry::load_kernel,
    shares::Slots,
    traced::{Traced, load_bias},
};
use crate::tracee::Step;
use gotrace_go::Probe;
use gotrace_kernel as kernel;
use gotrace_kernel::{Attachment, Calibration, Kernel, Options, Ring, Scope};
use gotrace_model::Level;
use gotrace_process::{FileNode, Guard, ImageMemory, Unguarded};

/// Time between two cleanings of the table of parked goroutines, and two sharings out of it.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// A file that several processes run, whatever mounts they see it through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SharedFile {
    pub node: FileNode,
    pub content: Content,
}

/// What probes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Every process that runs the file.
    File(SharedFile),
    /// This process, by its number.
    Process(u32),
}

/// Probes that are in place.
#[derive(Debug)]
struct Placed {
    /// The number in their cookies, where they are for all processes of a file.
    number: NonZeroU32,
    guard: Arc<Guard>,
    /// The file that they are in.
    file: Option<SharedFile>,
    /// By step.
    groups: [Option<Attachment>; Step::WITH_PROBES.len()],
    /// Numbers of the processes that listen, with their steps.
    listeners: HashMap<u32, Step>,
}

/// The kernel side, and what is in place.
pub(super) struct Probes {
    pub kernel: Kernel,
    pub ring: Ring,
    pub calibration: Calibration,
    /// Whether executions are told by the kernel.
    pub sees_executions: bool,
    /// Whether the kernel counts the executions of traced processes.
    counts_executions: bool,
    places: HashMap<Place, Placed>,
    slots: Slots,
    next_place: NonZeroU32,
    /// Probes on their way out: that takes long, and others are traced meanwhile.
    detaching: Vec<JoinHandle<()>>,
    /// Processes whose goroutines the kernel side has yet to forget, and whether they are not traced any more at all.
    unwatched: BTreeMap<u32, bool>,
    cleaned: Instant,
}

impl Probes {
    pub fn load(config: &LineConfig) -> Result<Self, kernel::Error> {
        // A node's configuration may ask for more later.
        let few = config.level == Level::Lifecycle && config.follow != Follow::Node;
        let options = Options {
            ring_bytes: config.ring_bytes,
            goroutines: if few { 1 } else { config.goroutines },
            processes: config.processes,
            follow_all: config.follow != Follow::Nobody,
            cpu_time: !few,
            requests: config.open_requests(),
            log_level: config.kernel_log_level,
        };
        let mut kernel = load_kernel(&options)?;
        let counts_executions = match kernel.watch_executions() {
            Ok(()) => true,
            Err(error) if config.follow == Follow::Descendants => return Err(error),
            // There are other ways to notice new processes.
            Err(error) => {
                tracing::info!(
                    %error,
                    "cannot watch executions in the kernel: gotrace notices late, from its memory, when a traced process \
                     executes another program"
                );
                false
            }
        };
        if let Err(error) = kernel.watch_thread_ends() {
            tracing::debug!(%error, "a program that ends many threads may find no room for new ones");
        }
        let ring = kernel.ring()?;
        Ok(Self {
            kernel,
            ring,
            calibration: Calibration::start(),
            sees_executions: counts_executions && config.follow != Follow::Nobody,
            counts_executions,
            places: HashMap::new(),
            slots: Slots::new(config.processes, options.goroutines, config.follow != Follow::Nobody),
            next_place: NonZeroU32::MIN,
            detaching: Vec::new(),
            unwatched: BTreeMap::new(),
            cleaned: Instant::now(),
        })
    }

    /// A slot for a process, with nothing counted in it; `None` when all are taken.
    pub fn take_slot(&mut self) -> Option<u32> {
        self.slots.take(&mut self.kernel)
    }

    pub fn give_slot_back(&mut self, slot: u32) {
        self.slots.give_back(slot);
    }

    /// Puts the probes of the process's level in place, as far as they are not, and has it traced.
    ///
    /// # Errors
    /// [`kernel::Error::NotSafe`] where that could harm it, and what the kernel refuses. No probe of the process's own
    /// stays in place then.
    pub fn put_in_place(&mut self, traced: &mut Traced) -> Result<(), kernel::Error> {
        self.try_in_place(traced).or_else(|error| self.clear_away(traced, error))
    }

    /// Takes away what is in place of a process after this error.
    fn clear_away(&mut self, traced: &mut Traced, mut error: kernel::Error) -> Result<(), kernel::Error> {
        // What was found is then of no meaning.
        if !traced.yet_to_execute && traced.watch.has_executed_another_program() {
            error = kernel::Error::Executed { pid: traced.pid() };
        }
        self.unwatch(traced);
        if let Some((place, placed)) = self.listening(traced) {
            placed.listeners.remove(&traced.number());
            self.remove_unwanted(place);
        }
        self.remove_unwanted(Place::Process(traced.number()));
        Err(error)
    }

    fn try_in_place(&mut self, traced: &mut Traced) -> Result<(), kernel::Error> {
        self.unwatched.remove(&traced.number());
        if std::mem::take(&mut traced.stale) {
            self.forget_goroutines(traced);
            self.kernel.forget_pause(traced.config.slot);
        }
        self.watch(traced)?;
        let own = Place::Process(traced.number());
        let shared = traced.shared_file().map(Place::File).filter(|place| {
            !traced.yet_to_execute && !self.places.contains_key(&own) && self.places.contains_key(place)
        });
        if let Some(place) = shared {
            match self.try_at(place, traced) {
                Ok(()) => return Ok(()),
                // It sees another file, which only looks like that one.
                Err(error) => tracing::debug!(pid = traced.pid(), %error, "attaching separate probes"),
            }
            if let Some(placed) = self.places.get_mut(&place) {
                placed.listeners.remove(&traced.number());
            }
            self.remove_unwanted(place);
        }
        self.try_at(own, traced)
    }

    /// Has the kernel count the process's executions from now on, and notes the count of the one that is to be traced.
    fn watch(&mut self, traced: &mut Traced) -> Result<(), kernel::Error> {
        if traced.generation_known {
            return Ok(());
        }
        traced.config.level = 0;
        self.kernel_configure(traced)?;
        let executions = self.kernel.executions(traced.config.slot)?;
        // It has counted one at the most that this does not see, and that one is not of the program that is traced.
        if traced.watch.has_executed_another_program() && !traced.yet_to_execute {
            return Err(kernel::Error::Executed { pid: traced.pid() });
        }
        let expected = u32::from(traced.yet_to_execute && self.counts_executions);
        traced.config.generation = executions.wrapping_add(expected);
        traced.generation_known = true;
        Ok(())
    }

    /// Whether the process has executed no program since the one that it is traced as.
    pub fn is_at_its_execution(&self, traced: &Traced) -> bool {
        self.kernel.executions(traced.config.slot).is_ok_and(|count| count == traced.config.generation)
    }

    fn kernel_configure(&mut self, traced: &Traced) -> Result<(), kernel::Error> {
        if let Some(config) = traced.request_config() {
            self.kernel.configure_requests(traced.config.slot, config)?;
        }
        self.kernel.configure(traced.pid(), traced.config)
    }

    fn try_at(&mut self, place: Place, traced: &mut Traced) -> Result<(), kernel::Error> {
        let number = match self.places.get(&place) {
            Some(placed) => placed.number,
            None => {
                let guard = guard_of(traced)?;
                self.place(place, guard, traced.shared_file())
            }
        };
        if !traced.yet_to_execute {
            let memory = memory_of(traced)?;
            let bias = bias_of(traced)?;
            traced
                .text()
                .check_before(&memory, bias, traced.target().is_ptraced())
                .map_err(|mismatch| not_safe(traced, mismatch.to_string(), false))?;
        }
        let file = if matches!(place, Place::File(_)) { number.get() } else { 0 };
        // The process first: what happens once the first probe is in place is not to be lost. One that listens to
        // others meanwhile is switched over when these are in place, for the same reason.
        let moves = traced.config.level != 0 && traced.config.file != file;
        // Requests last: one that began when its end had no probe yet would seem to be open.
        let requests = traced.requests_flag();
        let begins = requests & !traced.config.flags != 0;
        if begins {
            traced.forget_open_requests(&mut self.kernel);
        }
        let flags = traced.config.flags & !flags::REQUESTS | requests;
        let config = ProcessConfig { file, level: traced.tracee.level() as u8, flags, ..traced.config };
        if !moves {
            let flags = if begins { flags & !flags::REQUESTS } else { flags };
            traced.config = ProcessConfig { flags, ..config };
            self.kernel_configure(traced)?;
        }
        if let Some(placed) = self.places.get_mut(&place) {
            placed.listeners.insert(traced.number(), traced.aim());
        }
        self.attach(place, traced)?;
        if moves || begins {
            traced.config = config;
            self.kernel_configure(traced)?;
        }
        if !traced.yet_to_execute {
            self.verify(traced)?;
        }
        self.remove_unwanted(place);
        Ok(())
    }

    /// Makes room for probes that are to be put in place.
    fn place(&mut self, place: Place, guard: Arc<Guard>, file: Option<SharedFile>) -> NonZeroU32 {
        let number = self.next_place;
        // Four thousand million places later it begins anew, and none of the first is left.
        self.next_place = number.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let groups = [const { None }; Step::WITH_PROBES.len()];
        self.places.insert(place, Placed { number, guard, file, groups, listeners: HashMap::new() });
        number
    }

    /// Whether the process's memory has a breakpoint at each place that has a probe, and nothing else is changed.
    ///
    /// # Errors
    /// [`kernel::Error::NotSafe`]: the probes are to be removed.
    pub fn verify(&mut self, traced: &Traced) -> Result<(), kernel::Error> {
        let (memory, bias) = (memory_of(traced)?, bias_of(traced)?);
        let Some((_, placed)) = self.listening(traced) else { return Ok(()) };
        let probes: Vec<Probe> = Step::WITH_PROBES
            .into_iter()
            .zip(&placed.groups)
            .filter(|(_, group)| group.is_some())
            .flat_map(|(step, _)| traced.plan(step))
            .collect();
        traced
            .text()
            .check_after(&memory, bias, |offset| probes.iter().any(|p| p.file_offset == offset))
            .map_err(|mismatch| not_safe(traced, mismatch.to_string(), false))
    }

    /// Puts what the process's step needs and is not there in place.
    fn attach(&mut self, place: Place, traced: &Traced) -> Result<(), kernel::Error> {
        let Some(placed) = self.places.get_mut(&place) else { return Ok(()) };
        let pid = NonZeroU32::new(traced.pid()).unwrap_or(NonZeroU32::MIN);
        let scope = match place {
            Place::File(_) => Scope::File(placed.number),
            Place::Process(_) => Scope::Process(pid),
        };
        let mut below: Vec<Probe> = Vec::new();
        for (step, group) in Step::WITH_PROBES.into_iter().zip(&mut placed.groups) {
            if step > traced.aim() {
                break;
            }
            let probes = traced.plan(step);
            if group.is_none() {
                let new: Vec<Probe> = probes.iter().filter(|p| !below.contains(p)).cloned().collect();
                let attached = self.kernel.attach(&placed.guard.path(), scope, &new, || self.ring.keep())?;
                *group = Some(attached.guarded_by(Arc::clone(&placed.guard)));
            }
            below = probes;
        }
        Ok(())
    }

    /// The process's step has changed ([`Traced::aim`]): probes come or go with it, and the kernel side is told.
    ///
    /// Going down, goroutines that the kernel side keeps track of are forgotten: what it knows of them grows
    /// old.
    ///
    /// # Errors
    /// As [`Self::put_in_place`]; but where the kernel has not what it takes just now
    /// ([`kernel::Error::is_passing`]), the step stays as it was, and so do the probes of it.
    pub fn change_step(&mut self, traced: &mut Traced, before: Step) -> Result<(), kernel::Error> {
        if traced.aim() > before {
            return self.raise(traced, before);
        }
        traced.config.level = traced.tracee.level() as u8;
        traced.config.flags &= !flags::REQUESTS;
        self.kernel_configure(traced)?;
        if traced.tracee.level() < Level::Waits {
            self.forget_goroutines(traced);
        }
        traced.forget_open_requests(&mut self.kernel);
        if let Some((place, placed)) = self.listening(traced) {
            placed.listeners.insert(traced.number(), traced.aim());
            self.remove_unwanted(place);
        }
        Ok(())
    }

    fn raise(&mut self, traced: &mut Traced, before: Step) -> Result<(), kernel::Error> {
        let error = match self.try_in_place(traced) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_passing() {
            return self.clear_away(traced, error);
        }
        traced.set_aim(before);
        traced.config.level = traced.tracee.level() as u8;
        traced.config.flags &= !flags::REQUESTS;
        if self.kernel_configure(traced).is_err() {
            return self.clear_away(traced, not_safe(traced, error.to_string(), false));
        }
        if let Some((place, placed)) = self.listening(traced) {
            placed.listeners.insert(traced.number(), before);
            self.remove_unwanted(place);
        }
        Err(error)
    }

    /// The process is not traced by probes any more.
    pub fn remove(&mut self, traced: &mut Traced) {
        self.unwatch(traced);
        let has_ended = traced.watch.has_ended();
        if let Some((place, placed)) = self.listening(traced) {
            placed.listeners.remove(&traced.number());
            if has_ended && place == Place::Process(traced.number()) {
                // Nothing can run with them any more: whoever wants to write the file need not wait.
                placed.groups.iter_mut().flatten().for_each(Attachment::unguard);
            }
            self.remove_unwanted(place);
        }
    }

    /// The kernel side is told that hits in the process count no more, and is to forget its goroutines.
    fn unwatch(&mut self, traced: &mut Traced) {
        self.kernel.forget(traced.pid());
        self.unwatched.entry(traced.number()).or_insert(false);
        traced.config.flags &= !flags::REQUESTS;
        traced.stale = true;
    }

    /// The process, whose probes were removed, is not traced any more: what was counted of it goes too.
    pub fn leave(&mut self, traced: &Traced) {
        self.unwatched.insert(traced.number(), true);
    }

    /// The probes that the process listens to.
    fn listening(&mut self, traced: &Traced) -> Option<(Place, &mut Placed)> {
        let own = Some(Place::Process(traced.number()));
        let place = [own, traced.shared_file().map(Place::File)].into_iter().flatten().find(|place| {
            self.places.get(place).is_some_and(|p| p.listeners.contains_key(&traced.number()))
        })?;
        Some((place, self.places.get_mut(&place)?))
    }

    /// The file whose probes the process shares with all that run it.
    pub fn shares(&self, traced: &Traced) -> Option<SharedFile> {
        let file = traced.shared_file()?;
        let placed = self.places.get(&Place::File(file))?;
        placed.listeners.contains_key(&traced.number()).then_some(file)
    }

    /// Whether one attachment serves all processes of the file.
    pub fn is_shared(&self, file: SharedFile) -> bool {
        self.places.contains_key(&Place::File(file))
    }

    /// Whether one attachment can serve all processes of a file, and not be taken for those of a single one.
    pub fn can_share(&self) -> bool {
        self.kernel.has_cookies()
    }

    /// Has one attachment serve these processes of a file, all that there are, instead of one each.
    ///
    /// # Errors
    /// What the kernel refuses; each keeps its own then.
    pub fn share(&mut self, file: SharedFile, members: &mut [&mut Traced]) -> Result<(), kernel::Error> {
        let Some(highest) = members.iter().max_by_key(|t| t.aim()) else { return Ok(()) };
        let place = Place::File(file);
        let number = self.place(place, guard_of(highest)?, Some(file));
        if let Err(error) = self.attach(place, highest) {
            self.remove_unwanted(place);
            return Err(error);
        }
        for traced in members.iter_mut() {
            let own = Place::Process(traced.number());
            traced.config.file = number.get();
            if let Err(error) = self.kernel_configure(traced) {
                traced.config.file = 0;
                tracing::debug!(pid = traced.pid(), %error, "keeping separate probes");
                continue;
            }
            if let Some(placed) = self.places.get_mut(&place) {
                placed.listeners.insert(traced.number(), traced.aim());
            }
            if let Some(placed) = self.places.get_mut(&own) {
                placed.listeners.clear();
            }
            self.remove_unwanted(own);
        }
        self.remove_unwanted(place);
        Ok(())
    }

    /// Gives processes of a file probes of their own again, at most so many. Returns those that got none, by number, and
    /// what the kernel refused.
    pub fn unshare(
        &mut self,
        file: SharedFile,
        traced: &mut [Traced],
        limit: usize,
    ) -> Vec<(u32, Option<kernel::Error>)> {
        let place = Place::File(file);
        let mut failed = Vec::new();
        let Some(placed) = self.places.get(&place) else { return failed };
        let listeners: Vec<u32> = placed.listeners.keys().copied().collect();
        for (n, traced) in traced.iter_mut().filter(|t| listeners.contains(&t.number())).enumerate() {
            let own = Place::Process(traced.number());
            let result = if n < limit { self.try_at(own, traced).map_err(Some) } else { Err(None) };
            if let Err(error) = result {
                self.unwatch(traced);
                failed.push((traced.number(), error));
                if let Some(placed) = self.places.get_mut(&own) {
                    placed.listeners.clear();
                }
                self.remove_unwanted(own);
            }
        }
        if let Some(placed) = self.places.get_mut(&place) {
            placed.listeners.clear();
        }
        self.remove_unwanted(place);
        failed
    }

    /// Numbers of the processes whose probes are to come off at once: somebody is about to write their file.
    pub fn broken(&self) -> Vec<u32> {
        let broken = self.places.values().filter(|placed| placed.guard.is_broken());
        broken.flat_map(|placed| placed.listeners.keys().copied()).collect()
    }

    /// What the kernel side keeps of a process's goroutines is to go, now: its waits may be watched again.
    fn forget_goroutines(&mut self, traced: &Traced) {
        let number = traced.number();
        let forgotten = self.kernel.forget_goroutines(|process| process == number);
        if let Err(error) = forgotten.and_then(|_| self.kernel.clear_held(traced.config.slot)) {
            tracing::warn!(%error, "waits that began before the level change may be reported too long");
        }
    }

    /// Removes the probes that no listener's level needs.
    fn remove_unwanted(&mut self, place: Place) {
        let Some(placed) = self.places.get_mut(&place) else { return };
        let highest = placed.listeners.values().max().copied();
        let mut unwanted = Vec::new();
        for (step, group) in Step::WITH_PROBES.into_iter().zip(&mut placed.groups) {
            if highest.is_none_or(|highest| step > highest) {
                unwanted.extend(group.take());
            }
        }
        if placed.listeners.is_empty() {
            self.places.remove(&place);
        }
        if unwanted.is_empty() {
            return;
        }
        self.detaching.retain(|thread| !thread.is_finished());
        for attachment in unwanted {
            // Without a thread the closure is dropped here, and the probes are removed with it.
            let thread =
                thread::Builder::new().name("gotrace-detach".into()).spawn(move || attachment.detach());
            self.detaching.extend(thread);
        }
    }

    /// Now and then: forgets goroutines of processes that are not traced any more, and shares the table out anew.
    pub fn clean(&mut self, now: Instant) {
        if now.duration_since(self.cleaned) < CLEAN_EVERY {
            return;
        }
        self.cleaned = now;
        self.slots.share_out(&mut self.kernel);
        if self.unwatched.is_empty() {
            return;
        }
        let unwatched = std::mem::take(&mut self.unwatched);
        let gone = |process| unwatched.contains_key(&process);
        let left = |process| unwatched.get(&process) == Some(&true);
        let requests = self.kernel.forget_requests(gone, false);
        let requests = requests.and_then(|()| self.kernel.forget_requests(left, true));
        match requests.and_then(|()| self.kernel.forget_goroutines(gone)) {
            Ok(goroutines) => tracing::debug!(goroutines, "removed goroutines of exited processes"),
            Err(error) => {
                tracing::warn!(%error, "cannot remove goroutines of exited processes from the kernel table");
            }
        }
    }

    /// Files that have probes; one counts once, however many processes run it.
    pub fn files(&self) -> usize {
        let files: HashSet<Option<SharedFile>> = self.places.values().map(|placed| placed.file).collect();
        files.len()
    }

    /// The threads that remove probes, to be waited for.
    pub fn into_detaching(self) -> Vec<JoinHandle<()>> {
        // What could not be removed was logged, and goes when gotrace ends.
        self.detaching
    }
}

fn not_safe(traced: &Traced, reason: String, permission: bool) -> kernel::Error {
    kernel::Error::NotSafe { pid: traced.pid(), reason, permission }
}

/// Keeps the process's file as it is, and as it was parsed.
fn guard_of(traced: &Traced) -> Result<Arc<Guard>, kernel::Error> {
    let target = traced.target();
    let guard = Guard::new(target.executable_file()).map_err(|error| {
        let permission = matches!(error, Unguarded::NoLease { permission: true, .. });
        not_safe(traced, error.to_string(), permission)
    })?;
    match traced.parsed().is_content_of(target.executable_file()) {
        Ok(true) => Ok(Arc::new(guard)),
        Ok(false) => Err(not_safe(traced, "its executable has changed since it was parsed".into(), false)),
        Err(error) => Err(not_safe(traced, format!("cannot read its executable: {error}"), false)),
    }
}

fn memory_of(traced: &Traced) -> Result<ImageMemory, kernel::Error> {
    let refused = || {
        let reason = "cannot open its memory to compare it with its executable";
        not_safe(traced, reason.into(), true)
    };
    let image = traced.watch.image().ok_or_else(refused)?;
    image.memory().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => kernel::Error::Executed { pid: traced.pid() },
        _ => refused(),
    })
}

fn bias_of(traced: &Traced) -> Result<u64, kernel::Error> {
    load_bias(traced.target(), traced.binary())
        .ok_or_else(|| not_safe(traced, "cannot find where its executable is mapped".into(), false))
}
