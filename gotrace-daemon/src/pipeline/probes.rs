//! The kernel's part of the line: which probes are in which file, which processes listen to them, and at
//! which level.
//!
//! Probes are put into a file once, for all processes that run it, or for one process alone (`attach`,
//! `exec`, and kernels that cannot tell two ways to a file apart). They are removed level by level, in the
//! background, as soon as nobody wants them: the kernel takes a tenth of a second, where they are perf events
//! for each.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gotrace_common::ROW_SYSCALL;

use super::{Follow, LineConfig, programs::FileKey, traced::Traced};
use crate::{
    decode::OpenWait,
    gobin::Probe,
    kernel::{self, Attachment, Calibration, Kernel, Options, Ring, Scope},
    level::Level,
    process::Clock,
};

/// Time between two cleanings of the table of parked goroutines.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// What probes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Every process that runs the file.
    File(FileKey),
    /// This process, by its number.
    Process(u32),
}

/// Probes that are in place.
#[derive(Debug)]
struct Placed {
    /// Their cookie.
    number: NonZeroU32,
    /// By level, least first.
    groups: [Option<Attachment>; 3],
    /// Numbers of the processes that listen, with their levels.
    listeners: HashMap<u32, Level>,
}

/// The kernel side, and what is in place.
pub(super) struct Probes {
    pub kernel: Kernel,
    pub ring: Ring,
    pub calibration: Calibration,
    /// Whether executions are told by the kernel.
    pub sees_executions: bool,
    places: HashMap<Place, Placed>,
    /// Slots that are taken, and that were.
    slots: Vec<Slot>,
    next_place: NonZeroU32,
    /// Probes on their way out: that takes long, and others are traced meanwhile.
    detaching: Vec<JoinHandle<()>>,
    /// Processes whose goroutines the kernel side has yet to forget.
    unwatched: BTreeSet<u32>,
    cleaned: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    New,
    Taken,
    Used,
}

impl Probes {
    pub fn load(config: &LineConfig) -> Result<Self, kernel::Error> {
        let node = config.follow == Follow::Node;
        let options = Options {
            ring_bytes: config.ring_bytes,
            goroutines: if config.level == Level::Lifecycle { 1 } else { config.goroutines },
            processes: config.processes,
            follow_all: config.follow != Follow::Nobody,
            share_probes: node,
            log_level: config.kernel_log_level,
        };
        let mut kernel = Kernel::load(&options)?;
        let sees_executions = match config.follow {
            // A program that takes the traced one's place is switched off at once; without this it is noticed
            // within an interval.
            Follow::Nobody => {
                if let Err(error) = kernel.watch_executions() {
                    tracing::debug!(%error, "executions are not told by the kernel's tracepoint");
                }
                false
            }
            Follow::Descendants => kernel.watch_executions().map(|()| true)?,
            // There are other ways to notice new processes.
            Follow::Node => match kernel.watch_executions() {
                Ok(()) => true,
                Err(error) => {
                    tracing::info!(%error, "executions are not told by the kernel's tracepoint");
                    false
                }
            },
        };
        let ring = kernel.ring()?;
        Ok(Self {
            kernel,
            ring,
            calibration: Calibration::start(),
            sees_executions,
            places: HashMap::new(),
            slots: vec![Slot::New; config.processes as usize],
            next_place: NonZeroU32::MIN,
            detaching: Vec::new(),
            unwatched: BTreeSet::new(),
            cleaned: Instant::now(),
        })
    }

    /// A slot for a process, with nothing counted in it; `None` when all are taken.
    pub fn take_slot(&mut self) -> Option<u32> {
        let free = |wanted| self.slots.iter().position(|s| *s == wanted);
        let index = free(Slot::New).or_else(|| free(Slot::Used))?;
        let slot = u32::try_from(index).ok()?;
        if self.slots.get(index) == Some(&Slot::Used)
            && let Err(error) = self.kernel.clear_slot(slot)
        {
            tracing::warn!(%error, "what another process was counted for may be among the next one's figures");
        }
        *self.slots.get_mut(index)? = Slot::Taken;
        Some(slot)
    }

