//! What a Go executable says about itself: bytes in, probe plan out.
//!
//! Input is a whole ELF file in memory (64-bit, little-endian, amd64 or arm64, built by Go 1.18 or
//! later, stripped or not); output is a [`Binary`], which keeps only what later lookups need. Nothing
//! here does I/O, knows of processes or of eBPF. Every read is checked: no input, however hostile, can
//! make it panic, loop without bound or allocate more than a small multiple of the input's size.
//!
//! It refuses what it cannot get right: other machines and byte orders, programs without Go's function
//! table, Go before 1.18, shared libraries, structures whose fields are not where the kernel side
//! expects them.

mod allgs;
mod build_id;
mod buildinfo;
mod bytes;
mod closure;
mod code;
mod code_amd64;
mod code_arm64;
mod dwarf;
mod elf;
mod entry;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod model;
mod moduledata;
mod names;
mod packages;
mod packed;
mod pclntab;
mod plan;
pub mod requests;
mod scan;
mod semaphores;
mod sniff;
mod stack_map;
mod symtab;
mod unwind;
mod versions;
mod wait_reasons;
mod waitlock;

use std::collections::BTreeMap;

use gotrace_common::GLayout;

pub use build_id::gnu_build_id;
pub use error::Error;
pub use model::{
    Arch, BuildInfo, Event, Frame, Function, GoVersion, Offset, Offsets, Operand, Plan, Probe, Source,
};
pub use names::MAX_NAME;
pub use packages::{Origin, has_go_statement, origin, waits_for_others};
pub use semaphores::SemaphoreTable;
pub use sniff::may_be_go;
pub use stack_map::{FrameMap, StackObject};
pub use unwind::{Allgs, ArgumentTables, EntryKind, Unwind};
pub use wait_reasons::is_system_reason;

use self::{
    elf::{Elf, Segment},
    packed::Table,
    pclntab::{Header, View},
    plan::{Planner, Plans},
    scan::{Scan, WANTED},
};
use gotrace_model::Level;

/// What was learned of a Go executable.
#[derive(Debug)]
pub struct Binary {
    version: GoVersion,
    build: BuildInfo,
    arch: Arch,
    offsets: Offsets,
    layout: GLayout,
    plans: Plans,
    warnings: Vec<String>,
    sources: BTreeMap<&'static str, Source>,
    segments: Vec<Segment>,
    header: Header,
    /// The function table, as far as functions use it.
    table: Table,
    /// The tables of inlined calls and of pointers on the stack, as far as functions use them.
    inline: Table,
    /// Of packed tables: a hash of each function's name, so that one is found by name without unpacking all.
    name_hashes: Box<[u32]>,
    text: u64,
    /// Link-time address of what `funcdata` offsets count from.
    gofunc: Option<u64>,
    moduledata: Option<u64>,
    allgs: Option<Allgs>,
    semaphores: Option<SemaphoreTable>,
    /// Wrappers that call what their closure tells, by entry, and which word that is.
    closures: Box<[(u64, u8)]>,
}

