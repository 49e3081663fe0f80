//! A process is opened as what it is, and the parts of it are read; what it is not has its own error.

use std::{io::Write as _, process::Command};

use super::*;

#[test]
fn describes_this_process() {
    let target = Target::open(std::process::id()).expect("this process lives");
    let exe = std::env::current_exe().expect("it has an executable");
    assert_eq!(target.executable, exe);
    assert!(!target.executable_deleted);
    assert_eq!(target.other_pid_namespace, Some(false));
    assert!(*target.exe_bytes().expect("readable") == *std::fs::read(&exe).expect("readable"));
    let code = describes_this_process as fn() as usize as u64;
    let mappings = target.executable_mappings().expect("readable");
    assert_eq!(mappings[0].file_offset, 0);
    assert!(mappings.iter().any(|m| m.executable && (m.start..m.end).contains(&code)));
    assert!(target.threads().expect("has threads").contains(&std::process::id()));
    assert_eq!(target.arguments().expect("readable")[0], std::env::args().next().expect("has a name"));
    assert_eq!(target.environment_variable("PATH"), std::env::var("PATH").ok());
}

#[test]
fn refuses_what_is_not_a_living_program() {
    assert!(matches!(Target::open(0), Err(ProcessError::Gone { pid: 0 })));
    assert!(matches!(Target::open(u32::MAX), Err(ProcessError::Gone { .. })));
    assert!(matches!(Target::open(1 << 30), Err(ProcessError::Gone { .. })));
    let mut child = Command::new("true").spawn().expect("true starts");
    while read_stat(&open_directory(child.id()), child.id()).expect("not collected").state != 'Z' {
        std::thread::yield_now();
    }
    assert!(matches!(Target::open(child.id()), Err(ProcessError::Zombie { .. })));
    child.wait().expect("true ends");
    assert!(matches!(Target::open(child.id()), Err(ProcessError::Gone { .. })));
}

extern "C" fn stay(_: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: it takes no arguments.
    unsafe { libc::pause() };
    std::ptr::null_mut()
}

/// A process whose first thread ends at the first byte in the pipe, and which has another that stays.
fn without_first_thread() -> (u32, std::io::PipeWriter) {
    let (read, write) = std::io::pipe().expect("a pipe");
    let mut byte = 0u8;
    // SAFETY: the child of this process with threads makes a thread and ends the first; the pointers are of values
    // that live.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            let mut thread = std::mem::zeroed();
            libc::pthread_create(&raw mut thread, std::ptr::null(), stay, std::ptr::null_mut());
            libc::read(std::os::fd::AsRawFd::as_raw_fd(&read), (&raw mut byte).cast(), 1);
            libc::syscall(libc::SYS_exit, 0);
        }
    }
    (pid.unsigned_abs(), write)
}

fn end(pid: u32) {
    // SAFETY: a child of this test, which nobody else waits for.
    unsafe {
        libc::kill(pid.cast_signed(), libc::SIGKILL);
        libc::waitpid(pid.cast_signed(), std::ptr::null_mut(), 0);
    }
}

#[test]
fn a_process_whose_first_thread_ended_is_no_zombie() {
    let (pid, mut pipe) = without_first_thread();
    // As it is when it was opened before, too.
    let before = Target::open(pid).expect("lives");
    let whole = before.executable_mappings();
    pipe.write_all(b"x").expect("it reads");
    let until_refused = |mut look: Box<dyn FnMut() -> Option<ProcessError> + '_>| loop {
        match look() {
            None => std::thread::yield_now(),
            Some(error) => break error,
        }
    };
    let known = until_refused(Box::new(|| before.executable_mappings().err()));
    let target = until_refused(Box::new(|| Target::open(pid).err()));
    end(pid);
    assert!(whole.is_ok_and(|mappings| !mappings.is_empty()));
    assert!(matches!(known, ProcessError::LeaderEnded { others: 1, .. }), "{known}");
    assert!(matches!(target, ProcessError::LeaderEnded { others: 1, .. }), "{target}");
}

#[test]
fn names_the_process_of_a_thread() {
    let (send, receive) = std::sync::mpsc::channel();
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        send.send(rustix::thread::gettid().as_raw_pid().cast_unsigned()).expect("received");
        let _ = wait.recv();
    });
    let tid = receive.recv().expect("sent");
    match Target::open(tid) {
        Err(ProcessError::Thread { tgid, .. }) => assert_eq!(tgid, std::process::id()),
        other => panic!("{other:?}"),
    }
    drop(end);
    thread.join().expect("the thread ends");
}

#[test]
fn a_deleted_executable_and_an_odd_name_are_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = std::ffi::OsStr::from_bytes(b"sl\xffe\nep");
    let path = directory.path().join(name);
    std::fs::copy("/bin/sleep", &path).expect("copied");
    let mut child = Command::new(&path).arg("60").spawn().expect("sleep starts");
    crate::wait_for_program(child.id());
    std::fs::remove_file(&path).expect("removed");
    let target = Target::open(child.id());
    let found = target
        .as_ref()
        .map(|t| (t.executable.clone(), t.executable_deleted, t.exe_bytes(), t.executable_mappings()));
    child.kill().expect("sleep can be ended");
    child.wait().expect("sleep ends");
    let (executable, deleted, bytes, mappings) = found.expect("opens");
    assert_eq!(executable, path);
    assert!(deleted);
    assert!(*bytes.expect("readable") == *std::fs::read("/bin/sleep").expect("readable"));
    assert!(!mappings.expect("readable").is_empty());
    assert!(matches!(target.expect("opens").threads(), Err(ProcessError::Gone { .. })));
}

#[test]
fn what_is_asked_of_one_that_has_ended_says_that_it_is_gone() {
    let mut child = Command::new("/bin/sleep").arg("60").spawn().expect("sleep starts");
    crate::wait_for_program(child.id());
    let target = Target::open(child.id()).expect("opens");
    let watch = target.watch().expect("watched");
    child.kill().expect("sleep can be ended");
    assert!(watch.wait_timeout(std::time::Duration::from_secs(60)));
    // First a zombie, whose directory is there still, then nothing.
    for _ in 0..2 {
        assert!(matches!(target.executable_mappings(), Err(ProcessError::Gone { .. })));
        child.wait().expect("sleep ends");
    }
    // What it was asked for besides keeps its own reason.
    let other = std::io::Error::from_raw_os_error(libc::EMFILE);
    assert!(matches!(target.cannot("be looked at", other), ProcessError::Io { .. }));
}

fn open_directory(pid: u32) -> OwnedFd {
    openat(CWD, format!("/proc/{pid}"), DIRECTORY, Mode::empty()).expect("the process exists")
}
