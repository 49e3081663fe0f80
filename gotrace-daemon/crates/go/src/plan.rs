//! The probe plan: which instruction of which runtime function to probe for which event.
//!
//! The functions are those that no compiler setting removes: called through a function value (`park_m`,
//! `goexit0`, `coroswitch_m`, `newproc.func1`) or too large or barred from inlining, and run on the
//! scheduler's stack, where a stack check never restarts them. What a profile-guided build inlined all the
//! same is found in the tables of inlined calls; then another place is taken, or a warning says what will
//! not be seen.

use super::{
    Event, Operand, Plan, Probe,
    code::{Code, Place},
    elf::Elf,
    moduledata::Found,
    names,
    scan::Scan,
    symtab::Symbols,
};
use gotrace_model::Level;

/// Larger runtime functions are not probed.
const MAX_FUNCTION: usize = 1 << 16;

/// All probes with the least level that has them.
#[derive(Debug, Default)]
pub(super) struct Plans {
    probes: Vec<(Level, Probe)>,
    warnings: Vec<(Level, String)>,
}

impl Plans {
    /// Probes and warnings of a level.
    pub fn of(&self, level: Level) -> Plan {
        let mut probes: Vec<_> =
            self.probes.iter().filter(|(l, _)| *l <= level).map(|(_, p)| p.clone()).collect();
        probes.sort_by_key(|p| p.event);
        let warnings = self.warnings.iter().filter(|(l, _)| *l <= level).map(|(_, w)| w.clone()).collect();
        Plan { probes, warnings }
    }
}

/// What plans are made of.
pub(super) struct Planner<'a> {
    pub elf: &'a Elf<'a>,
    pub found: &'a Found<'a>,
    pub scan: &'a Scan,
    pub symbols: &'a Symbols,
    pub minor: u32,
    /// Offset of `g.goid`.
    pub goid: u32,
}