impl Binary {
    /// Bytes that its tables take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.takes() + self.inline.takes() + size_of_val(&*self.name_hashes)
    }

    /// Keeps its tables compressed, where that makes them smaller: about a third for large programs. Lookups take longer
    /// then, by some ten microseconds where they are of other functions than the last ones.
    pub fn pack(&mut self) {
        let view = self.view();
        let hash = |n| view.func(n).map_or(0, |f| name_hash(&view.name_beginning(&f, HASHED)));
        self.name_hashes = (0..self.header.functions).map(hash).collect();
        self.table.pack(&self.header.searched());
        self.inline.pack(&(0..0));
    }

    /// Reads an executable.
    ///
    /// # Errors
    /// An [`Error`] that says what is wrong with the file.
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        let elf = Elf::parse(data)?;
        let (named, mut build) = buildinfo::read(&elf)?;
        let (version, unnamed) = version_of(&elf, named);
        let minor = version.minor;
        if minor < versions::OLDEST {
            return Err(Error::unsupported(format!(
                "built with {version}; gotrace supports Go 1.{} and later",
                versions::OLDEST
            )));
        }
        if let Some(mode @ ("c-shared" | "plugin" | "shared")) = build.buildmode.as_deref() {
            return Err(Error::unsupported(format!(
                "built with -buildmode={mode}; gotrace supports executables"
            )));
        }
        let found = moduledata::find(&elf, minor)?;
        let scan = Scan::new(&found)?;
        let variables = [&allgs::VARIABLES[..], &[semaphores::VARIABLE]].concat();
        let symbols = symtab::find(&elf, &WANTED, &variables);
        let mut warnings = elf.warnings.clone();
        warnings.extend(unnamed.iter().cloned());
        warnings.extend(found.warnings.iter().cloned());

        build.pie = elf.pie;
        build.stripped = !symbols.present;
        build.dwarf = elf.section(".debug_info").or_else(|| elf.section(".zdebug_info")).is_some();
        build.cgo = Some(scan.cgo);
        build.race = build.race.or(Some(scan.race));
        build.static_ = !elf.interpreter && !elf.needs_libraries();
        build.go_build_id = elf.go_build_id();

        let mut offsets = offsets(&elf, minor, &mut warnings);
        let park = allgs::function(&elf, &found, &scan, "runtime.park_m");
        if let Some(value) = park.and_then(|park| waitlock::find(&park)) {
            offsets.0.entry(WAITLOCK).or_insert(Offset { value, source: Source::Code });
        }
        let layout = layout(&offsets)?;
        let goid = u32::from(layout.goid);
        let plans = Planner { elf: &elf, found: &found, scan: &scan, symbols: &symbols, minor, goid }.plans();

        let mut sources = BTreeMap::from([
            ("go_version", Source::BuildInfo),
            ("lines", Source::Pclntab),
            ("probes", Source::Code),
            ("wait_reasons", Source::Table),
        ]);
        let allgs = allgs::find(&elf, &found, &scan, &symbols);
        sources.extend(allgs.map(|(_, source)| ("allgs", source)));
        let semaphores = semaphores::find(&elf, &found, &scan, &symbols, minor);
        sources.extend(semaphores.map(|(_, source)| ("semtable", source)));
        let functions = if symbols.addresses.is_empty() { Source::Pclntab } else { Source::Symtab };
        sources.insert("functions", functions);
        let dwarf = offsets.0.values().any(|o| o.source == Source::Dwarf);
        sources.insert("offsets", if dwarf { Source::Dwarf } else { Source::Table });

        if minor > versions::NEWEST && unnamed.is_none() {
            warnings.push(format!(
                "{version} is newer than this gotrace supports (Go 1.{}): wait reasons may have other names",
                versions::NEWEST
            ));
        }
        let view = found.view;
        let mut this = Self {
            arch: elf.arch,
            offsets,
            layout,
            plans,
            warnings,
            sources,
            header: view.header,
            table: Table::Whole(found.table.get(..scan.table_end).unwrap_or(found.table).into()),
            inline: Table::Whole(found.inline.get(..scan.inline_end).unwrap_or_default().into()),
            name_hashes: Box::default(),
            text: found.text,
            gofunc: found.gofunc,
            moduledata: found.module,
            allgs: allgs.map(|(addresses, _)| addresses),
            semaphores: semaphores.map(|(table, _)| table),
            segments: elf.segments,
            version,
            build,
            closures: Box::default(),
        };
        this.closures = this.find_closures(data);
        Ok(this)
    }

    /// The version of Go that built it.
    #[must_use]
    pub fn go_version(&self) -> &GoVersion {
        &self.version
    }

    /// How it was built.
    #[must_use]
    pub fn build(&self) -> &BuildInfo {
        &self.build
    }

    /// Its architecture.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Offsets in the runtime's structures.
    #[must_use]
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// Where facts come from, by fact: `allgs` (absent when not found), `go_version`, `functions`, `lines`, `offsets`, `probes`,
    /// `semtable` (absent when not found), `wait_reasons`.
    #[must_use]
    pub fn sources(&self) -> &BTreeMap<&'static str, Source> {
        &self.sources
    }

    /// What is odd about the binary, whatever is done with it. Plans repeat it.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The offsets that the kernel side needs.
    #[must_use]
    pub fn g_layout(&self) -> GLayout {
        self.layout
    }

    /// Whether the layout is the newest that gotrace knows and the binary is newer still. It must not be
    /// used before a live check has found plausible values in the process.
    #[must_use]
    pub fn layout_is_extrapolated(&self) -> bool {
        self.version.minor > versions::NEWEST
            && KERNEL_FIELDS.iter().any(|f| self.offsets.0.get(f).is_some_and(|o| o.source == Source::Table))
    }

    /// What the offsets would be if the binary were of each class of versions that is known, by the class's
    /// first minor version, oldest first; what its debug information says stays. For a binary that is newer
    /// than all of them, or whose runtime was changed.
    #[must_use]
    pub fn offsets_by_class(&self) -> Vec<(u32, Offsets)> {
        let told = || self.offsets.0.iter().filter(|(_, o)| o.source == Source::Dwarf);
        versions::classes()
            .map(|minor| {
                let table = versions::offsets(minor)
                    .map(|(field, value)| (field, Offset { value, source: Source::Table }));
                (minor, Offsets(table.chain(told().map(|(&field, &o)| (field, o))).collect()))
            })
            .collect()
    }

    /// Whether `g.parentGoid` exists and lies 8 bytes before `g.gopc`
    /// ([`gotrace_common::flags::PARENT_GOID`]).
    #[must_use]
    pub fn has_parent_goid_before_gopc(&self) -> bool {
        self.offsets
            .get("g.parentGoid")
            .zip(self.offsets.get("g.gopc"))
            .is_some_and(|(parent, gopc)| parent.checked_add(8) == Some(gopc))
    }

    /// Where to probe for a level, and what that will not see.
    #[must_use]
    pub fn plan(&self, level: Level) -> Plan {
        let mut plan = self.plans.of(level);
        plan.warnings.splice(..0, self.warnings.iter().cloned());
        plan
    }

    /// Names of the wait reasons, by number; `""` for number 0, which is no reason.
    #[must_use]
    pub fn wait_reasons(&self) -> &'static [&'static str] {
        wait_reasons::names(self.version.minor)
    }

    /// Number of the wait reason of a coroutine switch; `None` where there is none.
    #[must_use]
    pub fn coroutine_reason(&self) -> Option<u8> {
        wait_reasons::number(self.version.minor, "coroutine")
    }

    /// Number of the wait reason `IO wait`.
    #[must_use]
    pub fn io_reason(&self) -> u8 {
        wait_reasons::number(self.version.minor, "IO wait").unwrap_or(u8::MAX)
    }

    /// Bit n: a wait with reason n that the scheduler itself ends is ended by the collector.
    #[must_use]
    pub fn gc_reasons(&self) -> u64 {
        wait_reasons::ended_by_collector(self.version.minor)
    }

    fn view(&self) -> View<'_> {
        View { header: self.header, data: self.table.bytes(), inline: self.inline.bytes() }
    }

    fn relative(&self, pc: u64) -> Option<u32> {
        u32::try_from(pc.checked_sub(self.text)?).ok()
    }

    /// The frames of a program counter (link-time address), innermost first: inlined ones, then the
    /// function itself. A return address is looked up at the call before it. Empty outside of Go code.
    #[must_use]
    pub fn lookup(&self, pc: u64, is_return_address: bool) -> Vec<Frame> {
        let view = self.view();
        let find = |pc: u32| view.index_at(pc).and_then(|n| view.func(n));
        let Some(mut pc) = self.relative(pc) else { return Vec::new() };
        let Some(mut f) = find(pc) else { return Vec::new() };
        // A goroutine that never ran stands at its function's entry: no call is before it.
        if is_return_address && pc != f.entry {
            pc -= 1;
            match find(pc) {
                Some(found) => f = found,
                None => return Vec::new(),
            }
        }
        let wrapper = versions::wrapper_id(self.version.minor);
        let mut callee = String::new();
        view.frames(&f, pc)
            .into_iter()
            .map(|raw| {
                let name = names::whole(&raw.name);
                let file = names::text(&raw.file);
                let is_wrapper = raw.id == wrapper || file == "<autogenerated>";
                let panicked =
                    matches!(callee.as_str(), "runtime.gopanic" | "runtime.sigpanic" | "runtime.panicwrap");
                let hidden = !names::shown(&name, callee.is_empty());
                let internal = (is_wrapper && !panicked) || hidden;
                let frame = Frame {
                    function: names::printed(&name),
                    file,
                    line: raw.line,
                    inlined: raw.inlined,
                    internal,
                    wrapper: is_wrapper,
                    hidden,
                };
                callee = name;
                frame
            })
            .collect()
    }

    /// Where the function at a link-time address begins and ends.
    #[must_use]
    pub fn extent_at(&self, pc: u64) -> Option<(u64, u64)> {
        let view = self.view();
        let f = view.func(view.index_at(self.relative(pc)?)?)?;
        Some((self.text.wrapping_add(u64::from(f.entry)), self.text.wrapping_add(u64::from(f.end))))
    }

    /// The function at a link-time address.
    #[must_use]
    pub fn function_at(&self, pc: u64) -> Option<Function> {
        let view = self.view();
        let f = view.func(view.index_at(self.relative(pc)?)?)?;
        Some(Function {
            entry: self.text.wrapping_add(u64::from(f.entry)),
            end: self.text.wrapping_add(u64::from(f.end)),
            name: names::text(&view.name(&f)),
        })
    }

    /// Link-time address of a function by its full name. Takes a walk over all functions, where its tables are not packed.
    #[must_use]
    pub fn function_address(&self, name: &str) -> Option<u64> {
        let view = self.view();
        let hash = name_hash(name.as_bytes());
        let may_be = |n: &usize| self.name_hashes.get(*n).is_none_or(|of| *of == hash);
        (0..self.header.functions)
            .filter(may_be)
            .filter_map(|n| view.func(n))
            .find(|f| view.is_named(f, name.as_bytes()))
            .map(|f| self.text.wrapping_add(u64::from(f.entry)))
    }

    /// Mapped address less link-time address, from where a part of this file is mapped: begin of the
    /// mapping and the file offset that is mapped there. `None` when no loadable segment has that offset.
    #[must_use]
    pub fn load_bias(&self, mapping_start: u64, mapping_file_offset: u64) -> Option<u64> {
        elf::load_bias(&self.segments, mapping_start, mapping_file_offset)
    }

    /// Link-time address of the runtime's module data (`runtime.firstmoduledata`), from which its variables
    /// are told; `None` when it was not found.
    #[must_use]
    pub fn moduledata(&self) -> Option<u64> {
        self.moduledata
    }

    /// Numbers of what the runtime keeps beside an object: a finalizer, a weak handle, a cleanup; `None` where
    /// the version has none.
    #[must_use]
    pub fn special_kinds(&self) -> (u8, Option<u8>, Option<u8>) {
        versions::special_kinds(self.version.minor)
    }

    /// The variable of an executable that holds a link-time address, by its symbol table, and how far into it
    /// the address is; `None` where it has no such table, or no such variable.
    #[must_use]
    pub fn variable_at(executable: &[u8], address: u64) -> Option<(String, u64)> {
        symtab::variable_at(&Elf::parse(executable).ok()?, address)
    }

    /// Link-time addresses of what is writable: the program's variables.
    pub fn variables(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        let writable = self.segments.iter().filter(|s| s.flags & object::elf::PF_W.0 != 0);
        writable.map(|s| s.address..s.address.saturating_add(s.memory_size))
    }
}

