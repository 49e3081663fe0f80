//! `gotrace inspect`: what a Go binary tells, and where it would be probed.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use serde_json::{Value, json};

use super::{
    CliError, Exit, InspectArgs,
    args::TextOrJson,
    output::{Stdout, is_broken_pipe},
};
use crate::{
    gobin::{Binary, Offset, Probe, Source},
    level::Level,
    printable::write_json,
    process::{MAX_EXECUTABLE_BYTES, Target},
};

/// Reads the binary and prints what was found.
///
/// # Errors
/// When it cannot be read (1), is no Go program (4), or the process is gone (5).
pub fn run(args: InspectArgs) -> Result<Exit, CliError> {
    let (name, bytes) = match (&args.path, args.pid) {
        (Some(path), _) => (path.display().to_string(), read(path)?),
        (None, Some(pid)) => {
            let target = Target::open(pid)?;
            (format!("process {pid}: {}", target.executable.display()), target.exe_bytes()?)
        }
        (None, None) => return Err(CliError::usage("name an executable or a --pid")),
    };
    let binary = Binary::parse(&bytes)
        .map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("{name}: {e}")).help(e.help()))?;
    let mut out = Stdout::lock();
    match render(&binary, args.level, args.format, &mut out).and_then(|()| out.flush()) {
        Err(e) if !is_broken_pipe(&e) => Err(CliError::failure(format!("cannot write the result: {e}"))),
        _ => Ok(Exit::DONE),
    }
}

/// The file, if it is one and not too large: a pipe or device would never end.
fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let error = |e: std::io::Error| {
        let exit = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::PERMISSION,
            _ => Exit::FAILURE,
        };
        CliError::new(exit, format!("cannot read {}: {e}", path.display()))
    };
    let metadata = std::fs::metadata(path).map_err(error)?;
    if !metadata.is_file() {
        return Err(CliError::new(Exit::UNSUPPORTED, format!("{} is not a regular file", path.display()))
            .help("name the executable of a Go program"));
    }
    if metadata.len() > MAX_EXECUTABLE_BYTES {
        return Err(CliError::new(
            Exit::UNSUPPORTED,
            format!(
                "{} has {} bytes; gotrace reads at most {MAX_EXECUTABLE_BYTES}",
                path.display(),
                metadata.len()
            ),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    File::open(path).map_err(error)?.take(MAX_EXECUTABLE_BYTES).read_to_end(&mut bytes).map_err(error)?;
    Ok(bytes)
}

/// Writes what is known of a binary: one JSON object and a line end, or a text.
///
/// # Errors
/// Those of the writer.
fn render(binary: &Binary, level: Level, format: TextOrJson, out: &mut dyn Write) -> io::Result<()> {
    match format {
        TextOrJson::Json => {
            write_json(out, &to_json(binary, level))?;
            writeln!(out)
        }
        TextOrJson::Text => render_text(binary, level, out),
    }
}

/// The object of `gotrace.inspect/1`. What is not known is `null`.
fn to_json(binary: &Binary, level: Level) -> Value {
    let build = binary.build();
    let plan = binary.plan(level);
    let probes: Vec<_> = plan
        .probes
        .iter()
        .map(|p| {
            json!({
                "event": p.event,
                "function": p.function,
                "address": format!("{:#x}", p.address),
                "file_offset": format!("{:#x}", p.file_offset),
                "instruction": p.instruction,
                "emulated": p.emulated,
                "level": level_of(binary, p).name(),
            })
        })
        .collect();
    json!({
        "schema": "gotrace.inspect/1",
        "go_version": binary.go_version().text,
        "module": build.module,
        "module_version": build.module_version,
        "arch": binary.arch(),
        "go_build_id": build.go_build_id,
        "build": {
            "pie": build.pie,
            "stripped": build.stripped,
            "dwarf": build.dwarf,
            "cgo": build.cgo,
            "race": build.race,
            "static": build.static_,
            "trimpath": build.trimpath,
            "buildmode": build.buildmode,
        },
        "sources": binary.sources(),
        "layout_is_extrapolated": binary.layout_is_extrapolated(),
        "offsets": binary.offsets(),
        "probes": probes,
        "warnings": plan.warnings,
    })
}

/// The least level that has a probe.
fn level_of(binary: &Binary, probe: &Probe) -> Level {
    Level::ALL.into_iter().find(|&l| binary.plan(l).probes.contains(probe)).unwrap_or(Level::Full)
}

fn render_text(binary: &Binary, level: Level, out: &mut dyn Write) -> io::Result<()> {
    let build = binary.build();
    let plan = binary.plan(level);
    let unknown = "unknown";
    let yes_no = |b: bool| if b { "yes" } else { "no" };
    let maybe = |b: Option<bool>| b.map_or(unknown, yes_no);
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<14}{value}");
    line("Go version", &binary.go_version().text)?;
    let module = match (&build.module, &build.module_version) {
        (Some(module), Some(version)) => format!("{module} {version}"),
        (Some(module), None) => module.clone(),
        _ => unknown.to_owned(),
    };
    line("module", &module)?;
    line("architecture", binary.arch().name())?;
    line("build mode", build.buildmode.as_deref().unwrap_or(unknown))?;
    line("pie", yes_no(build.pie))?;
    line("static", yes_no(build.static_))?;
    line("stripped", yes_no(build.stripped))?;
    line("dwarf", yes_no(build.dwarf))?;
    line("cgo", maybe(build.cgo))?;
    line("race", maybe(build.race))?;
    line("trimpath", maybe(build.trimpath))?;
    line("build id", build.go_build_id.as_deref().unwrap_or(unknown))?;

    writeln!(out, "\nwhere facts come from")?;
    let width = binary.sources().keys().map(|k| k.len()).max().unwrap_or_default();
    for (fact, source) in binary.sources() {
        writeln!(out, "  {fact:<width$}  {}", describe(*source))?;
    }

    writeln!(out, "\noffsets in the runtime's structures, in bytes")?;
    let width = binary.offsets().0.keys().map(|k| k.len()).max().unwrap_or_default();
    for (field, Offset { value, source }) in &binary.offsets().0 {
        writeln!(out, "  {field:<width$}  {value:>4}  {source}")?;
    }
    if binary.layout_is_extrapolated() {
        writeln!(out, "  taken from an older version of Go: used only after a check on the live process")?;
    }

    writeln!(out, "\nprobes")?;
    let row = |p: &Probe| {
        [
            level_of(binary, p).name().to_owned(),
            p.event.name().to_owned(),
            p.function.clone(),
            format!("{:#x}", p.address),
            format!("{:#x}", p.file_offset),
            p.instruction.clone(),
            if p.emulated { "emulated" } else { "single-stepped (slow)" }.to_owned(),
        ]
    };
    let head = ["level", "event", "function", "address", "file offset", "instruction", "kernel"];
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(plan.probes.iter().map(row)).collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "  {}", cells.join("  ").trim_end())?;
    }

    if !plan.warnings.is_empty() {
        writeln!(out, "\nwarnings")?;
        for warning in &plan.warnings {
            writeln!(out, "  {warning}")?;
        }
    }
    Ok(())
}

/// A source in words.
fn describe(source: Source) -> &'static str {
    match source {
        Source::Symtab => "symtab (the symbol table)",
        Source::Pclntab => "pclntab (Go's own function table)",
        Source::Dwarf => "dwarf (debug information)",
        Source::Table => "table (gotrace's table of Go versions)",
        Source::Code => "code (decoded instructions)",
        Source::Elf => "elf (file headers)",
        Source::BuildInfo => "buildinfo (Go's build information)",
    }
}
