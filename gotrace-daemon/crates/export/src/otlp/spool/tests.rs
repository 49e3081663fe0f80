//! The spool's files: order, bound, torn ends, checksums, and what another gotrace finds.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use super::{
    segment::{HEAD, MAGIC},
    store::{Lost, Record, Store},
};
use crate::otlp::{config::Signal, stats::Dropped};

const LIMIT: u64 = 16 << 20;

struct Dir {
    dir: tempfile::TempDir,
    lost: Vec<Lost>,
}

impl Dir {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), lost: Vec::new() }
    }

    fn open(&mut self) -> Store {
        self.open_with(LIMIT).expect("opened")
    }

    fn open_with(&mut self, limit: u64) -> io::Result<Store> {
        Store::open(&self.dir.path().join("spool"), limit, &mut |l| self.lost.push(l))
    }

    fn files(&self) -> Vec<String> {
        let all = fs::read_dir(self.dir.path().join("spool")).expect("a directory");
        let mut names: Vec<_> =
            all.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
        names.retain(|name| name != "lock");
        names.sort();
        names
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("spool").join(name)
    }

    fn lost(&self, why: Dropped) -> u64 {
        self.lost.iter().filter(|l| l.why == why).map(|l| l.count).sum()
    }
}

fn request(number: u64) -> Vec<u8> {
    format!("request {number} ").repeat(20).into_bytes()
}

/// What no packing makes smaller.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

fn push(store: &mut Store, signal: Signal, request: &[u8]) -> Vec<Lost> {
    let mut lost = Vec::new();
    store.push(signal, 7, 10, request, &mut |l| lost.push(l)).expect("written");
    lost
}

fn take(store: &mut Store, signal: Signal) -> Option<Record> {
    store.take(signal, &mut |lost| panic!("{lost:?}"))
}

#[test]
fn what_goes_in_comes_out_in_order_also_for_another_gotrace() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    for n in 0..30 {
        assert_eq!(push(&mut store, Signal::Traces, &request(n)), []);
        push(&mut store, Signal::Metrics, &noise(n, 700));
    }
    push(&mut store, Signal::Logs, b"");
    assert_eq!((store.items(Signal::Traces), store.items(Signal::Logs)), (300, 10));
    for n in 0..10 {
        let record = take(&mut store, Signal::Traces).expect("a record");
        assert_eq!((&record.bytes[..], record.count), (&request(n)[..], 10));
        // The answer for the sixth never comes.
        if n != 5 {
            store.done(record.ticket);
        }
    }
    assert_eq!(store.items(Signal::Traces), 210);
    // Killed: nothing is said to the store.
    drop(store);
    let mut store = dir.open();
    assert_eq!(store.items(Signal::Traces), 210);
    push(&mut store, Signal::Traces, &request(30));
    for n in [5].into_iter().chain(10..31) {
        let record = take(&mut store, Signal::Traces).expect("a record");
        assert_eq!(record.bytes, request(n), "{n}");
        store.done(record.ticket);
    }
    for n in 0..30 {
        let record = take(&mut store, Signal::Metrics).expect("a record");
        assert_eq!(record.bytes, noise(n, 700));
        store.done(record.ticket);
    }
    assert!(take(&mut store, Signal::Traces).is_none() && take(&mut store, Signal::Metrics).is_none());
    let record = take(&mut store, Signal::Logs).expect("a record");
    assert!(record.bytes.is_empty());
    store.done(record.ticket);
    assert_eq!((dir.files(), store.bytes()), (Vec::new(), 0), "files of which all is done are removed");
    assert_eq!(dir.lost, []);
}

#[test]
fn packing_saves_room_and_is_left_where_it_does_not() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    push(&mut store, Signal::Traces, &request(1).repeat(100));
    assert!(store.bytes() < 2000, "{}", store.bytes());
    let before = store.bytes();
    push(&mut store, Signal::Traces, &noise(1, 5000));
    assert_eq!(store.bytes() - before, 5000 + HEAD);
}