    pub fn give_slot_back(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            *slot = Slot::Used;
        }
    }

    /// Puts the probes of the process's level in place, as far as they are not, and has it traced.
    pub fn put_in_place(&mut self, traced: &mut Traced) -> Result<(), kernel::Error> {
        let place = self.place_of(traced);
        let number = match self.places.get(&place) {
            Some(placed) => placed.number,
            None => {
                let number = self.next_place;
                // Two thousand million files later it begins anew, and none of the first is left.
                self.next_place = number.checked_add(1).unwrap_or(NonZeroU32::MIN);
                let groups = [None, None, None];
                self.places.insert(place, Placed { number, groups, listeners: HashMap::new() });
                number
            }
        };
        if self.unwatched.remove(&traced.number()) {
            self.forget_goroutines(traced.number());
        }
        traced.config.file = if matches!(place, Place::File(_)) { number.get() } else { 0 };
        traced.config.level = traced.level as u8;
        // The process first: what happens once the first probe is in place is not to be lost.
        self.kernel.configure(traced.pid(), traced.config)?;
        let attached = self.attach(place, traced);
        match attached {
            Ok(()) => {
                if let Some(placed) = self.places.get_mut(&place) {
                    placed.listeners.insert(traced.number(), traced.level);
                }
            }
            Err(_) => self.kernel.forget(traced.pid()),
        }
        self.remove_unwanted(place);
        attached
    }

    fn place_of(&self, traced: &Traced) -> Place {
        if self.kernel.shares_probes() && !traced.yet_to_execute {
            Place::File(traced.file())
        } else {
            Place::Process(traced.number())
        }
    }

    /// Puts what the process's level needs and is not there in place.
    fn attach(&mut self, place: Place, traced: &Traced) -> Result<(), kernel::Error> {
        let Some(placed) = self.places.get_mut(&place) else { return Ok(()) };
        let scope = match place {
            Place::File(_) => Scope::File(placed.number),
            Place::Process(_) => {
                NonZeroU32::new(traced.pid()).map_or(Scope::File(placed.number), Scope::Process)
            }
        };
        let mut below: Vec<Probe> = Vec::new();
        for (level, group) in Level::ALL.into_iter().zip(&mut placed.groups) {
            if level > traced.level {
                break;
            }
            let probes = traced.plan(level).probes;
            if group.is_none() {
                let new: Vec<Probe> = probes.iter().filter(|p| !below.contains(p)).cloned().collect();
                *group = Some(self.kernel.attach(traced.probe_path(), scope, &new)?);
            }
            below = probes;
        }
        Ok(())
    }

    /// The process's level has changed: probes come or go with it, and the kernel side is told.
    ///
    /// Going down, goroutines that the kernel side keeps track of are forgotten: what it knows of them grows
    /// old.
    pub fn change_level(&mut self, traced: &mut Traced, before: Level) -> Result<(), kernel::Error> {
        if traced.level > before {
            return self.put_in_place(traced);
        }
        traced.config.level = traced.level as u8;
        self.kernel.configure(traced.pid(), traced.config)?;
        if traced.level < Level::Waits {
            self.forget_goroutines(traced.number());
        }
        if let Some((place, placed)) = self.listening(traced) {
            placed.listeners.insert(traced.number(), traced.level);
            self.remove_unwanted(place);
        }
        Ok(())
    }

    /// The process is not traced by probes any more.
    pub fn remove(&mut self, traced: &Traced) {
        self.kernel.forget(traced.pid());
        self.unwatched.insert(traced.number());
        if let Some((place, placed)) = self.listening(traced) {
            placed.listeners.remove(&traced.number());
            self.remove_unwanted(place);
        }
    }

    /// The probes that the process listens to.
    fn listening(&mut self, traced: &Traced) -> Option<(Place, &mut Placed)> {
        let place =
            [Place::Process(traced.number()), Place::File(traced.file())].into_iter().find(|place| {
                self.places.get(place).is_some_and(|p| p.listeners.contains_key(&traced.number()))
            })?;
        Some((place, self.places.get_mut(&place)?))
    }

    /// What the kernel side keeps of a process's goroutines is to go, now: its waits may be watched again.
    fn forget_goroutines(&mut self, number: u32) {
        if let Err(error) = self.kernel.forget_goroutines(|process| process == number) {
            tracing::warn!(%error, "waits that began before the level changed may look too long");
        }
    }

    /// Removes the probes that no listener's level needs.
    fn remove_unwanted(&mut self, place: Place) {
        let Some(placed) = self.places.get_mut(&place) else { return };
        let highest = placed.listeners.values().max().copied();
        let mut unwanted = Vec::new();
        for (level, group) in Level::ALL.into_iter().zip(&mut placed.groups) {
            if highest.is_none_or(|highest| level > highest) {
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
        self.detaching
            .extend(unwanted.into_iter().map(|attachment| thread::spawn(move || attachment.detach())));
    }

    /// Forgets goroutines of processes that are not traced any more, now and then.
    pub fn clean(&mut self, now: Instant) {
        if self.unwatched.is_empty() || now.duration_since(self.cleaned) < CLEAN_EVERY {
            return;
        }
        self.cleaned = now;
        let unwatched = std::mem::take(&mut self.unwatched);
        match self.kernel.forget_goroutines(|process| unwatched.contains(&process)) {
            Ok(goroutines) => tracing::debug!(goroutines, "goroutines of processes that ended are forgotten"),
            Err(error) => {
                tracing::warn!(%error, "goroutines of processes that ended stay in the kernel's table");
            }
        }
    }

    /// Files, or processes of their own, that have probes.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The threads that remove probes, to be waited for.
    pub fn into_detaching(self) -> Vec<JoinHandle<()>> {
        // What could not be removed was logged, and goes when gotrace ends.
        self.detaching
    }
}

/// Tells the tables who waits now; without probes the last snapshot has.
pub(super) fn read_open_waits(probes: Option<&Probes>, traced: &mut [Traced]) {
    for traced in traced.iter_mut() {
        traced.begin_open_waits();
    }
    let Some(Probes { kernel, .. }) = probes else { return };
    let time_ns = Clock::now_monotonic_ns();
    let result = kernel.goroutines(|key, state| {
        let (start_ns, reason) = match (state.park_ns, state.syscall_ns) {
            (0, 0) => return,
            (0, syscall_ns) => (syscall_ns, u8::try_from(ROW_SYSCALL).unwrap_or(u8::MAX)),
            (park_ns, _) => (park_ns, state.reason),
        };
        if let Some(traced) = traced.iter_mut().find(|t| t.number() == key.process) {
            let wait =
                OpenWait { process: key.process, time_ns, goid: key.goid, start_ns, reason, g: state.g };
            traced.open_wait(&wait);
            if let Some(behind) = &mut traced.behind {
                behind.waits(key.goid, start_ns, reason, state.wake_ns != 0);
            }
        }
    });
    if let Err(error) = result {
        tracing::warn!(%error, "who waits now is not known");
    }
}
