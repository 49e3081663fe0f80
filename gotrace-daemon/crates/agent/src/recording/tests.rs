//! Tests of recordings: a replay computes what the run computed, whatever happens to the file it stops at the place and
//! says so, and what is bounded stays within its bounds.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use gotrace_common::{Histogram, kind as record_kind};
use gotrace_inspect::{
    heap::Evidence,
    leak::{Awaited, Suppressions, Verdict},
    snapshot::Status,
};
use gotrace_model::{Interval, Level, Location, LogRecord, Resource, Summary, Value, ids::ProcessKey};
use gotrace_process::Clock;
use proptest::prelude::*;

use super::{write::frame, *};
use crate::{
    table::{Look, Sighting},
    tracee::{
        Counted, Found, FoundHolder, FoundPart, Input, Known, Lowered, Names, Origin, Outputs, ProbeCost,
        Settings, SpanSampling, Step, StepChange, Symbol, Tracee, WaitPlace, Why,
    },
};

const MS: u64 = 1_000_000;

/// A program in which a function begins at each multiple of 16.
struct Program;
impl Names for Program {
    fn entry(&self, address: u64) -> Option<Location> {
        (address != 0).then(|| Location {
            function: format!("main.f{address}").into(),
            file: "/src/main.go".into(),
            line: 7,
        })
    }

    fn call(&self, address: u64) -> Option<Location> {
        self.entry(address + 1)
    }

    fn site(&self, address: u64) -> Option<Location> {
        (address >= 32).then(|| self.entry(address)).flatten()
    }

    fn is_function_entry(&self, address: u64) -> bool {
        address.is_multiple_of(16)
    }
}

fn tracee() -> Tracee {
    let attributes = BTreeMap::from([
        ("service.name".into(), Value::Text("shop".into())),
        ("process.pid".into(), Value::Int(7)),
    ]);
    let sampling =
        SpanSampling { keep_wait_over: Some(Duration::from_millis(3)), ratio: 0.5, ..SpanSampling::ALL };
    let origin = Origin {
        pid: 7,
        resource: Arc::new(Resource::new(attributes)),
        key: ProcessKey::new("boot", 7, 100, 9, 0),
        clock: Clock::from_offset(1_700_000_000_000_000_000, 20),
        reasons: (0..256).map(|n| Arc::from(format!("reason {n}"))).collect(),
        settings: Settings { sampling, level: Level::Full, budget: Some(0.05), trace_root_age_ns: 1000 * MS },
        sampled: false,
        suppressions: Suppressions::default(),
        room: 1000,
    };
    Tracee::new(origin, ProbeCost::default())
}

/// A record of the ring: its head, and words behind it.
fn record(kind: u8, arg: u8, count: u8, waker: u8, time_ns: u64, words: &[u64]) -> Input<'static> {
    let mut bytes = vec![kind, arg, count, waker];
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(time_ns.to_ne_bytes());
    words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    Input::Record(Box::leak(bytes.into_boxed_slice()))
}

fn create(goid: u64, parent: u64, entry: u64, time_ns: u64) -> Input<'static> {
    record(record_kind::CREATE, 0, 0, 0, time_ns, &[goid, parent, entry + 3, entry])
}

fn exit(goid: u64, time_ns: u64) -> Input<'static> {
    record(record_kind::EXIT, 0, 0, 0, time_ns, &[goid, 2 * MS, MS, 1])
}

fn wait(goid: u64, start_ns: u64, end_ns: u64, reason: u8) -> Input<'static> {
    let head = [goid, start_ns, end_ns - 100, 1, 0];
    let frames = [5, 33, 48, 0, 0, 0, 0, 0];
    record(record_kind::WAIT, reason, 3, 1, end_ns, &[&head[..], &frames].concat())
}

fn pause(reason: u8, time_ns: u64) -> Input<'static> {
    let words = [1, time_ns - 100_000, time_ns - 5_000, 5, 33, 48, 0, 0, 0, 0, 0];
    record(record_kind::PAUSE, reason, 3, 0, time_ns, &words)
}