impl Planner<'_> {
    /// Plans for every level.
    pub fn plans(&self) -> Plans {
        let mut plans = Plans::default();
        self.compare_sources(&mut plans);
        self.create(&mut plans);
        self.create_coroutine(&mut plans);
        self.exit(&mut plans);
        let g = Operand::Argument(0);
        self.plain(&mut plans, Level::Waits, Event::Park, "runtime.park_m", g, "waits");
        self.plain(&mut plans, Level::Waits, Event::Run, "runtime.execute", g, "ends of waits");
        self.ready(&mut plans);
        let full = Level::Full;
        let poll = Operand::Argument(1);
        self.plain(
            &mut plans,
            full,
            Event::Netpoll,
            "runtime.netpollready",
            poll,
            "wakes by the network poller",
        );
        self.plain(&mut plans, full, Event::InjectList, "runtime.injectglist", g, "wakes by the collector");
        self.yields(&mut plans);
        if self.address("runtime.coroswitch_m").is_some() {
            self.plain(&mut plans, full, Event::Coroutine, "runtime.coroswitch_m", g, "coroutine switches");
        }
        let current = Operand::CurrentG;
        for (event, name) in [
            (Event::SyscallEnter, "runtime.entersyscall"),
            (Event::SyscallEnter, "runtime.entersyscallblock"),
            (Event::SyscallExit, "runtime.exitsyscall"),
        ] {
            self.plain(&mut plans, full, event, name, current, "system calls");
        }
        self.collector(&mut plans);
        plans
    }

    /// Address of a function, from the symbol table where it is there.
    fn address(&self, name: &str) -> Option<u64> {
        self.symbols.addresses.get(name).or_else(|| self.scan.addresses.get(name)).copied()
    }

    fn compare_sources(&self, plans: &mut Plans) {
        for (name, symbol) in &self.symbols.addresses {
            if let Some(table) = self.scan.addresses.get(name)
                && table != symbol
            {
                plans.warnings.push((
                    Level::Lifecycle,
                    format!(
                        "{name} is at {symbol:#x} by the symbol table and at {table:#x} by Go's function table; \
                         using the symbol table"
                    ),
                ));
            }
        }
        plans.warnings.sort();
    }

    /// The code of a function.
    pub fn code<'c>(&'c self, address: u64, name_of: &'c dyn Fn(u64) -> Option<String>) -> Option<Code<'c>> {
        let relative = u32::try_from(address.checked_sub(self.found.text)?).ok()?;
        let view = &self.found.view;
        let f = view.func(view.index_at(relative)?)?;
        let len = (f.end.checked_sub(relative)? as usize).min(MAX_FUNCTION);
        let bytes = self.elf.bytes_from(address)?;
        let bytes = bytes.get(..len.min(bytes.len()))?;
        self.elf.is_code(address).then_some(Code { arch: self.elf.arch, bytes, address, name_of })
    }

    /// The name of the function that begins at an address.
    pub fn name_of(&self, address: u64) -> Option<String> {
        let relative = u32::try_from(address.checked_sub(self.found.text)?).ok()?;
        let view = &self.found.view;
        let f = view.func(view.index_at(relative)?).filter(|f| f.entry == relative)?;
        Some(names::text(&view.name(&f)))
    }

    /// Adds a probe; whether it could.
    fn add(
        &self,
        plans: &mut Plans,
        level: Level,
        event: Event,
        function: &str,
        entry: u64,
        (place, operand): (Place, Operand),
    ) -> bool {
        let address = entry.wrapping_add(place.offset as u64);
        let Some(file_offset) = self.elf.offset_of(address) else { return false };
        let Place { instruction, emulated, .. } = place;
        if !emulated {
            plans.warnings.push((
                level,
                format!(
                    "the probe for {event} in {function} is on `{instruction}`, which the kernel single-steps: \
                     each hit costs about ten times as much"
                ),
            ));
        }
        plans.probes.push((
            level,
            Probe {
                event,
                function: function.to_owned(),
                address,
                file_offset: file_offset as u64,
                instruction,
                emulated,
                operand,
            },
        ));
        true
    }

    /// A probe near the entry of a function; whether it could be added.
    fn at_entry(
        &self,
        plans: &mut Plans,
        level: Level,
        event: Event,
        (function, entry): (&str, u64),
        operand: Operand,
    ) -> bool {
        let name_of = |a| self.name_of(a);
        // The poller's mode is in the register behind the descriptor's.
        let both = [operand, Operand::Argument(2)];
        let kept = if event == Event::Netpoll { &both[..] } else { &both[..1] };
        let Some(place) = self.code(entry, &name_of).and_then(|code| code.entry(kept)) else { return false };
        self.add(plans, level, event, function, entry, (place, operand))
    }

    /// A probe in one function, with a warning for what its absence or its inlined copies hide.
    fn plain(
        &self,
        plans: &mut Plans,
        level: Level,
        event: Event,
        name: &'static str,
        operand: Operand,
        hidden: &str,
    ) -> bool {
        let done = self
            .address(name)
            .is_some_and(|entry| self.at_entry(plans, level, event, (name, entry), operand));
        if !done {
            plans.warnings.push((level, format!("{hidden} are not seen: {name} was not found")));
        }
        let holders = self.scan.holders(name);
        if !holders.is_empty() {
            plans.warnings.push((
                level,
                format!(
                    "some {hidden} are not seen: the compiler inlined {name} into {}",
                    holders.join(", ")
                ),
            ));
        }
        done
    }

    /// At the call that puts the new goroutine on the run queue, else behind the call that makes it.
    fn create(&self, plans: &mut Plans) {
        let name = "runtime.newproc.func1";
        let level = Level::Lifecycle;
        let Some(entry) = self.address(name) else {
            plans.warnings.push((level, format!("creations are not seen: {name} was not found")));
            return;
        };
        let name_of = |a| self.name_of(a);
        let Some(code) = self.code(entry, &name_of) else {
            plans.warnings.push((level, format!("creations are not seen: {name} has no code")));
            return;
        };
        let calls = |target: &str| self.address(target).map(|a| code.calls(a)).unwrap_or_default();
        let queued = calls("runtime.runqput");
        if !queued.is_empty() {
            for (place, _) in queued {
                self.add(plans, level, Event::Create, name, entry, (place, Operand::Argument(1)));
            }
            return;
        }
        let made: Vec<_> =
            calls("runtime.newproc1").into_iter().filter_map(|(_, behind)| code.after_call(behind)).collect();
        if made.is_empty() {
            if self.minor < 24 {
                self.create_by_goid(plans, name, entry, &code);
            } else {
                self.create_by_status(plans, name, entry, calls("runtime.casgstatus"));
            }
        }
        for found in made {
            self.add(plans, level, Event::Create, name, entry, found);
        }
    }

    /// Where everything was inlined, before Go 1.24: behind the store of the goid, which comes after the new
    /// goroutine was made runnable.
    fn create_by_goid(&self, plans: &mut Plans, name: &str, entry: u64, code: &Code<'_>) {
        let level = Level::Lifecycle;
        match code.after_store(self.goid) {
            Some(found) => {
                self.add(plans, level, Event::Create, name, entry, found);
            }
            None => {
                let why = "runtime.runqput and runtime.newproc1 were inlined into it";
                plans.warnings.push((level, format!("creations are not seen in {name}: {why}")));
            }
        }
    }

    /// Where everything was inlined: at the call that makes the new goroutine runnable. From Go 1.24 on it
    /// has its goid by then (runtime/proc.go, newproc1).
    fn create_by_status(&self, plans: &mut Plans, name: &str, entry: u64, calls: Vec<(Place, usize)>) {
        let level = Level::Lifecycle;
        if calls.is_empty() {
            let why = "runtime.runqput and runtime.newproc1 were inlined into it";
            plans.warnings.push((level, format!("creations are not seen in {name}: {why}")));
            return;
        }
        for (place, _) in calls {
            self.add(plans, level, Event::Create, name, entry, (place, Operand::StatusChange));
        }
    }

    /// Behind the call that makes the coroutine's goroutine.
    fn create_coroutine(&self, plans: &mut Plans) {
        let name = "runtime.newcoro.func1";
        let level = Level::Lifecycle;
        // A program that does not use iter.Pull does not have it.
        let Some(entry) = self.address(name) else { return };
        let name_of = |a| self.name_of(a);
        let made: Vec<_> = self
            .code(entry, &name_of)
            .zip(self.address("runtime.newproc1"))
            .map(|(code, target)| {
                let calls = code.calls(target);
                calls.into_iter().filter_map(|(_, behind)| code.after_call(behind)).collect()
            })
            .unwrap_or_default();
        if made.is_empty() {
            plans.warnings.push((
                level,
                format!("creations of coroutines are not seen: {name} does not call runtime.newproc1"),
            ));
        }
        for found in made {
            self.add(plans, level, Event::CreateCoroutine, name, entry, found);
        }
    }

    /// One hit for each end. `goexit0` and, for coroutines, `coroswitch_m` call `gdestroy` (Go 1.22 and
    /// later); where the compiler put it into one of them, that one is probed in its place.
    fn exit(&self, plans: &mut Plans) {
        let g = Operand::Argument(0);
        let level = Level::Lifecycle;
        let holders = self.scan.holders("runtime.gdestroy");
        let within = |name: &str| holders.contains(&name);
        let coroutines = self.address("runtime.coroswitch_m").is_some();
        let Some(gdestroy) = self.address("runtime.gdestroy").filter(|_| self.minor >= 22) else {
            self.plain(plans, level, Event::Exit, "runtime.goexit0", g, "exits");
            if self.minor >= 22 && coroutines {
                plans
                    .warnings
                    .push((level, "exits of coroutines are not seen: runtime.gdestroy was not found".into()));
            }
            return;
        };
        let mut done = true;
        let in_goexit0 = within("runtime.goexit0");
        if in_goexit0 {
            done &= self
                .address("runtime.goexit0")
                .is_some_and(|a| self.at_entry(plans, level, Event::Exit, ("runtime.goexit0", a), g));
        }
        if !in_goexit0 || (coroutines && !within("runtime.coroswitch_m")) {
            done &= self.at_entry(plans, level, Event::Exit, ("runtime.gdestroy", gdestroy), g);
        }
        if !done {
            plans.warnings.push((
                level,
                "exits are not seen: neither runtime.gdestroy nor runtime.goexit0 was found".into(),
            ));
        }
        let others: Vec<_> = holders.iter().copied().filter(|&h| h != "runtime.goexit0").collect();
        if !others.is_empty() {
            plans.warnings.push((
                level,
                format!(
                    "exits of coroutines are not seen: the compiler inlined runtime.gdestroy into {}",
                    others.join(", ")
                ),
            ));
        }
    }

    /// Pauses and assists. A pause has ended for all where `startTheWorldWithSema` wakes another processor, and an
    /// assist where `gcAssistAlloc1` reads the clock last.
    fn collector(&self, plans: &mut Plans) {
        let level = Level::Lifecycle;
        let current = Operand::CurrentG;
        let (stop, start) = ("runtime.stopTheWorldWithSema", "runtime.startTheWorldWithSema");
        let reason = Operand::Argument(0);
        self.plain(plans, level, Event::StopWorld, stop, reason, "pauses");
        if self.plain(plans, level, Event::StartWorld, start, current, "ends of pauses") {
            self.at_call(plans, (Event::WorldStarted, start), &["runtime.wakep"], "pauses");
        }
        let assist = "runtime.gcAssistAlloc1";
        if self.plain(
            plans,
            level,
            Event::AssistBegin,
            assist,
            Operand::Argument(0),
            "assists of the collector",
        ) {
            // Without inlining it asks by another name.
            let clock = ["runtime.nanotime1", "runtime.nanotime"];
            self.at_call(plans, (Event::AssistEnd, assist), &clock, "assists of the collector");
        }
    }

    /// A probe at the last call of the first of some functions that is called.
    fn at_call(
        &self,
        plans: &mut Plans,
        (event, name): (Event, &'static str),
        targets: &[&str],
        hidden: &str,
    ) {
        let level = Level::Lifecycle;
        let name_of = |a| self.name_of(a);
        let place = self.address(name).and_then(|entry| {
            let code = self.code(entry, &name_of)?;
            let called = targets.iter().filter_map(|target| self.address(target));
            let (place, _) = called.filter_map(|target| code.calls(target).pop()).next()?;
            Some((entry, place))
        });
        let done = place.is_some_and(|(entry, place)| {
            self.add(plans, level, event, name, entry, (place, Operand::CurrentG))
        });
        if !done {
            let called = targets.first().copied().unwrap_or_default();
            plans.warnings.push((level, format!("{hidden} are not seen: {name} does not call {called}")));
        }
    }

    /// `ready`, and the closures that hold a copy of it.
    fn ready(&self, plans: &mut Plans) {
        let name = "runtime.ready";
        let done = self.address(name).is_some_and(|entry| {
            self.at_entry(plans, Level::Full, Event::Ready, (name, entry), Operand::Argument(0))
        });
        let mut hidden = Vec::new();
        for holder in self.scan.holders(name) {
            let mut probed = false;
            for (closure, entry) in self.scan.ready_closures.iter().filter(|(c, _)| c == holder) {
                probed |= self.at_entry(
                    plans,
                    Level::Full,
                    Event::Ready,
                    (closure, *entry),
                    Operand::ClosureContext,
                );
            }
            if !probed {
                hidden.push(holder);
            }
        }
        if !done {
            plans.warnings.push((Level::Full, format!("wakes are not seen: {name} was not found")));
        }
        if !hidden.is_empty() {
            plans.warnings.push((
                Level::Full,
                format!("some wakes are not seen: the compiler inlined {name} into {}", hidden.join(", ")),
            ));
        }
    }

    /// `goschedImpl`, and the functions that hold a copy of it and take the same argument.
    fn yields(&self, plans: &mut Plans) {
        let g = Operand::Argument(0);
        let level = Level::Full;
        let name = "runtime.goschedImpl";
        let mut done = self
            .address(name)
            .is_some_and(|entry| self.at_entry(plans, level, Event::Yield, (name, entry), g));
        let mut hidden = Vec::new();
        for holder in self.scan.holders(name) {
            let same = ["runtime.gosched_m", "runtime.gopreempt_m", "runtime.goschedguarded_m"];
            let entry = self.address(holder).filter(|_| same.contains(&holder));
            if entry.is_some_and(|a| self.at_entry(plans, level, Event::Yield, (holder, a), g)) {
                done = true;
            } else {
                hidden.push(holder);
            }
        }
        if !done {
            plans.warnings.push((level, format!("yields are not seen: {name} was not found")));
        }
        if !hidden.is_empty() {
            plans.warnings.push((
                level,
                format!("some yields are not seen: the compiler inlined {name} into {}", hidden.join(", ")),
            ));
        }
        for name in ["runtime.goyield_m", "runtime.preemptPark"] {
            // Present in every program that uses what they serve.
            if self.address(name).is_some() {
                self.plain(plans, level, Event::Yield, name, g, "yields");
            }
        }
    }
}