#[test]
fn the_oldest_of_the_signal_that_takes_most_goes_when_it_is_full() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    push(&mut store, Signal::Logs, &noise(0, 1000));
    let mut lost = Vec::new();
    for n in 0..40 {
        lost.extend(push(&mut store, Signal::Traces, &noise(n, 1 << 20)));
        assert!(store.bytes() <= LIMIT, "{}", store.bytes());
    }
    let on_disk: u64 =
        dir.files().iter().map(|name| fs::metadata(dir.path(name)).expect("a file").len()).sum();
    assert_eq!(on_disk, store.bytes(), "what is stated is what it takes");
    let first = take(&mut store, Signal::Traces).expect("a record");
    let given_up = lost.len() as u64;
    assert_eq!(first.bytes, noise(given_up, 1 << 20));
    assert!((25..=26).contains(&given_up), "{given_up}");
    assert!(
        lost.iter()
            .all(|l| (l.signal, l.why, l.process, l.count)
                == (Signal::Traces, Dropped::SpoolFull, Some(7), 10))
    );
    assert_eq!(store.items(Signal::Traces) + 10 * given_up, 400);
    // It is under way: whoever has it says what becomes of it, and it is not counted here.
    let mut more = Vec::new();
    while !first.gone.load(std::sync::atomic::Ordering::Acquire) {
        more.extend(push(&mut store, Signal::Traces, &noise(1, 1 << 20)));
    }
    assert_eq!(more.len() as u64 * 10, 0, "the file held nothing else: {more:?}");
    store.done(first.ticket);
    assert_eq!(store.items(Signal::Logs), 10, "others keep their room");
    let error = store.push(Signal::Traces, 7, 1, &noise(1, 17 << 20), &mut |_| {}).expect_err("too large");
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn a_smaller_spool_gives_up_the_oldest_at_once() {
    let mut dir = Dir::new();
    let mut store = dir.open_with(4 * LIMIT).expect("opened");
    for n in 0..40 {
        push(&mut store, Signal::Traces, &noise(n, 1 << 20));
    }
    drop(store);
    let store = dir.open();
    assert!(store.bytes() <= LIMIT);
    assert_eq!(dir.lost(Dropped::SpoolFull) + store.items(Signal::Traces), 400);
}

#[test]
fn a_torn_end_is_cut_off_and_counted_once_wherever_it_is_torn() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    for n in 0..3 {
        push(&mut store, Signal::Traces, &request(n));
    }
    drop(store);
    let path = dir.path(&dir.files()[0]);
    let whole = fs::read(&path).expect("a file");
    let begin = MAGIC.len();
    let record = (whole.len() - begin) / 3;
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("written");
        dir.lost.clear();
        let store = dir.open();
        let (in_full, rest) = match length.checked_sub(begin) {
            Some(n) => (n / record, n % record),
            None => (0, 0),
        };
        assert_eq!(store.items(Signal::Traces), 10 * in_full as u64, "{length}");
        // Where the head is whole it tells how much was lost, else it was something.
        let counted = if rest == 0 {
            0
        } else if rest < HEAD as usize {
            1
        } else {
            10
        };
        assert_eq!(dir.lost(Dropped::SpoolDamaged), counted, "{length}");
        drop(store);
        dir.lost.clear();
        let mut store = dir.open();
        assert_eq!(dir.lost, [], "{length}");
        // And it can be gone on with.
        push(&mut store, Signal::Traces, &request(9));
        let mut taken = Vec::new();
        while let Some(record) = take(&mut store, Signal::Traces) {
            taken.push(record.bytes.clone());
            store.done(record.ticket);
        }
        assert_eq!(taken.len(), in_full + 1, "{length}");
        assert_eq!(taken[in_full], request(9));
    }
}

