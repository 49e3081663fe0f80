//! What tracing adds to a goroutine's birth and death and to a channel round trip, by interleaved pairs.

use anyhow::Result;

use super::{
    Binaries, Extent, median,
    observer::{Kind, LEVELS, Observer},
    process::{GoProgram, Work},
    report::{Bar, Report},
};

/// Of what bpftrace costs at the same functions, gotrace may cost so much.
const SHARE_OF_BPFTRACE: f64 = 0.125;

/// Differences between samples with and without an observer, pair by pair.
struct Added {
    kind: Kind,
    ns: [Vec<f64>; Work::ALL.len()],
}

/// Takes the samples and adds their medians to the report.
pub fn measure(
    program: &mut GoProgram,
    binaries: &Binaries,
    extent: Extent,
    report: &mut Report,
) -> Result<()> {
    let mut without: [Vec<f64>; Work::ALL.len()] = Default::default();
    let mut added: Vec<Added> = Kind::all().map(|kind| Added { kind, ns: Default::default() }).collect();
    for _ in 0..extent.pairs {
        for Added { kind, ns } in &mut added {
            let mut before = [0.0; Work::ALL.len()];
            for (i, work) in Work::ALL.into_iter().enumerate() {
                before[i] = program.sample(work, extent.sample)?;
                without[i].push(before[i]);
            }
            let observer = Observer::begin(*kind, program, binaries)?;
            for (i, work) in Work::ALL.into_iter().enumerate() {
                ns[i].push(program.sample(work, extent.sample)? - before[i]);
            }
            observer.end(program)?;
        }
    }
    let of = |kind: Kind, i: usize| {
        median(added.iter().find(|a| a.kind == kind).map(|a| a.ns[i].clone()).unwrap_or_default())
    };
    for (i, work) in Work::ALL.into_iter().enumerate() {
        let name = work.name();
        report.add(format!("{name}: untraced"), "ns", median(without[i].clone()), None, None);
        for level in LEVELS {
            let bpftrace = of(Kind::Bpftrace(level), i);
            // A round trip bears no event of level lifecycle: there is nothing to compare.
            let comparable = !(work == Work::PingPong && level == LEVELS[0]);
            let bar = (comparable && level != LEVELS[2]).then_some(Bar::RatioAtMost(SHARE_OF_BPFTRACE));
            let baseline = comparable.then_some(bpftrace);
            report.add(
                format!("{name}: added by gotrace --level {level}"),
                "ns",
                of(Kind::Gotrace(level), i),
                baseline,
                bar,
            );
            report.add(
                format!("{name}: added by bpftrace, functions of {level}"),
                "ns",
                bpftrace,
                None,
                None,
            );
        }
        let tracer = of(Kind::ExecutionTracer, i);
        report.add(format!("{name}: added by Go's execution tracer"), "ns", tracer, None, None);
    }
    Ok(())
}