fn counted(now_ns: u64, hits: u64) -> Input<'static> {
    let mut histogram = Histogram::default();
    histogram.add(900);
    histogram.add(hits);
    Input::Report(Box::new(Counted {
        now_ns,
        hits: vec![hits; 12],
        lost: vec![0, hits / 5],
        histograms: vec![(14, histogram), (62, histogram), (63, histogram)],
        cost_ns: Some((700.25, 9000.5)),
        cpu_ns: Some(now_ns / 2),
        undecodable: 1,
        stray: 2,
    }))
}

fn found(verdict: Verdict, place: &WaitPlace) -> Found {
    Found {
        verdict,
        place: place.clone(),
        awaited: None,
        goids: Vec::new(),
        others: Vec::new(),
        holders: Vec::new(),
        growth_per_second: None,
        standing_ns: 5 * MS,
        retained_bytes: None,
        why: "as far as is known".into(),
    }
}

/// Inputs of every kind, `seconds` times.
fn script(seconds: u64) -> Vec<Input<'static>> {
    let place = WaitPlace { entry_pc: 64, created_pc: 67, reason: Some(14), frames: vec![5, 40] };
    let mut inputs = Vec::new();
    for second in 0..seconds {
        let now = 1000 * MS * (second + 1);
        let goid = |n: u64| second * 100 + n;
        inputs.extend([
            create(goid(1), 0, 16, now),
            create(goid(2), goid(1), 64, now + MS),
            create(goid(3), goid(2), 80, now + 2 * MS),
            create(goid(4), goid(2), 17, now + 2 * MS),
            wait(goid(2), now + 3 * MS, now + 9 * MS, 14),
            wait(goid(3), now + 3 * MS, now + 5 * MS, 3),
            Input::Wrappers(vec![64]),
            pause(2, now + 3 * MS),
            record(record_kind::ASSIST, 0, 0, 0, now + 4 * MS, &[goid(2), now + 3 * MS, 19, 16]),
            pause(1, now + 5 * MS),
            pause(7, now + 6 * MS),
            pause(2, now + 7 * MS),
            Input::WatchExits,
            exit(goid(3), now + 10 * MS),
            Input::SnapshotTook(3 * MS),
            Input::BeginReconcile(Look { began_ns: now + 9 * MS, ended_ns: now + 12 * MS, complete: true }),
            Input::Sightings(Cow::Owned(
                [1, 2, 3, 50]
                    .map(|n| Sighting {
                        goid: goid(n),
                        parent_goid: 0,
                        created_pc: 99,
                        entry_pc: 96,
                        wait: (n == 50).then_some(5),
                    })
                    .to_vec(),
            )),
            Input::EndReconcile,
            Input::BeginOpenWaits,
            Input::OpenWait { goid: goid(2), start_ns: now + 20 * MS, reason: 14 },
            Input::OpenWait { goid: goid(70), start_ns: now + 21 * MS, reason: 6 },
            Input::Refuted(second / 2),
            Input::Found {
                now_ns: now + 30 * MS,
                found: vec![
                    Found {
                        goids: (0..=second).map(|s| s * 100 + 2).collect(),
                        others: vec![FoundPart { place: place.clone(), goids: vec![goid(1)] }],
                        retained_bytes: Some(4096),
                        ..found(Verdict::Unreachable, &place)
                    },
                    Found {
                        goids: (0..=second).map(|s| s * 100 + 50).collect(),
                        growth_per_second: Some((0.5, 1.5)),
                        awaited: Some(Awaited::SqlConnection),
                        holders: vec![FoundHolder {
                            goid: goid(2),
                            entry_pc: 64,
                            frame_pc: 70,
                            status: Status::Waiting,
                            reason: Some(14),
                            evidence: Evidence::Locked,
                            waits_for: Some(goid(3)),
                        }],
                        ..found(
                            Verdict::Growing,
                            &WaitPlace { entry_pc: 96, created_pc: 99, reason: Some(5), frames: vec![33] },
                        )
                    },
                ],
            },
            counted(now + 40 * MS, 10 * (second + 1)),
        ]);
        match second % 3 {
            0 => inputs.extend([
                Input::Lowered(Some(Lowered::Budget)),
                Input::Level(Level::Lifecycle),
                Input::LevelSet { now_ns: now + 50 * MS },
                Input::Changed(StepChange {
                    from: Step::Probes(Level::Full),
                    to: Step::Probes(Level::Lifecycle),
                    cost_share: 0.25,
                }),
                Input::TellChange {
                    now_ns: now + 50 * MS,
                    from: Step::Probes(Level::Full),
                    to: Step::Probes(Level::Lifecycle),
                    why: Why::Budget { cost_share: 0.25, share: 0.05 },
                },
            ]),
            1 => inputs.extend([
                Input::Suppressions(vec![Known {
                    function: "main.f9*".into(),
                    verdicts: vec!["growing".into()],
                    reason: "a known one".into(),
                }]),
                Input::EventsStopped { now_ns: now + 50 * MS },
                Input::Room(50),
                Input::GiveBack,
                Input::Clock { offset_ns: 1_700_003_600_000_000_000, error_ns: 30 },
                Input::Resource(BTreeMap::from([("k8s.pod.name".into(), Value::Text("shop-1".into()))])),
            ]),
            _ => inputs.extend([
                Input::KeepFindings { proven: false, suspected: true },
                Input::Level(Level::Full),
                Input::EventsResumed { now_ns: now + 50 * MS },
                Input::Moved,
                Input::Key(ProcessKey::new("boot", 7, 100, 11, 0)),
            ]),
        }
        inputs.push(counted(now + 60 * MS, 12 * (second + 1)));
    }
    inputs
}