#[test]
fn no_byte_can_be_changed_unnoticed() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    for n in 0..3 {
        push(&mut store, Signal::Traces, &request(n));
    }
    drop(store);
    let name = dir.files()[0].clone();
    let path = dir.path(&name);
    let whole = fs::read(&path).expect("a file");
    for at in MAGIC.len()..whole.len() {
        for bit in [0, 7] {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            fs::write(&path, &changed).expect("written");
            dir.lost.clear();
            let mut store = dir.open();
            let mut lost = Vec::new();
            let mut taken = Vec::new();
            while let Some(record) = store.take(Signal::Traces, &mut |l| lost.push(l)) {
                taken.push(record.bytes.clone());
                store.done(record.ticket);
            }
            let wanted: Vec<_> = (0..3).map(request).collect();
            assert!(taken.iter().all(|t| wanted.iter().any(|w| w == t)), "{at}");
            assert!(taken.len() < 3 && !(lost.is_empty() && dir.lost.is_empty()), "{at} {bit}");
            assert_eq!(store.items(Signal::Traces), 0);
            assert_eq!(store.bytes(), 0, "{at}");
            drop(store);
            let _ = fs::remove_file(&path);
        }
    }
}

#[test]
fn a_disk_that_changes_what_was_read_before_is_noticed() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    for n in 0..5 {
        push(&mut store, Signal::Traces, &request(n));
    }
    let under_way = take(&mut store, Signal::Traces).expect("a record");
    let path = dir.path(&dir.files()[0]);
    let record = (fs::metadata(&path).expect("a file").len() - MAGIC.len() as u64) / 5;
    let file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(&[0; 40], MAGIC.len() as u64 + 2 * record).expect("written");
    let second = take(&mut store, Signal::Traces).expect("a record");
    let mut lost = Vec::new();
    let fourth = store.take(Signal::Traces, &mut |l| lost.push(l)).expect("a record");
    assert_eq!((&fourth.bytes[..], lost.iter().map(|l| l.count).sum::<u64>()), (&request(3)[..], 10));
    // The last one's length: nothing is found behind it.
    file.write_all_at(&[0xff; 4], MAGIC.len() as u64 + 4 * record + 4).expect("written");
    assert!(store.take(Signal::Traces, &mut |l| lost.push(l)).is_none());
    assert_eq!(lost.iter().map(|l| l.count).sum::<u64>(), 20);
    for record in [under_way, second, fourth] {
        store.done(record.ticket);
    }
    assert_eq!((store.items(Signal::Traces), store.bytes()), (0, 0));
}

#[test]
fn what_lies_behind_a_damaged_place_is_sent_and_the_rest_is_counted() {
    // A beginning that was overwritten, with the first two records; a length that is wrong.
    for (at, bytes, whole) in [(0, vec![0xff; 200], 8), (MAGIC.len() as u64 + 4, vec![0xff; 3], 9)] {
        let mut dir = Dir::new();
        let mut store = dir.open();
        for n in 0..10 {
            push(&mut store, Signal::Traces, &noise(n, 100));
        }
        drop(store);
        let path = dir.path(&dir.files()[0]);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_all_at(&bytes, at))
            .expect("written");
        let mut store = dir.open();
        assert_eq!(store.items(Signal::Traces), whole * 10);
        assert_eq!(dir.lost(Dropped::SpoolDamaged), 1, "how much that was is not known");
        for n in 10 - whole..10 {
            let record = take(&mut store, Signal::Traces).expect("a record");
            assert_eq!(record.bytes, noise(n, 100));
            store.done(record.ticket);
        }
        assert!(take(&mut store, Signal::Traces).is_none());
        assert_eq!((dir.files(), store.bytes()), (Vec::new(), 0));
    }
}

#[test]
fn what_is_damaged_in_a_file_that_is_given_up_is_counted_as_that() {
    let mut dir = Dir::new();
    let mut store = dir.open();
    for n in 0..10 {
        push(&mut store, Signal::Traces, &noise(n, 1000));
    }
    let file = fs::OpenOptions::new().write(true).open(dir.path(&dir.files()[0])).expect("opened");
    file.write_all_at(&[0xff; 4000], 0).expect("written");
    let mut lost = Vec::new();
    for n in 0.. {
        lost.extend(push(&mut store, Signal::Traces, &noise(n, 1 << 20)));
        if !lost.is_empty() {
            break;
        }
    }
    let of = |why| lost.iter().filter(|l| l.why == why).map(|l| l.count).sum::<u64>();
    let damaged = of(Dropped::SpoolDamaged);
    assert_eq!((damaged, (damaged + of(Dropped::SpoolFull)) % 10), (40, 0));
    assert!(damaged + of(Dropped::SpoolFull) >= 100);
}

