//! The socket by which commands on the same node ask a daemon: a file that only the daemon's user can open.
//!
//! Input: a path. Output: a listener. Invariants: nothing but a socket is replaced, and none by which somebody answers; it
//! is of mode 0600 before it has its name; a client that is neither root nor the daemon's user is refused whatever the file
//! system allows. A directory that is missing is made for the user alone; one that is there stays as it is.
//! Errors name the path, and say what to do.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream},
    },
    path::{Path, PathBuf},
    process,
};

use tokio::net::{UnixListener, unix::UCred};

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {} for commands of this node: {what}", path.display())]
pub struct SocketError {
    path: PathBuf,
    what: String,
}

/// The name of a socket, which goes when this is dropped, unless another one has it by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // What cannot be removed is replaced by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Begins to listen; within a runtime.
///
/// # Errors
/// [`SocketError`]
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |what: String| SocketError { path: path.into(), what };
    is_free(path).map_err(failed)?;
    let failed = |error: io::Error| SocketError { path: path.into(), what: error.to_string() };
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    // Under a name of its own until nobody else can open it.
    let fresh = directory.join(format!(".{}.sock", process::id()));
    let _ = fs::remove_file(&fresh);
    let made = || {
        let listener = StdListener::bind(&fresh)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        let identity = identity(&fresh)?;
        fs::rename(&fresh, path)?;
        Ok((UnixListener::from_std(listener)?, SocketFile { path: path.into(), identity }))
    };
    made().map_err(|error| {
        let _ = fs::remove_file(&fresh);
        failed(error)
    })
}

/// Why a path is not for the taking.
fn is_free(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err("it is there, and no socket: remove it, or choose another http.socket".into()),
    }
    match UnixStream::connect(path) {
        // Nobody listens: a daemon that was killed has left it.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(_) => Err("another gotrace daemon listens on it: choose another http.socket, or none".into()),
        Err(error) => Err(format!("something listens on it already ({error})")),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Whether whoever connected may ask.
pub(super) fn may_ask(client: io::Result<UCred>) -> bool {
    let own = rustix::process::geteuid().as_raw();
    client.is_ok_and(|client| client.uid() == 0 || client.uid() == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within<T>(work: impl FnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _within = runtime.enter();
        work()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_socket_is_of_the_user_alone_and_goes_with_the_daemon() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/gotrace.sock");
        within(|| {
            let (listener, file) = listen(&path).expect("it listens");
            assert_eq!((mode(&path), mode(path.parent().expect("a directory"))), (0o600, 0o700));
            let names = || fs::read_dir(path.parent().expect("a directory")).expect("a list").count();
            assert_eq!(names(), 1);
            // One that lives keeps it.
            let refused = listen(&path).expect_err("taken").to_string();
            assert!(refused.contains("new/gotrace.sock") && refused.contains("another gotrace"), "{refused}");
            UnixStream::connect(&path).expect("the first one listens");
            drop((listener, file));
            assert_eq!(names(), 0);
        });
    }

    #[test]
    fn one_that_was_left_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        // The directory is somebody's, and stays as it is.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("changed");
        let path = dir.path().join("gotrace.sock");
        within(|| {
            drop(StdListener::bind(&path).expect("bound"));
            let (_listener, file) = listen(&path).expect("the one before is dead");
            assert_eq!((mode(&path), mode(dir.path())), (0o600, 0o755));
            UnixStream::connect(&path).expect("it listens");
            // Another one took its name: that one stays.
            fs::remove_file(&path).expect("removed");
            let _other = StdListener::bind(&path).expect("bound");
            drop(file);
            assert!(path.exists());
            fs::remove_file(&path).expect("removed");
            fs::write(&path, "mine").expect("written");
            assert!(listen(&path).expect_err("refused").to_string().contains("no socket"));
            assert_eq!(fs::read(&path).expect("there"), b"mine");
            let below = path.join("gotrace.sock");
            assert!(listen(&below).expect_err("refused").to_string().contains("Not a directory"));
        });
    }
}
