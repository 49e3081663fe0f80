//! What is written is for its user alone, and goes where it seems to go.

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::PathBuf,
};

use super::*;

/// A directory with what others may have left in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    (directory, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").mode() & 0o7777
}

fn written(path: &Path, mode: u32) {
    fs::write(path, "what was here").expect("written");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
}

fn why(result: io::Result<impl Sized>) -> String {
    result.err().expect("refused").to_string()
}

#[test]
fn a_file_is_for_its_user_alone_new_or_not() {
    let (_directory, path) = place();
    let new = path.join("new");
    create(&new).expect("made").write_all(b"secret").expect("written");
    assert_eq!(mode(&new), 0o600);
    let old = path.join("old");
    written(&old, 0o644);
    create(&old).expect("taken").write_all(b"secret").expect("written");
    assert_eq!((mode(&old), fs::read_to_string(&old).expect("text")), (0o600, "secret".to_owned()));
}

#[test]
fn no_link_is_followed() {
    let (_directory, path) = place();
    let precious = path.join("precious");
    written(&precious, 0o644);
    let (to_it, to_nothing, hard) = (path.join("link"), path.join("dangling"), path.join("hard"));
    symlink(&precious, &to_it).expect("made");
    symlink(path.join("absent"), &to_nothing).expect("made");
    fs::hard_link(&precious, &hard).expect("made");
    for link in [&to_it, &to_nothing] {
        assert!(why(create(link)).contains("a symbolic link"), "{}", link.display());
        assert!(why(open(link, true)).contains("a symbolic link"), "{}", link.display());
    }
    assert!(why(create(&hard)).contains("2 hard links"));
    assert!(why(open(&hard, true)).contains("2 hard links"));
    assert_eq!(fs::read_to_string(&precious).expect("text"), "what was here");
    assert_eq!(mode(&precious), 0o644);
    assert!(!path.join("absent").exists());
}

#[test]
fn what_is_somebody_elses_is_left_alone() {
    if !geteuid().is_root() {
        crate::not_tested("files of another user");
        return;
    }
    let (_directory, path) = place();
    let (file, fifo, spool) = (path.join("file"), path.join("fifo"), path.join("spool"));
    written(&file, 0o666);
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, FILE, 0).expect("made");
    fs::create_dir(&spool).expect("made");
    for theirs in [&file, &fifo, &spool] {
        chown(theirs, Some(12345), None).expect("given away");
    }
    for refusal in [why(create(&file)), why(create(&fifo)), why(open(&file, true)), why(directory(&spool))] {
        assert!(refusal.contains("belongs to user 12345, and gotrace runs as user 0"), "{refusal}");
    }
    assert_eq!(fs::read_to_string(&file).expect("text"), "what was here");
}

#[test]
fn devices_and_pipes_are_written_to_as_they_are() {
    create(Path::new("/dev/null")).expect("opened").write_all(b"x").expect("taken");
    assert_eq!(mode(Path::new("/dev/null")), 0o666);
    let (_directory, path) = place();
    let fifo = path.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, FILE, 0).expect("made");
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read_to_string(fifo).expect("text")
    });
    create(&fifo).expect("opened").write_all(b"through").expect("taken");
    assert_eq!(reader.join().expect("it ends"), "through");
    assert!(why(create(&path)).contains("a directory"));
    let socket = path.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    assert!(why(create(&socket)).contains("a socket"));
    assert!(why(open(&fifo, true)).contains("a FIFO"));
}

#[test]
fn a_descriptor_that_was_given_is_written_to() {
    for (path, number) in [("/dev/stdout", Some(1)), ("/dev/stderr", Some(2)), ("/dev/fd/63", Some(63))] {
        assert_eq!(descriptor(Path::new(path)), number, "{path}");
    }
    for path in ["/dev/fd/", "/dev/fd/x", "/dev/fd/+1", "/dev/fd/1/2", "/dev/fd/99999999999", "/dev/null"] {
        assert_eq!(descriptor(Path::new(path)), None, "{path}");
    }
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let path = format!("/dev/fd/{}", write.as_raw_fd());
    create(Path::new(&path)).expect("copied").write_all(b"given").expect("taken");
    // One of gotrace's own is none that was given.
    rustix::io::fcntl_setfd(&write, FdFlags::CLOEXEC).expect("set");
    assert!(why(create(Path::new(&path))).contains("file descriptor"));
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).expect("text");
    assert_eq!(text, "given");
}

#[test]
fn a_directory_is_for_its_user_alone_and_no_link() {
    let (_directory, path) = place();
    let new = path.join("a/b");
    directory(&new).expect("made");
    assert_eq!((mode(&path.join("a")), mode(&new)), (0o700, 0o700));
    fs::set_permissions(&new, Permissions::from_mode(0o777)).expect("set");
    directory(&new).expect("taken");
    assert_eq!(mode(&new), 0o700);
    let link = path.join("link");
    symlink(&new, &link).expect("made");
    assert!(why(directory(&link)).contains("a symbolic link"));
    let file = path.join("file");
    written(&file, 0o600);
    assert!(directory(&file).is_err());
}

#[test]
fn a_file_of_ones_own_is_opened_as_it_is() {
    let (_directory, path) = place();
    let file = path.join("file");
    assert_eq!(open(&file, false).err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
    written(&file, 0o664);
    let mut text = String::new();
    open(&file, true).expect("opened").read_to_string(&mut text).expect("text");
    assert_eq!((&*text, mode(&file)), ("what was here", 0o600));
}