/// Bytes of a name that count: a hostile table has millions of functions with one long name.
const HASHED: usize = 64;

/// FNV-1a.
fn name_hash(name: &[u8]) -> u32 {
    name.iter()
        .take(HASHED)
        .fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Found in code where no debug information tells it.
const WAITLOCK: &str = "m.waitlock";

/// Fields that the kernel side reads.
const KERNEL_FIELDS: [&str; 17] = [
    "g.goid",
    "g.gopc",
    "g.startpc",
    "g.m",
    "m.curg",
    "g.sched.sp",
    "g.sched.pc",
    "g.sched.bp",
    "g.schedlink",
    "g.coroarg",
    "g.coroexit",
    "pollDesc.rg",
    "pollDesc.wg",
    "g.atomicstatus",
    "g.waitreason",
    "g.parentGoid",
    "pollDesc.fd",
];

/// The version by its name or, where that names none, by where debug information has the runtime's fields, else the one
/// after the newest that is known, whose layout a look at the process settles; and what is to be said of it.
fn version_of(elf: &Elf<'_>, named: buildinfo::Named) -> (GoVersion, Option<String>) {
    let buildinfo::Named { text, version } = named;
    if let Some((minor, patch)) = version {
        return (GoVersion { minor, patch, text }, None);
    }
    let told: Vec<(&str, u32)> = dwarf::offsets(elf, &versions::FIELDS).into_iter().collect();
    let (minor, by) = match versions::by_offsets(&told) {
        Some(minor) => (minor, format!("by its debug information its runtime is that of Go 1.{minor}")),
        None => (
            versions::NEWEST + 1,
            format!("it is taken for newer than Go 1.{}, the newest that is known", versions::NEWEST),
        ),
    };
    let warning = format!("its version, {text}, is none of Go's: {by}");
    (GoVersion { minor, patch: 0, text }, Some(warning))
}

/// Offsets by the table, and by debug information where it has them.
fn offsets(elf: &Elf<'_>, minor: u32, warnings: &mut Vec<String>) -> Offsets {
    let mut offsets = Offsets(
        versions::offsets(minor).map(|(f, value)| (f, Offset { value, source: Source::Table })).collect(),
    );
    for (field, value) in dwarf::offsets(elf, &[&versions::FIELDS[..], &[WAITLOCK]].concat()) {
        let old = offsets.0.insert(field, Offset { value, source: Source::Dwarf });
        let is_usual = field == WAITLOCK || old.is_some_and(|o| o.value == value);
        if minor <= versions::NEWEST && !is_usual {
            warnings.push(format!(
                "{field} is at {value} by debug information, which is not what Go 1.{minor} usually has; using it"
            ));
        }
    }
    warnings.sort();
    offsets
}

/// What the kernel side needs, where its assumptions hold.
fn layout(offsets: &Offsets) -> Result<GLayout, Error> {
    let field = |name: &'static str| {
        let value = offsets
            .get(name)
            .ok_or_else(|| Error::unsupported(format!("a Go runtime whose {name} is not known")))?;
        u16::try_from(value).map_err(|_| Error::unsupported(format!("a Go runtime with {name} at {value}")))
    };
    let optional = |name: &'static str| if offsets.get(name).is_some() { field(name) } else { Ok(0) };
    let distance = |from: &'static str, to: &'static str, expected: u16| {
        let (a, b) = (field(from)?, field(to)?);
        if a.checked_add(expected) == Some(b) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "a Go runtime with {from} at {a} and {to} at {b}: they must lie {expected} bytes apart"
        )))
    };
    distance("g.goid", "g.waitreason", 24)?;
    distance("g.gopc", "g.startpc", 16)?;
    distance("g.sched.sp", "g.sched.pc", 8)?;
    Ok(GLayout {
        goid: field("g.goid")?,
        gopc: field("g.gopc")?,
        m: field("g.m")?,
        curg: field("m.curg")?,
        sched_pc: field("g.sched.pc")?,
        sched_bp: field("g.sched.bp")?,
        schedlink: field("g.schedlink")?,
        coroarg: optional("g.coroarg")?,
        coroexit: optional("g.coroexit")?,
        poll_rg: field("pollDesc.rg")?,
        poll_wg: field("pollDesc.wg")?,
        status: field("g.atomicstatus")?,
        waitlock: optional(WAITLOCK)?,
        poll_fd: field("pollDesc.fd")?,
    })
}
