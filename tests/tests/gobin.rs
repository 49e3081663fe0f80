//! Holds what gotrace reads from Go executables against other sources: the symbol table against Go's
//! function table, the built-in table of offsets against debug information, wait reasons against the
//! program's own strings, frames against the Go runtime, places of probes against known ones.
//!
//! Input: the fixture programs, built by every version of the matrix. No root, no kernel.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use gotrace_go::{Binary, Event, Source};
use gotrace_model::Level;
use gotrace_tests::gobuild::{Arch, Mode, VERSIONS, build, minor};
use object::{Object, ObjectSection, ObjectSymbol};

fn read(version: &str, mode: Mode, arch: Arch) -> Vec<u8> {
    let path = build("account", version, mode, arch).expect("the fixture builds");
    fs::read(path).expect("the fixture is readable")
}

fn parse(version: &str, mode: Mode, arch: Arch) -> Binary {
    Binary::parse(&read(version, mode, arch))
        .unwrap_or_else(|e| panic!("Go {version}, {}, {}: {e}", mode.name(), arch.name()))
}

/// Section headers removed, so that nothing but segments is left to go by.
fn without_sections(mut data: Vec<u8>) -> Vec<u8> {
    data[40..48].fill(0);
    data[58..64].fill(0);
    data
}

/// Which modes are tried on an architecture.
fn modes(arch: Arch) -> &'static [Mode] {
    match arch {
        Arch::Amd64 => &Mode::ALL,
        Arch::Arm64 => &[Mode::Plain, Mode::Stripped, Mode::Pie],
    }
}

