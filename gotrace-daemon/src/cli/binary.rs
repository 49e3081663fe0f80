//! `gotrace inspect`: what a Go binary tells, and where it would be probed.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use serde_json::{Value, json};

use super::{
    CliError, Exit, InspectArgs,
    args::TextOrJson,
    output::{Stdout, is_broken_pipe},
    servers,
    target::TargetName,
};
use gotrace_go::{Binary, Offset, Probe, Source, requests::Requests};
use gotrace_model::{Level, printable::write_json};
use gotrace_process::{Content, Executable, Target, Unreadable};

/// Reads the binary and prints what was found.
///
/// # Errors
/// When it cannot be read (1), is no Go program (4), or the process is gone (5).
pub fn run(args: InspectArgs) -> Result<Exit, CliError> {
    // What is no file is a process.
    let process = |path: &Path| path.components().count() == 1 && !path.exists();
    let pid = match (&args.path, args.pid) {
        (Some(path), None) if process(path) => {
            let target: TargetName = path.to_string_lossy().parse().map_err(CliError::usage)?;
            Some(target.pid().map_err(|error| match error.exit() {
                Exit::GONE => CliError::failure(format!(
                    "cannot read {0}: there is no such file, and no Go program here is {0}",
                    path.display()
                )),
                _ => error,
            })?)
        }
        (_, pid) => pid,
    };
    let (name, content, parsed) = match (args.path.as_ref().filter(|_| pid.is_none()), pid) {
        (Some(path), _) => {
            let content = read(path)?;
            let parsed = Binary::parse(&content);
            (path.display().to_string(), content, parsed)
        }
        (None, Some(pid)) => {
            let target = Target::open(pid)?;
            let content = target.exe_bytes()?;
            let parsed = super::dump::parse(&target, &content);
            (format!("process {pid}: {}", target.executable.display()), content, parsed)
        }
        (None, None) => return Err(CliError::usage("no executable or --pid given")),
    };
    let binary =
        parsed.map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("{name}: {e}")).help(e.help()))?;
    let found = servers::of(&binary, &content);
    drop(content);
    let mut out = Stdout::lock();
    match render(&binary, &found, args.level, args.format, &mut out).and_then(|()| out.flush()) {
        Err(e) if !is_broken_pipe(&e) => Err(CliError::failure(format!("cannot write results: {e}"))),
        _ => Ok(Exit::DONE),
    }
}

/// The file, if it is one and not too large: a pipe or device would never end.
fn read(path: &Path) -> Result<Content, CliError> {
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
            .help("give the executable of a Go program"));
    }
    let file = File::open(path).map_err(error)?;
    Content::of(&Executable::of(file)).map_err(|e| match e {
        Unreadable::Failed(e) => error(e),
        Unreadable::TooLarge(size, limit) => CliError::new(
            Exit::UNSUPPORTED,
            format!("{} is too large: {size} bytes; the limit for such a file is {limit}", path.display()),
        ),
    })
}

/// Writes what is known of a binary: one JSON object and a line end, or a text.
///
/// # Errors
/// Those of the writer.
fn render(
    binary: &Binary,
    found: &Requests,
    level: Level,
    format: TextOrJson,
    out: &mut dyn Write,
) -> io::Result<()> {
    match format {
        TextOrJson::Json => {
            write_json(out, &to_json(binary, found, level))?;
            writeln!(out)
        }
        TextOrJson::Text => render_text(binary, found, level, out),
    }
}

/// The object of `gotrace.inspect/1`. What is not known is `null`.
fn to_json(binary: &Binary, found: &Requests, level: Level) -> Value {
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
        "requests": servers::to_json(binary, found),
        "warnings": plan.warnings,
    })
}

/// The least level that has a probe.
fn level_of(binary: &Binary, probe: &Probe) -> Level {
    Level::ALL.into_iter().find(|&l| binary.plan(l).probes.contains(probe)).unwrap_or(Level::Full)
}

fn render_text(binary: &Binary, found: &Requests, level: Level, out: &mut dyn Write) -> io::Result<()> {
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

    writeln!(out, "\nsources")?;
    let width = binary.sources().keys().map(|k| k.len()).max().unwrap_or_default();
    for (fact, source) in binary.sources() {
        writeln!(out, "  {fact:<width$}  {}", describe(*source))?;
    }

    writeln!(out, "\noffsets in runtime structures, in bytes")?;
    let width = binary.offsets().0.keys().map(|k| k.len()).max().unwrap_or_default();
    for (field, Offset { value, source }) in &binary.offsets().0 {
        writeln!(out, "  {field:<width$}  {value:>4}  {source}")?;
    }
    if binary.layout_is_extrapolated() {
        writeln!(out, "  from an older version of Go: used only if they match the live process")?;
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

    servers::render(binary, found, out)?;

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
        Source::Symtab => "symtab (symbol table)",
        Source::Pclntab => "pclntab (Go's function table)",
        Source::Dwarf => "dwarf (debug information)",
        Source::Table => "table (built into gotrace, by Go version)",
        Source::Code => "code (decoded instructions)",
        Source::Elf => "elf (file headers)",
        Source::BuildInfo => "buildinfo (Go build information)",
    }
}
