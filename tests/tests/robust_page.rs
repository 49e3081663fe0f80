//! The daemon's pages under clients that mean no good: half requests and large heads take a bound of its descriptors and
//! memory, and who asks is answered. Needs root and `go`.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    fixture::PATIENCE,
    gotrace::privileged,
};

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count()
}

fn resident_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn half_requests_and_large_heads_take_a_bound() {
    if !privileged("robust_page") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("it builds");
    let daemon = Daemon::start(&place.config("level: lifecycle", ""), &[]).expect("it starts");
    let (before, before_kb) = (descriptors(daemon.pid()), resident_kb(daemon.pid()));
    let large = format!("GET /metrics HTTP/1.1\r\nHost: {}", "x".repeat(200 << 10));
    let mut open = Vec::new();
    for n in 0..900 {
        let mut stream = TcpStream::connect(daemon.address()).expect("it listens");
        stream.set_write_timeout(Some(Duration::from_millis(50))).expect("a time");
        // One that was refused may be closed already.
        let _ = if n % 3 == 0 {
            stream.write_all(large.as_bytes())
        } else {
            stream.write_all(b"GET / HTTP/1.1\r\n")
        };
        open.push(stream);
        if n % 100 == 99 {
            let begun = Instant::now();
            assert_eq!(daemon.get("/livez").expect("an answer").0, 200);
            assert!(begun.elapsed() < PATIENCE);
        }
    }
    // The last that gave way are closed soon.
    let begun = Instant::now();
    while descriptors(daemon.pid()) >= before + 80 {
        assert!(begun.elapsed() < PATIENCE, "{before} -> {} descriptors", descriptors(daemon.pid()));
        std::thread::sleep(Duration::from_millis(10));
    }
    let (after, after_kb) = (descriptors(daemon.pid()), resident_kb(daemon.pid()));
    println!("descriptors {before} -> {after}, resident {before_kb} -> {after_kb} KiB");
    assert!(after_kb < before_kb + (32 << 10), "{before_kb} -> {after_kb} KiB");
    // Who comes meanwhile is traced.
    let program = Program::start(&shop).expect("it starts");
    daemon.until("traced", PATIENCE, |d| Ok(d.metrics()?.has(program.pid()))).expect("traced");
    drop(open);
}
