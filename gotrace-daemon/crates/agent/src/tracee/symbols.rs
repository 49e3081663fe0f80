//! The places that a tracee's addresses stand for, and which of them begin functions.
//!
//! What is not known yet is asked of a [`Names`]: the program's own tables while it is traced, and nothing on a replay,
//! as a recording has each answer in front of the input that needed it ([`Symbol`]).

use std::sync::Arc;

use foldhash::fast::FixedState;
use gotrace_go::{Origin, has_go_statement, origin};
use gotrace_model::Location;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use super::serial;

/// Answers of all kinds that are kept of one tracee. A program has few places; only a made-up recording has more.
const MAX_SYMBOLS: usize = 1 << 20;

/// Who knows what addresses stand for.
pub trait Names {
    /// The function that a goroutine was started with.
    fn entry(&self, address: u64) -> Option<Location>;
    /// The place of the call that returns to this address.
    fn call(&self, address: u64) -> Option<Location>;
    /// The place of this return address that is outside of what waits on behalf of others.
    fn site(&self, address: u64) -> Option<Location>;
    /// The calls that return to this address, innermost first: those of inlined functions, then the function's own. None
    /// outside of the program's code.
    fn frames(&self, address: u64) -> Vec<Frame> {
        let called =
            self.call(address).map(|at| Frame { origin: origin(&at.function, None), at: Arc::new(at) });
        called.into_iter().collect()
    }
    /// Whether a function begins here.
    fn is_function_entry(&self, address: u64) -> bool;
}

/// A call on a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Where it is.
    pub at: Arc<Location>,
    /// Whose code that is.
    #[serde(with = "serial::origin")]
    pub origin: Origin,
}

/// Nobody: what a recording does not say is not known.
#[derive(Clone, Copy, Debug)]
pub struct NoNames;

impl Names for NoNames {
    fn entry(&self, _: u64) -> Option<Location> {
        None
    }

    fn call(&self, _: u64) -> Option<Location> {
        None
    }

    fn site(&self, _: u64) -> Option<Location> {
        None
    }

    fn is_function_entry(&self, _: u64) -> bool {
        false
    }
}

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Symbol {
    /// A goroutine's function begins there.
    Entry(u64, Arc<Location>),
    /// A call returns there.
    Call(u64, Arc<Location>),
    /// It is on the stack of one that waits; `None` where the wait is on behalf of a caller.
    Site(u64, Option<Arc<Location>>),
    /// A function begins there.
    Function(u64),
    /// It is on the stack of one that waits: the calls that return there.
    Frames(u64, Arc<[Frame]>),
}

/// What is known of one tracee's addresses.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    entries: HashMap<u64, Arc<Location>, FixedState>,
    calls: HashMap<u64, Arc<Location>, FixedState>,
    sites: HashMap<u64, Option<Arc<Location>>, FixedState>,
    functions: HashSet<u64, FixedState>,
    frames: HashMap<u64, Arc<[Frame]>, FixedState>,
    /// Those that became known since this was last taken; `None` where nobody wants them.
    fresh: Option<Vec<Symbol>>,
}

impl Symbols {
    /// The function that a goroutine was started with.
    pub fn entry(&mut self, address: u64, names: &dyn Names) -> Arc<Location> {
        if let Some(location) = self.entries.get(&address) {
            return Arc::clone(location);
        }
        let location = Arc::new(names.entry(address).unwrap_or_else(|| unknown(address)));
        self.learn(Symbol::Entry(address, Arc::clone(&location)));
        location
    }

    /// The place of the call that returns to this address, inlined functions included.
    pub fn call(&mut self, address: u64, names: &dyn Names) -> Arc<Location> {
        if let Some(location) = self.calls.get(&address) {
            return Arc::clone(location);
        }
        let location = Arc::new(names.call(address).unwrap_or_else(|| unknown(address)));
        self.learn(Symbol::Call(address, Arc::clone(&location)));
        location
    }

    /// The same of an address that the process itself may have made up: nothing is kept of what is no code of the program.
    pub fn known_call(&mut self, address: u64, names: &dyn Names) -> Option<Arc<Location>> {
        if let Some(location) = self.calls.get(&address) {
            return Some(Arc::clone(location));
        }
        let location = Arc::new(names.call(address)?);
        self.learn(Symbol::Call(address, Arc::clone(&location)));
        Some(location)
    }

