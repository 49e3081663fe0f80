//! Marking the heap of running programs: no verdict on a program that moves the only pointer to what its
//! goroutines wait for as fast as it can. Needs root and `go`.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use gotrace_go::Binary;
use gotrace_inspect::{heap::Prover, snapshot::Live};
use gotrace_process::Target;
use gotrace_tests::{
    fixture::{PATIENCE, read_lines},
    gobuild::{Arch, CORNER_VERSIONS, Mode, build},
    gotrace::privileged,
    running::Running,
};

/// Passes over each program; all of them together are more than ten thousand, or, where marking is not optimized,
/// a thousand.
const PASSES: u32 = if cfg!(debug_assertions) { 340 } else { 3400 };

#[test]
fn no_verdict_on_pointers_that_move_all_the_time() {
    if !privileged("live_heap") {
        return;
    }
    let mut all = 0;
    for version in CORNER_VERSIONS {
        let program = build("mutator", version, Mode::Stripped, Arch::HOST).expect("it builds");
        let mut child = Running(
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts"),
        );
        let mut stdin = child.0.stdin.take().expect("a pipe");
        let lines = read_lines(child.0.stdout.take().expect("a pipe"));
        assert_eq!(lines.recv_timeout(PATIENCE).expect("a line"), "READY");

        let target = Target::open(child.0.id()).expect("it lives");
        let binary = Arc::new(Binary::parse(&target.exe_bytes().expect("readable")).expect("a Go program"));
        let live = Live::new(&target, Arc::clone(&binary)).expect("it is understood");
        let mut prover = Prover::new(binary, live.bias()).expect("its heap is understood");
        let (mut missed, mut most, mut watched) = (0_u64, 0, 0);
        let begin = Instant::now();
        for n in 0..PASSES {
            let proof = prover.pass(live.memory()).expect("a pass");
            missed += proof.unreachable.len() as u64;
            most = most.max(proof.unreachable.iter().map(|p| p.passes).max().unwrap_or(0));
            assert_eq!(proof.proven().count(), 0, "Go {version}: {:?} in pass {n}", proof.unreachable);
            let last = prover.evidence().last().expect("evidence");
            watched += u64::from(last.candidates >= 8 && last.bytes_unreadable < last.bytes_read);
            all += 1;
        }
        println!(
            "Go {version}: {} passes in {:.1?}, {missed} times a goroutine was not reached, at most {most} times in \
             a row",
            prover.proof().passes,
            begin.elapsed()
        );
        assert!(
            watched > u64::from(prover.proof().passes) * 9 / 10,
            "the goroutines were looked at: {watched}"
        );
        stdin.write_all(b"\n").expect("it listens");
        let moves = lines.recv_timeout(PATIENCE).expect("every goroutine gets what it waits for");
        let moves: u64 = moves.strip_prefix("MOVES ").expect("moves").parse().expect("a number");
        assert!(moves > 100_000, "it moved {moves} times");
    }
    assert!(all >= 1000, "{all} passes");
}