/// What a run or a replay comes to, so that two can be compared: without the numbers that tell resources apart.
#[derive(Debug, Default)]
struct Told {
    began: usize,
    spans: Vec<String>,
    logs: Vec<String>,
    intervals: Vec<String>,
    summaries: Vec<String>,
}

impl Told {
    /// Fails at the first difference, as all of it is long.
    fn assert_same(&self, expected: &Self, when: &str) {
        let lists = |told: &Self| {
            [&told.spans, &told.logs, &told.intervals, &told.summaries].map(Vec::clone).concat()
        };
        let (found, wanted) = (lists(self), lists(expected));
        for (n, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert_eq!(found, wanted, "{when}, item {n}");
        }
        assert_eq!((self.began, found.len()), (expected.began, wanted.len()), "{when}");
    }
}

fn without_number(resource: &Resource) -> Arc<Resource> {
    // The same one for all.
    thread_local!(static ALL: Arc<Resource> = Arc::default());
    ALL.with(|all| Arc::new(all.replaced(resource.attributes.clone())))
}

fn interval(interval: &Interval) -> String {
    format!("{:?}", Interval { resource: without_number(&interval.resource), ..interval.clone() })
}

impl Listener for Told {
    fn began(&mut self, _: &Tracee) {
        self.began += 1;
    }

    fn told(&mut self, out: &mut Outputs) {
        let Outputs { spans, logs, intervals } = std::mem::take(out);
        self.spans.extend(spans.into_iter().map(|mut span| {
            let resource = span.resource_mut();
            *resource = without_number(resource);
            format!("{span:?}")
        }));
        self.logs.extend(
            logs.into_iter()
                .map(|log| format!("{:?}", LogRecord { resource: without_number(&log.resource), ..log })),
        );
        self.intervals.extend(intervals.iter().map(|i| interval(i)));
    }

    fn ended(&mut self, summary: Summary) {
        let last = interval(&summary.last);
        self.summaries
            .push(format!("{} {} {:?} {last}", summary.ended, summary.spans, summary.cost_ns_per_event));
    }
}