    /// The `go` statement of a goroutine; `None` where that is not known, and of the main goroutine, which has none.
    pub fn created_by(&mut self, address: u64, names: &dyn Names) -> Option<Arc<Location>> {
        (address != 0).then(|| self.call(address, names)).filter(|made| has_go_statement(&made.function))
    }

    /// The first place of a stack (return addresses, innermost first) outside the runtime and the standard library's
    /// waiting primitives; `None` when there is none.
    pub fn wait_site(&mut self, frames: &[u64], names: &dyn Names) -> Option<Arc<Location>> {
        frames.iter().find_map(|address| {
            if let Some(site) = self.sites.get(address) {
                return site.clone();
            }
            let site = names.site(*address).map(Arc::new);
            self.learn(Symbol::Site(*address, site.clone()));
            site
        })
    }

    /// The calls that return to this address, innermost first; none where they are not known. What is no code of the
    /// program is not kept.
    pub fn frames(&mut self, address: u64, names: &dyn Names) -> Arc<[Frame]> {
        if let Some(frames) = self.frames.get(&address) {
            return Arc::clone(frames);
        }
        let frames: Arc<[Frame]> = names.frames(address).into();
        if !frames.is_empty() {
            self.learn(Symbol::Frames(address, Arc::clone(&frames)));
            return frames;
        }
        // All that a recording of an earlier version says of it.
        let site = self.sites.get(&address).cloned().flatten();
        site.map(|at| Frame { origin: origin(&at.function, None), at }).into_iter().collect()
    }

    /// Where a stack (return addresses, innermost first) is in the program's own code ([`gotrace_model::Place::at`]).
    pub fn own_code(&mut self, stack: &[u64], names: &dyn Names) -> Option<Frame> {
        let mut best: Option<Frame> = None;
        for address in stack {
            for frame in &*self.frames(*address, names) {
                let replaces = match &best {
                    // The outermost frame, where all wait on behalf of others.
                    Some(best) if best.origin == Origin::Waiting => &*frame.at.function != "runtime.goexit",
                    Some(best) => frame.origin < best.origin,
                    None => true,
                };
                if replaces {
                    best = Some(frame.clone());
                }
            }
            if best.as_ref().is_some_and(|best| best.origin == Origin::Own) {
                break;
            }
        }
        best
    }

    /// Whether a function begins there.
    pub fn is_function_entry(&mut self, address: u64, names: &dyn Names) -> bool {
        if self.functions.contains(&address) {
            return true;
        }
        let is = names.is_function_entry(address);
        if is {
            self.learn(Symbol::Function(address));
        }
        is
    }

    /// Whether any was found to be one.
    pub fn knows_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// Takes an answer.
    pub fn learn(&mut self, symbol: Symbol) {
        if self.len() >= MAX_SYMBOLS {
            return;
        }
        if let Some(fresh) = &mut self.fresh {
            fresh.push(symbol.clone());
        }
        match symbol {
            Symbol::Entry(address, location) => drop(self.entries.insert(address, location)),
            Symbol::Call(address, location) => drop(self.calls.insert(address, location)),
            Symbol::Site(address, location) => drop(self.sites.insert(address, location)),
            Symbol::Function(address) => drop(self.functions.insert(address)),
            Symbol::Frames(address, frames) => drop(self.frames.insert(address, frames)),
        }
    }

    /// The program lies elsewhere than was thought: no answer holds.
    pub fn forget(&mut self) {
        self.entries.clear();
        self.calls.clear();
        self.sites.clear();
        self.frames.clear();
    }

    /// From now on new answers are kept until they are taken.
    pub fn keep_fresh(&mut self) {
        self.fresh.get_or_insert_default();
    }

