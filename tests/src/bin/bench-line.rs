//! Measures parts of gotrace's line for `cargo xtask bench`, one JSON object a measurement on stdout.
//!
//! - `bench-line table RECORDING SECONDS`: the ring's records of a recording through decoder and table, on one core, and
//!   the table's memory at a million goroutines.
//! - `bench-line receive`: an OTLP collector (gRPC) that counts spans; prints its endpoint, then, when
//!   standard input ends, how many came.

use std::{io::Read as _, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use gotrace_agent::{
    decode::{Create, Event, Wait, decode},
    recording::{Block, Reader, inputs},
    table::Table,
    tracee::Input,
};
use gotrace_common::{FRAMES, Header, WaitHead, WaitRecord, WakerKind, kind};
use gotrace_tests::receiver::{Receiver, Wire};
use serde_json::json;

/// Age from which on a creator's goroutines begin a trace; the command line's default.
const TRACE_ROOT_AGE_NS: u64 = 10_000_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["table", log, seconds] => {
            rate(log, Duration::from_secs_f64(seconds.parse().context("the number of seconds")?))?;
            memory()
        }
        ["receive"] => receive(),
        _ => bail!("usage: bench-line table RECORDING SECONDS | bench-line receive"),
    }
}

/// Passes the records through fresh tables until the time is over.
fn rate(path: &str, at_least: Duration) -> Result<()> {
    let records = records(path)?;
    let (mut passes, mut ended) = (Vec::new(), 0);
    let mut outputs = Vec::new();
    let begin = thread_cpu_time()?;
    while thread_cpu_time()? - begin < at_least {
        let mut table = Table::new(TRACE_ROOT_AGE_NS);
        let (mut count, mut kinds) = (0u64, [0u64; 3]);
        let start = thread_cpu_time()?;
        for record in &records {
            let event = decode(record).context("a record of the recording")?;
            match event {
                Event::Create(_) => kinds[0] += 1,
                Event::Exit(_) => kinds[1] += 1,
                Event::Wait(_) => kinds[2] += 1,
                _ => {}
            }
            table.apply(&event, &mut outputs);
            count += 1;
            // As the line does after every batch that it takes from the ring.
            if outputs.len() >= 1024 {
                ended += outputs.len();
                outputs.clear();
            }
        }
        let seconds = (thread_cpu_time()? - start).as_secs_f64();
        ensure!(count > 0, "{path} holds no records");
        passes.push((count as f64 / seconds, count, kinds));
    }
    passes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (events_per_second, records, [creates, exits, waits]) =
        passes.get(passes.len() / 2).copied().context("the time was too short for a pass")?;
    println!(
        "{}",
        json!({"name": "table", "events_per_second": events_per_second, "records": records, "passes": passes.len(),
               "creates": creates, "exits": exits, "waits": waits, "outputs": ended})
    );
    Ok(())
}

/// The ring's records in a recording.
fn records(path: &str) -> Result<Vec<Vec<u8>>> {
    let file = std::fs::File::open(path).with_context(|| format!("reading {path}"))?;
    let mut reader = Reader::new(std::io::BufReader::new(file))?;
    let mut records = Vec::new();
    while let Block::Inputs { at, bytes, .. } = reader.next_block()? {
        for input in inputs(at, &bytes) {
            if let (_, Input::Record(record)) = input? {
                records.push(record.to_vec());
            }
        }
    }
    Ok(records)
}

/// A million goroutines from ten sites, and what the table takes: before any of them has waited, and when
/// each has.
fn memory() -> Result<()> {
    const MANY: u64 = 1_000_000;
    let mut table = Table::new(TRACE_ROOT_AGE_NS);
    let mut outputs = Vec::new();
    for goid in 1..=MANY {
        let create = Create {
            process: 1,
            time_ns: goid,
            goid,
            parent_goid: goid / 100,
            created_pc: 0x40_0000 + goid % 10,
            entry_pc: 0x50_0000,
            coroutine: false,
        };
        table.apply(&Event::Create(create), &mut outputs);
    }
    let born = table.memory_bytes() as f64 / MANY as f64;
    for goid in 1..=MANY {
        let bytes = wait_record(goid);
        let Ok(Event::Wait(wait)) = decode(&bytes) else { bail!("the record made here is no wait") };
        let wait: Wait<'_> = wait;
        table.apply(&Event::Wait(wait), &mut outputs);
        outputs.clear();
    }
    ensure!(table.alive() == MANY, "{} of {MANY} goroutines are in the table", table.alive());
    let waited = table.memory_bytes() as f64 / MANY as f64;
    println!(
        "{}",
        json!({"name": "memory", "goroutines": MANY, "bytes_each": born, "bytes_each_waited": waited})
    );
    Ok(())
}

fn wait_record(goid: u64) -> Vec<u8> {
    let header = Header {
        kind: kind::WAIT,
        arg: 14,
        count: 1,
        waker: WakerKind::Unknown as u8,
        process: 1,
        time_ns: goid + 9,
    };
    let head = WaitHead { header, goid, start_ns: goid, wake_ns: 0, waker_goid: 0, cpu_ns: 0 };
    let record = WaitRecord { head, peer: [], frames: [0x40_0000; FRAMES] };
    // SAFETY: the record is repr(C) without padding.
    unsafe { std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<WaitRecord>()) }.to_vec()
}

/// Processor time of this thread: other programs do not change it much.
fn thread_cpu_time() -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error()).context("reading the thread's processor time");
    }
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

#[tokio::main]
async fn receive() -> Result<()> {
    let receiver = Receiver::start_counting(Wire::Grpc).await;
    println!("{}", json!({"endpoint": receiver.endpoint()}));
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    println!("{}", json!({"spans": receiver.span_count()}));
    Ok(())
}