#[test]
fn a_directory_is_one_gotraces() {
    let mut dir = Dir::new();
    let store = dir.open();
    let error = dir.open_with(LIMIT).expect_err("taken");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (io::ErrorKind::ResourceBusy, "in use by another gotrace")
    );
    drop(store);
    dir.open();
}

#[test]
fn files_of_others_are_left_alone() {
    let mut dir = Dir::new();
    drop(dir.open());
    let strange = ["00000000000000000003.traces", "notes.txt", "x.traces", "00000000000000000004.profiles"];
    for name in strange {
        fs::write(dir.path(name), "something else entirely").expect("written");
    }
    let mut store = dir.open();
    assert_eq!((store.bytes(), store.items(Signal::Traces)), (0, 0));
    push(&mut store, Signal::Traces, &request(0));
    assert_eq!(take(&mut store, Signal::Traces).expect("a record").bytes, request(0));
    for name in strange {
        // What has the name of a file of ours is out of the way from now on, and counted once.
        let name = if name == strange[0] { format!("{name}.damaged") } else { name.to_owned() };
        assert_eq!(fs::read(dir.path(&name)).expect("a file"), b"something else entirely");
    }
    assert_eq!(dir.lost(Dropped::SpoolDamaged), 1);
    dir.lost.clear();
    fs::write(dir.path("00000000000000000009.logs"), "gotrace7 with what that may hold").expect("written");
    drop(store);
    dir.open();
    assert_eq!(dir.lost, []);
    assert!(dir.path("00000000000000000009.logs").exists(), "another version's");
}

#[test]
fn neither_a_link_nor_what_lies_behind_one_is_used() {
    let place = tempfile::tempdir().expect("a directory");
    let at = |name: &str| place.path().join(name);
    let open = |name: &str| Store::open(&at(name), LIMIT, &mut |_| {});
    fs::create_dir(at("elsewhere")).expect("made");
    symlink(at("elsewhere"), at("link")).expect("made");
    let refusal = open("link").expect_err("refused").to_string();
    assert!(refusal.contains("a symbolic link"), "{refusal}");
    assert_eq!(fs::read_dir(at("elsewhere")).expect("there").count(), 0);

    // A directory that anybody could write to until now, with what they left in it.
    fs::write(at("precious"), "precious").expect("written");
    fs::create_dir(at("spool")).expect("made");
    fs::set_permissions(at("spool"), Permissions::from_mode(0o777)).expect("set");
    symlink(at("precious"), at("spool/lock")).expect("made");
    let refusal = open("spool").expect_err("refused").to_string();
    assert!(refusal.contains("lock: it is a symbolic link"), "{refusal}");
    fs::remove_file(at("spool/lock")).expect("removed");
    symlink(at("precious"), at("spool/00000000000000000001.traces")).expect("made");
    let mut store = open("spool").expect("its own");
    push(&mut store, Signal::Traces, &request(1));
    assert!(take(&mut store, Signal::Traces).is_some());
    assert_eq!(fs::read_to_string(at("precious")).expect("text"), "precious");
    let mode = |name: &str| fs::metadata(at(name)).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode("spool"), mode("spool/lock")), (0o700, 0o600));
}

#[test]
fn what_cannot_be_a_directory_is_refused() {
    let dir = Dir::new();
    let file = dir.dir.path().join("file");
    fs::write(&file, "").expect("written");
    assert!(Store::open(&file, LIMIT, &mut |_| {}).is_err());
    assert!(Store::open(Path::new("/proc/nowhere/spool"), LIMIT, &mut |_| {}).is_err());
}