/// A run with these inputs, recorded with blocks of a few inputs.
fn run(path: &Path, limit: Limit, inputs: &[Input<'_>]) -> (Told, Result<(), RecordingError>) {
    let head = Head::now(BTreeMap::from([("level".into(), "full".into())]));
    let recorder = Recorder::create(path, &head, limit).expect("a file");
    let (mut tracee, mut told, mut out) = (tracee(), Told::default(), Outputs::default());
    told.began(&tracee);
    tracee.apply(&Input::Join { number: 1, probes: true }, &Program, &mut out);
    tracee.apply(&Input::Begin { now_ns: 900 * MS, cpu_ns: Some(5) }, &Program, &mut out);
    tracee.keep_fresh_symbols();
    tracee.write_state(|input| recorder.write(1, input));
    let (begin, mut last) = (Instant::now(), None);
    let mut apply = |tracee: &mut Tracee, input: &Input<'_>| {
        tracee.apply(input, &Program, &mut out);
        let symbols = tracee.take_fresh_symbols();
        if !symbols.is_empty() {
            recorder.write(1, &Input::Symbols(symbols));
        }
        recorder.write(1, input);
        if let Some(interval) = out.intervals.last() {
            last = Some(Arc::clone(interval));
        }
        told.told(&mut out);
    };
    for (n, input) in (0..).zip(inputs) {
        apply(&mut tracee, input);
        // Seconds go by.
        let now = begin + Duration::from_secs(n);
        if recorder.wants_state(now) {
            drop(tracee.take_fresh_symbols());
            tracee.write_state(|input| recorder.write(1, input));
        }
        recorder.tend(now);
        // In step with the thread: how much was written decides when a state is put in.
        recorder.settle();
    }
    apply(&mut tracee, &Input::End { why: "interrupted".into() });
    if let Some(last) = last {
        told.ended(tracee.summary(&last, "interrupted"));
    }
    (told, recorder.finish())
}

fn read(bytes: &[u8]) -> (Told, Result<End, ReadError>) {
    let mut told = Told::default();
    let end = Reader::new(bytes).and_then(|mut reader| replay(&mut reader, &mut told));
    (told, end)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("run.gtr");
    (directory, path)
}