    /// New answers since this was last asked.
    pub fn take_fresh(&mut self) -> Vec<Symbol> {
        self.fresh.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All answers.
    pub fn all(&self) -> Vec<Symbol> {
        let entries = self.entries.iter().map(|(address, l)| Symbol::Entry(*address, Arc::clone(l)));
        let calls = self.calls.iter().map(|(address, l)| Symbol::Call(*address, Arc::clone(l)));
        let sites = self.sites.iter().map(|(address, l)| Symbol::Site(*address, l.clone()));
        let functions = self.functions.iter().map(|address| Symbol::Function(*address));
        let frames = self.frames.iter().map(|(address, frames)| Symbol::Frames(*address, Arc::clone(frames)));
        entries.chain(calls).chain(sites).chain(functions).chain(frames).collect()
    }

    fn len(&self) -> usize {
        let Self { entries, calls, sites, functions, frames, fresh: _ } = self;
        entries.len() + calls.len() + sites.len() + functions.len() + frames.len()
    }
}

fn unknown(address: u64) -> Location {
    let function =
        if address == 0 { Location::BORN_BEFORE.into() } else { format!("? ({address:#x})").into() };
    Location { function, file: "".into(), line: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Some1;

    impl Names for Some1 {
        fn entry(&self, address: u64) -> Option<Location> {
            Some(Location { function: format!("main.f{address}").into(), file: "f.go".into(), line: 1 })
        }

        fn call(&self, address: u64) -> Option<Location> {
            self.entry(address)
        }

        fn site(&self, address: u64) -> Option<Location> {
            (address > 10).then(|| self.entry(address)).flatten()
        }

        /// Two calls each, of which the outer one is whose code the address says.
        fn frames(&self, address: u64) -> Vec<Frame> {
            let origins = [Origin::Own, Origin::Library, Origin::Standard, Origin::Waiting];
            let Some(outer) = origins.get(address as usize / 10).copied() else { return Vec::new() };
            let place = |name: &str| Location {
                function: format!("{name}{address}").into(),
                file: "".into(),
                line: 1,
            };
            vec![
                Frame { at: Arc::new(place("inlined")), origin: Origin::Waiting },
                Frame { at: Arc::new(place("f")), origin: outer },
            ]
        }

        fn is_function_entry(&self, address: u64) -> bool {
            address == 7
        }
    }

    #[test]
    fn the_main_goroutine_comes_from_no_go_statement() {
        let mut symbols = Symbols::default();
        let place = |function: &str| Location { function: function.into(), file: "f".into(), line: 1 };
        symbols.learn(Symbol::Call(8, Arc::new(place("runtime.newproc"))));
        symbols.learn(Symbol::Call(9, Arc::new(place("main.main"))));
        let made = [0, 8, 9].map(|address| symbols.created_by(address, &NoNames));
        assert_eq!(made, [None, None, Some(Arc::new(place("main.main")))]);
    }

    #[test]
    fn own_code_comes_before_that_of_others() {
        let mut symbols = Symbols::default();
        let mut at = |stack: &[u64]| symbols.own_code(stack, &Some1).map(|f| f.at.function.to_string());
        for (stack, expected) in [
            (&[31, 21, 11, 1, 2][..], Some("f1")),
            (&[31, 21, 11, 12], Some("f11")),
            (&[31, 22, 21], Some("f22")),
            // All of it waits on behalf of others: the outermost.
            (&[31, 32, 33], Some("f33")),
            (&[99, 31, 98, 97], Some("f31")),
            (&[99], None),
            (&[], None),
        ] {
            assert_eq!(at(stack).as_deref(), expected, "{stack:?}");
        }
        assert_eq!(symbols.frames.len(), 8, "what is no code is not kept");
    }

    #[test]
    fn an_old_recording_tells_the_site_of_a_wait() {
        let mut symbols = Symbols::default();
        let place = |function: &str| Location { function: function.into(), file: "f".into(), line: 1 };
        symbols.learn(Symbol::Site(5, None));
        symbols.learn(Symbol::Site(6, Some(Arc::new(place("main.serve")))));
        let expected = Frame { at: Arc::new(place("main.serve")), origin: Origin::Own };
        assert_eq!(symbols.own_code(&[5, 6, 7], &NoNames), Some(expected));
        assert_eq!(symbols.frames(5, &NoNames).len(), 0);
    }

    #[test]
    fn what_was_answered_once_needs_nobody_who_knows() {
        let mut live = Symbols::default();
        live.keep_fresh();
        let asked = |symbols: &mut Symbols, names: &dyn Names| {
            (
                symbols.entry(7, names),
                symbols.call(8, names),
                symbols.wait_site(&[5, 11, 12], names),
                symbols.own_code(&[31, 25, 99], names),
                [6, 7].map(|address| symbols.is_function_entry(address, names)),
            )
        };
        let answers = asked(&mut live, &Some1);
        assert_eq!(answers.2.as_ref().map(|l| &*l.function), Some("main.f11"));
        assert_eq!(answers.4, [false, true]);
        let mut replayed = Symbols::default();
        live.take_fresh().into_iter().for_each(|symbol| replayed.learn(symbol));
        assert_eq!(asked(&mut replayed, &NoNames), answers);
        assert_eq!(live.take_fresh(), []);
        assert_eq!(&*replayed.entry(99, &NoNames).function, "? (0x63)");
        assert_eq!(&*replayed.entry(0, &NoNames).function, Location::BORN_BEFORE);
    }
}