fn each_binary(mut check: impl FnMut(&str, Mode, Arch, &Binary) -> Result<(), String>) {
    let mut failures = String::new();
    let mut count = 0;
    for version in VERSIONS {
        for arch in [Arch::Amd64, Arch::Arm64] {
            for &mode in modes(arch).iter().filter(|m| m.exists(version, arch)) {
                let binary = parse(version, mode, arch);
                count += 1;
                if let Err(why) = check(version, mode, arch, &binary) {
                    writeln!(failures, "Go {version}, {}, {}: {why}", mode.name(), arch.name())
                        .expect("a string takes it");
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(count > 100, "only {count} binaries were looked at");
}

/// Where the collector's pauses and assists are seen.
const COLLECTOR: [Event; 5] =
    [Event::StopWorld, Event::StartWorld, Event::WorldStarted, Event::AssistBegin, Event::AssistEnd];

fn expected_events(minor: u32, level: Level) -> BTreeSet<Event> {
    let mut events = BTreeSet::from([Event::Create, Event::Exit]);
    events.extend(COLLECTOR);
    if minor >= 23 {
        events.insert(Event::CreateCoroutine);
    }
    if level >= Level::Waits {
        events.extend([Event::Park, Event::Run]);
    }
    if level >= Level::Full {
        events.extend([
            Event::Ready,
            Event::Netpoll,
            Event::InjectList,
            Event::Yield,
            Event::SyscallEnter,
            Event::SyscallExit,
        ]);
        if minor >= 23 {
            events.insert(Event::Coroutine);
        }
    }
    events
}

#[test]
fn plans_are_complete_and_every_probe_is_emulated() {
    each_binary(|version, mode, _, binary| {
        let minor = minor(version);
        if binary.go_version().minor != minor || binary.layout_is_extrapolated() {
            return Err(format!("read as {}", binary.go_version()));
        }
        for level in Level::ALL {
            let plan = binary.plan(level);
            let events: BTreeSet<_> = plan.probes.iter().map(|p| p.event).collect();
            if events != expected_events(minor, level) {
                return Err(format!("{level} has {events:?}"));
            }
            let exits = plan.probes.iter().filter(|p| p.event == Event::Exit).count();
            if exits != 1 && mode != Mode::Pgo {
                return Err(format!("{exits} probes for exits"));
            }
            if let Some(slow) = plan.probes.iter().find(|p| !p.emulated) {
                return Err(format!("slow: {slow:?}"));
            }
            if !plan.warnings.is_empty() && mode != Mode::Pgo {
                return Err(format!("warnings: {:?}", plan.warnings));
            }
        }
        Ok(())
    });
}

#[test]
fn build_information_is_that_of_the_mode() {
    each_binary(|version, mode, arch, binary| {
        let build = binary.build();
        let expected = (
            arch.name(),
            matches!(mode, Mode::Pie | Mode::PieStripped),
            matches!(mode, Mode::Stripped | Mode::PieStripped),
            Some(matches!(mode, Mode::Cgo | Mode::Static | Mode::Race)),
            Some(mode == Mode::Race),
            Some(mode == Mode::Trimpath),
        );
        let found = (binary.arch().name(), build.pie, build.stripped, build.cgo, build.race, build.trimpath);
        if found != expected {
            return Err(format!("{found:?} instead of {expected:?}"));
        }
        if build.dwarf == build.stripped || (mode == Mode::Static && !build.static_) {
            return Err(format!("dwarf {}, static {}", build.dwarf, build.static_));
        }
        // -pgo takes part in the settings from Go 1.21 on; before, a mode without flags has no build mode.
        if minor(version) >= 20 && build.buildmode.is_none() || build.module.is_none() {
            return Err(format!("{build:?}"));
        }
        if build.go_build_id.is_none() {
            return Err("no build id".into());
        }
        Ok(())
    });
}

#[test]
fn the_table_holds_against_debug_information() {
    for version in VERSIONS {
        for arch in [Arch::Amd64, Arch::Arm64] {
            let exact = parse(version, Mode::Plain, arch);
            let table = parse(version, Mode::Stripped, arch);
            for (field, offset) in &exact.offsets().0 {
                assert_eq!(offset.source, Source::Dwarf, "Go {version}: {field} is not in DWARF");
            }
            for (field, offset) in &table.offsets().0 {
                let source = if *field == "m.waitlock" { Source::Code } else { Source::Table };
                assert_eq!(offset.source, source, "Go {version}: {field}");
                assert_eq!(exact.offsets().get(field), Some(offset.value), "Go {version}: {field}");
            }
            assert_eq!(exact.offsets().0.len(), table.offsets().0.len(), "Go {version}");
            assert_eq!(exact.g_layout(), table.g_layout(), "Go {version}");
            assert_eq!(exact.has_parent_goid_before_gopc(), minor(version) >= 21, "Go {version}");
        }
    }
}

#[test]
fn the_list_of_goroutines_is_found_in_code_where_the_symbol_table_has_it() {
    let mut compared = 0;
    for version in VERSIONS {
        for arch in [Arch::Amd64, Arch::Arm64] {
            for &mode in modes(arch).iter().filter(|m| m.exists(version, arch)) {
                let data = read(version, mode, arch);
                let name = format!("Go {version}, {}, {}", mode.name(), arch.name());
                let whole = Binary::parse(&data).expect("parses");
                let bare = Binary::parse(&without_sections(data)).expect("parses without sections");
                assert_eq!(bare.sources()["allgs"], Source::Code, "{name}");
                assert_eq!(bare.allgs(), whole.allgs(), "{name}");
                compared += usize::from(whole.sources()["allgs"] == Source::Symtab);
            }
        }
    }
    assert!(compared > 80, "only {compared} symbol tables");
}

#[test]
fn without_section_headers_nothing_changes() {
    for version in VERSIONS {
        for arch in [Arch::Amd64, Arch::Arm64] {
            for &mode in modes(arch).iter().filter(|m| m.exists(version, arch)) {
                let data = read(version, mode, arch);
                let whole = Binary::parse(&data).expect("parses");
                let bare = Binary::parse(&without_sections(data)).expect("parses without sections");
                let name = format!("Go {version}, {}, {}", mode.name(), arch.name());
                assert_eq!(bare.sources()["functions"], Source::Pclntab, "{name}");
                let stripped = matches!(mode, Mode::Stripped | Mode::PieStripped);
                let expected = if stripped { Source::Pclntab } else { Source::Symtab };
                assert_eq!(whole.sources()["functions"], expected, "{name}");
                assert_eq!(bare.plan(Level::Full).probes, whole.plan(Level::Full).probes, "{name}");
                assert_eq!(bare.g_layout(), whole.g_layout(), "{name}");
                for probe in whole.plan(Level::Full).probes {
                    assert_eq!(bare.lookup(probe.address, false), whole.lookup(probe.address, false));
                    let function = whole.function_at(probe.address).expect("a function");
                    assert_eq!(function.name, probe.function, "{name}: {probe:?}");
                    let at_call =
                        [Event::Create, Event::WorldStarted, Event::AssistEnd].contains(&probe.event);
                    let near = at_call || probe.address - function.entry < 256;
                    assert!(near, "{name}: {probe:?}");
                }
            }
        }
    }
}

/// Distances of the probes from their functions' entries, found with another disassembler on binaries of
/// these minor versions: newproc.func1, newcoro.func1, exit, park_m, execute, ready, netpollready,
/// injectglist, goschedImpl, goyield_m, preemptPark, coroswitch_m, entersyscall, entersyscallblock,
/// exitsyscall. 0 stands for the entry itself, `NO` for a function that the version does not have.
const PLACES: [(u32, Arch, [u64; 15]); 10] = [
    (20, Arch::Amd64, [64, NO, 4, 4, 4, 4, 3, 4, 4, 4, 4, NO, 24, 97, 36]),
    (21, Arch::Amd64, [53, NO, 4, 4, 4, 4, 3, 4, 4, 4, 4, NO, 0, 0, 0]),
    (22, Arch::Amd64, [53, NO, 4, 4, 4, 4, 0, 4, 4, 4, 4, NO, 0, 0, 0]),
    (23, Arch::Amd64, [64, 94, 4, 4, 4, 4, 0, 4, 4, 4, 4, 4, 0, 0, 0]),
    (24, Arch::Amd64, [64, 84, 4, 4, 4, 4, 0, 4, 4, 4, 4, 9, 0, 0, 0]),
    (27, Arch::Amd64, [64, 81, 4, 4, 4, 4, 0, 4, 4, 4, 4, 9, 0, 0, 0]),
    (20, Arch::Arm64, [60, NO, 8, 8, 8, 8, 4, 8, 8, 8, 8, NO, 20, 96, 40]),
    (23, Arch::Arm64, [68, 88, 8, 8, 8, 8, 20, 8, 8, 8, 8, 8, 12, 92, 40]),
    (24, Arch::Arm64, [68, 88, 8, 8, 8, 8, 20, 8, 8, 8, 8, 12, 12, 92, 40]),
    (26, Arch::Arm64, [64, 72, 8, 8, 8, 8, 20, 12, 8, 8, 8, 12, 12, 92, 40]),
];
const NO: u64 = u64::MAX;

#[test]
fn probes_are_where_another_disassembler_puts_them() {
    for (wanted, arch, places) in PLACES {
        let version = VERSIONS.iter().find(|v| minor(v) == wanted).expect("in the matrix");
        let binary = parse(version, Mode::Stripped, arch);
        let exit = if wanted >= 22 { "gdestroy" } else { "goexit0" };
        let names = [
            "newproc.func1",
            "newcoro.func1",
            exit,
            "park_m",
            "execute",
            "ready",
            "netpollready",
            "injectglist",
            "goschedImpl",
            "goyield_m",
            "preemptPark",
            "coroswitch_m",
            "entersyscall",
            "entersyscallblock",
            "exitsyscall",
        ];
        let mut probes = binary.plan(Level::Full).probes;
        probes.retain(|p| !COLLECTOR.contains(&p.event));
        for (name, expected) in names.into_iter().zip(places) {
            let found = probes.iter().find(|p| p.function.strip_prefix("runtime.") == Some(name));
            let found = found.map_or(NO, |p| {
                p.address - binary.function_at(p.address).expect("inside of a function").entry
            });
            assert_eq!(found, expected, "Go {version}, {}: {name}", arch.name());
        }
        assert_eq!(probes.len(), places.iter().filter(|&&p| p != NO).count());
    }
}

#[test]
fn wait_reasons_are_those_of_the_program() {
    for version in VERSIONS {
        let data = read(version, Mode::Plain, Arch::Amd64);
        let file = object::File::parse(&*data).expect("an object file");
        let array = file
            .symbols()
            .find(|s| s.name() == Ok("runtime.waitReasonStrings"))
            .expect("the runtime has its array");
        let at = |address: u64, len: u64| {
            file.sections()
                .find_map(|s| s.data_range(address, len).ok().flatten())
                .expect("the address is in a section")
        };
        let word =
            |bytes: &[u8], i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 bytes"));
        let strings = at(array.address(), array.size());
        let names: Vec<_> = strings
            .chunks_exact(16)
            .map(|s| {
                String::from_utf8_lossy(
                    at(word(s, 0), word(s, 1).max(1)).get(..word(s, 1) as usize).expect("len"),
                )
                .into_owned()
            })
            .collect();
        let binary = Binary::parse(&data).expect("parses");
        assert_eq!(names, binary.wait_reasons(), "Go {version}");
        let coroutine = binary.coroutine_reason().map(|n| names[usize::from(n)].as_str());
        assert_eq!(coroutine, (minor(version) >= 22).then_some("coroutine"), "Go {version}");
    }
}

/// `f[go.shape.int]` as `f[...]`.
fn printed(name: &str) -> String {
    match (name.find('['), name.rfind(']')) {
        (Some(a), Some(b)) => format!("{}[...]{}", &name[..a], &name[b + 1..]),
        _ => name.to_owned(),
    }
}

fn judge(program: &Path, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let done = child.wait_with_output().expect("the program ends");
    writer.join().expect("no panic").expect("the program reads all");
    assert!(done.status.success(), "{}: {}", program.display(), done.status);
    String::from_utf8(done.stdout).expect("text")
}

/// Addresses all over the program's functions.
fn sample(binary: &Binary) -> Vec<u64> {
    let mut pcs = Vec::new();
    // Go itself says nothing of the very first function, whose name's offset is 0.
    let first = binary.function_address("internal/cpu.Initialize").expect("every program has it");
    let mut at = binary.function_at(first).expect("a function").end;
    while let Some(f) = binary.function_at(at) {
        at = f.end;
        if f.name.starts_with("go:") {
            // A mark of the linker, not a function.
            continue;
        }
        let size = f.end - f.entry;
        // Instructions of arm64 have 4 bytes; a range of a table may end at any of them.
        pcs.extend((0..7).map(|i| (f.entry + size * i / 7) & !3).filter(|&pc| pc >= f.entry));
    }
    assert!(pcs.len() > 5000, "only {} addresses", pcs.len());
    pcs
}

#[test]
fn innermost_frames_are_those_of_the_runtime() {
    for (version, mode) in VERSIONS.map(|v| (v, Mode::Plain)).into_iter().chain([("1.27.3", Mode::NoInline)])
    {
        let program = build("frames", version, mode, Arch::HOST).expect("the fixture builds");
        let binary = Binary::parse(&fs::read(&program).expect("readable")).expect("parses");
        let pcs = sample(&binary);
        let input: String = pcs.iter().map(|pc| format!("{pc:#x}\n")).collect();
        let answers = judge(&program, &["lookup"], &input);
        assert_eq!(answers.lines().count(), pcs.len());
        let mut inlined = 0;
        for (pc, answer) in pcs.iter().zip(answers.lines()) {
            let frames = binary.lookup(*pc, false);
            let innermost = frames.first().expect("a frame");
            inlined += usize::from(innermost.inlined);
            let (name, position) = answer.split_once('\t').expect("tab");
            let file = if innermost.file.is_empty() { "?" } else { innermost.file.as_str() };
            let found = (innermost.function.as_str(), format!("{file}\t{}", innermost.line));
            assert_eq!(found, (printed(name).as_str(), position.to_owned()), "Go {version} at {pc:#x}");
        }
        assert_eq!(inlined > 500, mode == Mode::Plain, "Go {version}: {inlined} inlined");
    }
}

#[test]
fn inlined_chains_are_those_of_the_runtime() {
    for version in VERSIONS {
        let program = build("frames", version, Mode::Plain, Arch::HOST).expect("the fixture builds");
        let binary = Binary::parse(&fs::read(&program).expect("readable")).expect("parses");
        let answers = judge(&program, &[], "");
        let mut depths = Vec::new();
        for chain in answers.split("chain ").filter(|c| !c.is_empty()) {
            let mut lines = chain.lines();
            let pc = lines.next().and_then(|l| u64::from_str_radix(&l[2..], 16).ok()).expect("an address");
            let found: Vec<_> = binary
                .lookup(pc, true)
                .iter()
                .map(|f| format!("{}\t{}\t{}", f.function, f.file, f.line))
                .collect();
            let expected: Vec<_> = lines
                .map(|l| {
                    let (name, position) = l.split_once('\t').expect("tab");
                    format!("{}\t{position}", printed(name))
                })
                .collect();
            assert_eq!(found, expected, "Go {version} at {pc:#x}");
            depths.push(found.len());
        }
        assert_eq!(depths, [1, 3, 3, 3, 2, 3, 3], "Go {version}");
    }
}

#[test]
fn arm64_lines_are_those_of_go_tool_addr2line() {
    for version in VERSIONS {
        let program = build("frames", version, Mode::Plain, Arch::Arm64).expect("the fixture builds");
        let binary = Binary::parse(&fs::read(&program).expect("readable")).expect("parses");
        let pcs = sample(&binary);
        let input: String = pcs.iter().map(|pc| format!("{pc:#x}\n")).collect();
        let go = Path::new("go");
        let answers = judge(go, &["tool", "addr2line", program.to_str().expect("text")], &input);
        let mut lines = answers.lines();
        for pc in pcs {
            let frames = binary.lookup(pc, false);
            let (inner, outer) = (frames.first().expect("a frame"), frames.last().expect("a frame"));
            let (name, position) = (lines.next().expect("a name"), lines.next().expect("a line"));
            assert_eq!(outer.function, printed(name), "Go {version} at {pc:#x}");
            let found = match inner.line {
                0 => "no line".to_owned(),
                line => format!("{}:{line}", inner.file),
            };
            let position = if matches!(position, ":-1" | "?:0") { "no line" } else { position };
            assert_eq!(found, position, "Go {version} at {pc:#x}");
        }
    }
}

#[test]
fn the_table_of_semaphores_is_found_in_code_where_the_symbol_table_has_it() {
    let mut compared = 0;
    for version in VERSIONS {
        for arch in [Arch::Amd64, Arch::Arm64] {
            for &mode in modes(arch).iter().filter(|m| m.exists(version, arch)) {
                let data = read(version, mode, arch);
                let name = format!("Go {version}, {}, {}", mode.name(), arch.name());
                let whole = Binary::parse(&data).expect("parses");
                let symbol = object::File::parse(&*data)
                    .expect("an object file")
                    .symbols()
                    .find(|s| s.name() == Ok("runtime.semtable"))
                    .map(|s| (s.address(), s.size()));
                let bare = Binary::parse(&without_sections(data)).expect("parses without sections");
                assert_eq!(bare.sources().get("semtable"), Some(&Source::Code), "{name}");
                let table = bare.semaphores().expect("found");
                assert_eq!(Some(table), whole.semaphores(), "{name}");
                if let Some((address, size)) = symbol {
                    let whole = (table.address, u64::from(table.roots) * u64::from(table.stride));
                    assert_eq!(whole, (address, size), "{name}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 80, "only {compared} symbol tables");
}

/// What is true of every map: it has only places in its own frame and among its arguments, and almost every
/// place where a goroutine can be stopped has one.
#[test]
fn every_frame_has_a_map_of_its_pointers() {
    for version in VERSIONS {
        for arch in [Arch::Amd64, Arch::Arm64] {
            let binary = parse(version, Mode::Stripped, arch);
            let name = format!("Go {version}, {}", arch.name());
            let (mut with, mut without, mut slots, mut objects) = (0, BTreeSet::new(), 0, 0);
            for pc in sample(&binary) {
                let Some(unwind) = binary.unwind(pc).filter(|u| u.stack_delta.is_some()) else { continue };
                let function = binary.function_at(pc).expect("a function").name;
                let Some(map) = binary.stack_map(pc) else {
                    without.insert(function);
                    continue;
                };
                let delta = unwind.stack_delta.expect("checked");
                assert_eq!(map.end, delta + if arch == Arch::Amd64 { 8 } else { 0 }, "{name}: {function}");
                assert!(map.slots.is_sorted() && map.slots.iter().all(|s| s % 8 == 0), "{name}: {function}");
                // Neither the return address nor the caller's frame pointer.
                let kept = [delta, delta.wrapping_sub(8)];
                assert!(
                    !map.slots.iter().any(|s| kept.contains(s)),
                    "{name}: {function} at {pc:#x}: {map:?}"
                );
                for o in &map.objects {
                    assert!(o.offset % 8 == 0 || o.pointers == 0, "{name}: {function}: {o:?}");
                }
                with += 1;
                slots += map.slots.len();
                objects += map.objects.len();
            }
            assert!(with > 5000 && slots > with / 4 && objects > 100, "{name}: {with}, {slots}, {objects}");
            // Assembly, and the two functions that a signal calls.
            let go = |f: &&String| ["main.", "sync.", "os.", "fmt."].iter().any(|p| f.starts_with(p));
            assert!(without.len() < 120 && !without.iter().any(|f| go(&f)), "{name}: {without:?}");
            assert!(without.contains("runtime.asyncPreempt") && without.contains("reflect.methodValueCall"));
        }
    }
}

/// Packed tables answer as whole ones do, of every fifth instruction or so.
#[test]
fn packed_tables_give_the_same_answers() {
    for (version, mode, arch) in [
        ("1.19.13", Mode::Stripped, Arch::Amd64),
        ("1.21.13", Mode::Pie, Arch::Arm64),
        ("1.27.3", Mode::Plain, Arch::Amd64),
    ] {
        let data = read(version, mode, arch);
        let (whole, mut packed) = (parse(version, mode, arch), parse(version, mode, arch));
        packed.pack();
        assert!(
            packed.bytes() < whole.bytes(),
            "Go {version}: {} bytes of {}",
            packed.bytes(),
            whole.bytes()
        );
        let file = object::File::parse(&*data).expect("an executable");
        let text = file.section_by_name(".text").expect("code");
        let mut names = BTreeSet::new();
        for pc in (text.address()..text.address() + text.size()).step_by(23) {
            let answers = |binary: &Binary| {
                (
                    binary.lookup(pc, pc % 2 == 0),
                    binary.unwind(pc),
                    binary.stack_map(pc),
                    binary.argument_tables(pc, true),
                    binary.function_at(pc).map(|f| (f.entry, f.end, f.name)),
                )
            };
            let (a, b) = (answers(&whole), answers(&packed));
            assert_eq!(a, b, "Go {version} at {pc:#x}");
            if let Some((entry, _, name)) = a.4 {
                assert_eq!(whole.entry_kind(entry), packed.entry_kind(entry), "Go {version}, {name}");
                names.insert(name);
            }
        }
        assert!(names.len() > 1000, "{}", names.len());
        for name in names.iter().step_by(41).map(String::as_str).chain(["nobody.isCalled", ""]) {
            assert_eq!(whole.function_address(name), packed.function_address(name), "Go {version}, {name}");
        }
    }
}