#[test]
fn a_replay_computes_what_the_run_computed() {
    let (_directory, path) = place();
    let (live, recorded) = run(&path, Limit::None, &script(7));
    recorded.expect("complete");
    assert!(live.spans.len() > 10 && live.logs.len() > 5 && live.intervals.len() == 14, "{live:?}");
    let bytes = fs::read(&path).expect("the recording");
    let (replayed, end) = read(&bytes);
    assert_eq!(end.expect("whole").why, "ended");
    replayed.assert_same(&live, "replayed");
    let reader = Reader::new(&bytes[..]).expect("a head");
    assert_eq!(reader.head().configuration["level"], "full");
    assert_eq!(reader.head().gotrace, env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_state_is_the_tracee_it_was_taken_of() {
    // All names are given beforehand, so that nothing may say that they do not hold.
    let inputs: Vec<_> = script(9).into_iter().filter(|input| !matches!(input, Input::Moved)).collect();
    for at in [1, 7, 11, 20, 40, 90, 150] {
        let (mut tracee, mut out) = (tracee(), Outputs::default());
        inputs[..at].iter().for_each(|input| tracee.apply(input, &Program, &mut out));
        let mut bytes = Vec::new();
        tracee.write_state(|input| postcard::to_io(&(1u32, input), &mut bytes).map(drop).expect("memory"));
        let (mut restored, mut told) = (Replay::default(), Told::default());
        restored.apply(0, &bytes, &mut told).expect("a state");
        let (mut live, mut again) = (Told::default(), Told::default());
        out = Outputs::default();
        inputs[at..].iter().for_each(|input| tracee.apply(input, &Program, &mut out));
        live.told(&mut out);
        let mut rest = all_symbols();
        for input in &inputs[at..] {
            postcard::to_io(&(1u32, input), &mut rest).expect("memory");
        }
        restored.apply(0, &rest, &mut again).expect("inputs");
        again.assert_same(&live, &format!("after {at} inputs"));
    }
}

/// All names that any input needs, encoded.
fn all_symbols() -> Vec<u8> {
    let mut symbols = Vec::new();
    for address in 1..128 {
        symbols.extend(Program.entry(address).map(|l| Symbol::Entry(address, Arc::new(l))));
        symbols.extend(Program.call(address).map(|l| Symbol::Call(address, Arc::new(l))));
        symbols.push(Symbol::Frames(address, Program.frames(address).into()));
        symbols.push(Symbol::Site(address, Program.site(address).map(Arc::new)));
        symbols.extend(Program.is_function_entry(address).then_some(Symbol::Function(address)));
    }
    postcard::to_stdvec(&(1u32, Input::Symbols(symbols))).expect("memory")
}

#[test]
fn a_cut_recording_gives_what_is_in_front_of_the_cut() {
    let (_directory, path) = place();
    let (live, _) = run(&path, Limit::None, &script(3));
    let bytes = fs::read(&path).expect("the recording");
    let mut most = 0;
    for length in (0..bytes.len()).rev().step_by(13).chain([0, 5, 11, 12, 13, 40]) {
        let (told, end) = read(&bytes[..length]);
        let error = end.expect_err("it has no end");
        assert!(
            matches!(error, ReadError::Cut { .. })
                || length == 0 && matches!(error, ReadError::NotARecording),
            "{length}: {error}"
        );
        assert_eq!(told.intervals, live.intervals[..told.intervals.len()], "{length}");
        assert_eq!(told.spans, live.spans[..told.spans.len()], "{length}");
        most = most.max(told.intervals.len());
    }
    assert_eq!(most, live.intervals.len(), "only the end was cut off at first");
}

#[test]
fn an_altered_byte_is_found_and_what_is_in_front_of_it_is_right() {
    let (_directory, path) = place();
    let (live, _) = run(&path, Limit::None, &script(3));
    let whole = fs::read(&path).expect("the recording");
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let (told, end) = read(&bytes);
        let error = end.expect_err("altered");
        assert!(
            matches!(error, ReadError::Damaged { at: place, .. } | ReadError::Cut { at: place, .. } if place <= at as u64)
                || at < 12,
            "{at}: {error}"
        );
        assert_eq!(told.intervals, live.intervals[..told.intervals.len()], "{at}");
    }
}

/// A recording with these blocks, whose checksums are right.
fn made_up(blocks: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(frame(kind::HEAD, b"{}").expect("small"));
    for (kind, block) in blocks {
        bytes.extend(frame(*kind, block).expect("small"));
    }
    bytes
}

#[test]
fn impossible_lengths_versions_and_kinds_are_refused() {
    let mut bytes = made_up(&[]);
    let head = bytes.len();
    bytes.extend([2, 0, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(read(&bytes).1, Err(ReadError::Damaged { at, .. }) if at == head as u64));
    // A block that unpacks to more than it says, and one of nothing but zeros that is as long as may be.
    let mut bomb = frame(kind::INPUTS, &vec![0; MAX_BLOCK]).expect("it packs well");
    bytes.truncate(head);
    bytes.extend(&bomb);
    assert!(read(&bytes).1.is_err());
    bomb[8..12].copy_from_slice(&5u32.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bomb[..12]);
    crc.update(&bomb[16..]);
    bomb[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
    bytes.truncate(head);
    bytes.extend(&bomb);
    assert!(matches!(read(&bytes).1, Err(ReadError::Damaged { .. })));
    let newer = [&made_up(&[])[..8], &9u32.to_le_bytes()].concat();
    assert!(matches!(read(&newer).1, Err(ReadError::Version { found: 9 })));
    assert!(matches!(read(b"GOTRLOG1 and so on").1, Err(ReadError::NotARecording)));
    // Kinds of later versions are passed over.
    let later =
        made_up(&[(77, b"something".to_vec()), (kind::END, b"{\"why\":\"ended\",\"more\":1}".to_vec())]);
    assert_eq!(read(&later).1.expect("whole").why, "ended");
    let nobody = postcard::to_stdvec(&(3u32, Input::WatchExits)).expect("memory");
    assert!(matches!(read(&made_up(&[(kind::INPUTS, nobody)])).1, Err(ReadError::Damaged { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn made_up_inputs_do_no_harm(noise in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read(&made_up(&[(kind::INPUTS, noise)]));
    }

    #[test]
    fn inputs_with_altered_bytes_do_no_harm(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (mut tracee, mut bytes) = (tracee(), Vec::new());
        tracee.keep_fresh_symbols();
        let mut out = Outputs::default();
        tracee.write_state(|input| postcard::to_io(&(1u32, input), &mut bytes).map(drop).expect("memory"));
        for input in script(2) {
            tracee.apply(&input, &Program, &mut out);
            let symbols = Input::Symbols(tracee.take_fresh_symbols());
            postcard::to_io(&(1u32, &symbols), &mut bytes).expect("memory");
            postcard::to_io(&(1u32, &input), &mut bytes).expect("memory");
        }
        for (at, value) in flips {
            *at.get_mut(&mut bytes[..]) = value;
        }
        let _ = read(&made_up(&[(kind::STATE, bytes)]));
    }
}

#[test]
fn it_stops_at_its_largest_size_and_says_so() {
    let (_directory, path) = place();
    let (live, recorded) = run(&path, Limit::Stop(6000), &script(30));
    recorded.expect("as complete as was asked for");
    let bytes = fs::read(&path).expect("the recording");
    assert!(bytes.len() < 6100, "{} bytes, with the end", bytes.len());
    let (told, end) = read(&bytes);
    assert_eq!(end.expect("whole").why, "max_size");
    assert!(!told.intervals.is_empty() && told.intervals.len() < live.intervals.len());
    assert_eq!(told.intervals, live.intervals[..told.intervals.len()]);
}

#[test]
fn the_newest_part_is_kept_where_the_oldest_is_thrown_away() {
    let (directory, path) = place();
    let (live, recorded) = run(&path, Limit::DropOldest(40_000), &script(60));
    recorded.expect("as complete as was asked for");
    let bytes = fs::read(&path).expect("the recording");
    assert!((10_000..50_000).contains(&bytes.len()), "{} bytes", bytes.len());
    let (told, end) = read(&bytes);
    assert_eq!(end.expect("whole").why, "ended");
    assert!(told.intervals.len() > 3 && told.intervals.len() < live.intervals.len());
    let same = &live.intervals[live.intervals.len() - told.intervals.len()..];
    assert_eq!(told.intervals, same);
    assert_eq!(told.summaries, live.summaries);
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "nothing else is left");
}

#[test]
fn what_is_kept_in_memory_is_written_when_asked_for_and_at_the_end() {
    let (directory, path) = place();
    let head = Head::default();
    let limit = Limit::Keep { time: Duration::from_secs(60), bytes: None };
    let recorder = Recorder::create(&path, &head, limit).expect("a file");
    let (mut tracee, mut out) = (tracee(), Outputs::default());
    tracee.apply(&Input::Join { number: 1, probes: true }, &Program, &mut out);
    tracee.write_state(|input| recorder.write(1, input));
    recorder.ask();
    recorder.tend(Instant::now());
    recorder.note_finding();
    recorder.tend(Instant::now());
    recorder.finish().expect("complete");
    let names = ["run.gtr", "run-2.gtr", "run-3.gtr"];
    for (name, why) in names.iter().zip(["signal", "finding", "ended"]) {
        let (told, end) = read(&fs::read(directory.path().join(name)).expect("a recording"));
        assert_eq!((told.began, end.expect("whole").why.as_str()), (1, why), "{name}");
    }
}

#[test]
fn what_can_be_written_no_further_ends_the_recording_and_not_the_run() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let (_directory, path) = place();
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || {
            let mut file = fs::File::open(path).expect("the FIFO");
            std::io::Read::read_exact(&mut file, &mut [0; 12]).expect("its beginning");
        })
    };
    let head = Head::default();
    let recorder = Recorder::create(&path, &head, Limit::None).expect("a reader is there");
    reader.join().expect("it has read enough");
    for n in 0..100_000 {
        recorder.write(1, &Input::OpenWait { goid: n, start_ns: n << 40, reason: 3 });
    }
    let error = recorder.finish().expect_err("nobody reads any more");
    assert!(error.to_string().contains("run.gtr"), "{error}");
    for place in ["/dev/full", "/nowhere/run.gtr"] {
        let error = Recorder::create(Path::new(place), &head, Limit::None).expect_err("no room");
        assert!(error.to_string().contains(place), "{error}");
    }
}
