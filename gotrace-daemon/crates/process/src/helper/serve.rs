//! What a helper does.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::unix::fs::FileExt as _,
    sync::atomic::Ordering,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg};

use super::wire::{MAX_BYTES, Request, Shared};
use crate::{executable::by_descriptor, memory::read_vectors, root};

/// Pieces and bytes that are read between two signs of life.
const STEP: (usize, usize) = (128, 256 << 10);

/// A helper's whole work: answers until gotrace closes its end, or ends.
pub fn serve() {
    // Whoever ends gotrace ends this too, by the socket; gotrace may still want something meanwhile.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: no handler is set.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let (socket, memory) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let Ok(mut shared) = Shared::map(memory) else { return };
    loop {
        let mut message = [0; Request::LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut message)];
        let received = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        if received.bytes != Request::LEN || received.flags.contains(ReturnFlags::TRUNC) {
            return;
        }
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next().map(File::from),
            _ => None,
        });
        let Some(request) = Request::from_bytes(&message) else { return };
        let answer = match answer(request, file.as_ref(), &mut shared) {
            Ok(n) => i64::try_from(n).unwrap_or(i64::MAX),
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        if rustix::net::send(socket, &answer.to_ne_bytes(), SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
}

fn answer(request: Request, file: Option<&File>, shared: &mut Shared) -> io::Result<usize> {
    match request {
        Request::Memory { pid, pieces } => {
            let pieces = shared.pieces(pieces);
            let (mut read, mut next) = (0, 0);
            while next < pieces.len() {
                let (mut count, mut wanted) = (0, 0);
                for piece in pieces[next..].iter().take(STEP.0) {
                    if count > 0 && wanted + piece.len() > STEP.1 {
                        break;
                    }
                    count += 1;
                    wanted += piece.len();
                }
                let step = &pieces[next..next + count];
                let to = shared.bytes().get_mut(read..read + wanted).ok_or(io::ErrorKind::InvalidInput)?;
                match read_vectors(pid, to, step) {
                    Ok(n) => {
                        read += n;
                        shared.progress().fetch_add(1, Ordering::Relaxed);
                        if n < wanted {
                            break;
                        }
                    }
                    Err(_) if read > 0 => break,
                    Err(error) => return Err(error),
                }
                next += count;
            }
            Ok(read)
        }
        Request::File { offset, len } => {
            let mut file = file.ok_or(io::ErrorKind::InvalidInput)?;
            let to = shared.bytes().get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
            match offset {
                Some(offset) => file.read_at(to, offset),
                None => file.read(to),
            }
        }
        Request::Served { offset, len } => {
            let to = shared.bytes().get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
            open_and_read(file.ok_or(io::ErrorKind::InvalidInput)?, offset, to)
        }
        Request::FileSystem => {
            let magic = magic_of(file.ok_or(io::ErrorKind::InvalidInput)?)?;
            Ok(usize::try_from(magic).unwrap_or(usize::MAX))
        }
        Request::InRoot { path } => {
            let file = file.ok_or(io::ErrorKind::InvalidInput)?;
            let path = shared.bytes().get(..path).unwrap_or_default();
            let path = String::from_utf8(path.to_vec()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let found = root::read(file, &path, MAX_BYTES as u64).ok_or(io::ErrorKind::NotFound)?;
            shared.bytes()[..found.len()].copy_from_slice(&found);
            Ok(found.len())
        }
    }
}

/// By a descriptor that cannot be read by itself.
pub fn open_and_read(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    File::open(by_descriptor(file))?.read_at(buffer, offset)
}

pub fn magic_of(file: &File) -> io::Result<u64> {
    let stat = rustix::fs::fstatfs(file)?;
    // Of the type's 32 bits; some targets have it signed.
    #[expect(clippy::cast_sign_loss, reason = "a magic number")]
    let magic = stat.f_type as u64;
    Ok(magic & 0xffff_ffff)
}
