//! What a goroutine waits for outside of its process: in words, and as JSON (`waits_on` of every format).
//!
//! Input: a wait and its object, or a system call, with what was looked up of it. Output: text that is fit to be
//! printed, without a capital letter or a full stop; `None` where nothing is known.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::text::bytes;
use gotrace_inspect::snapshot::{
    End, Goroutine, Names, ObjectKind, Op, Outside, Snapshot, StackFrame, Status, Until, Wait, WaitObject,
};
use gotrace_model::printable::printable;
use gotrace_process::{FileKind, NamedProcess, OpenFile, SystemCall};

/// What a goroutine of a snapshot waits for.
pub(crate) fn of_goroutine(snapshot: &Snapshot, goroutine: &Goroutine, names: &mut Names) -> Option<String> {
    if goroutine.status == Status::Syscall {
        return in_call(goroutine.goid, snapshot.frames(goroutine), &snapshot.outside, names);
    }
    let waits = snapshot.waits_of(goroutine).iter();
    let waits = waits.filter_map(|w| Some((*w, snapshot.object(w.object)?)));
    // Of several timers the first.
    let (wait, object) = waits.min_by_key(|(wait, _)| match wait.until.end() {
        End::In(ns) => ns,
        _ => i64::MAX,
    })?;
    of_wait(wait, object, Some(&snapshot.outside))
}

/// The system call that a goroutine is in, by its stack in C or not.
pub(crate) fn in_call(
    goid: u64,
    stack: &[StackFrame],
    outside: &Outside,
    names: &mut Names,
) -> Option<String> {
    let call = outside.call(goid)?;
    let innermost = stack.first().map(std::slice::from_ref).unwrap_or_default();
    let in_c = names.stack(innermost).first().is_some_and(|f| f.frame.function == "runtime.cgocall");
    Some(of_call(call, in_c, outside.pid))
}

/// `read from 10.0.3.7:5432 (tcp, established, nothing unread), no deadline`; `wakes in 57 s`.
pub(crate) fn of_wait(wait: Wait, object: &WaitObject, outside: Option<&Outside>) -> Option<String> {
    let end = wait.until.end();
    match (object.kind, end) {
        (ObjectKind::Timer, End::In(ns @ 1..)) => Some(format!("wakes in {}", duration(ns))),
        (ObjectKind::Timer, End::In(_)) => Some("due to wake".to_owned()),
        (ObjectKind::Chan, End::In(ns @ 1..)) => Some(format!("timer fires in {}", duration(ns))),
        (ObjectKind::Fd, _) => {
            let number = object.descriptor()?;
            let file = outside.and_then(|o| o.file(object));
            let what = match (file, wait.op) {
                (Some(f), _) if f.is_listening() => format!("accept on {}", listener(f)),
                (Some(f), Some(Op::Write)) if f.state == Some("syn_sent") => {
                    format!("connect to {}", of_file(f, None, number))
                }
                (Some(f), op) => format!("{}{}", verb(op), of_file(f, op, number)),
                (None, op) => format!("{}fd {number}", verb(op)),
            };
            let none = file.is_some_and(OpenFile::is_listening) && end == End::Never;
            let deadline = if none { None } else { deadline(end) };
            Some(what + &deadline.map_or(String::new(), |d| format!(", {d}")))
        }
        _ => None,
    }
}

const fn verb(op: Option<Op>) -> &'static str {
    match op {
        Some(Op::Read) => "read from ",
        Some(Op::Write) => "write to ",
        _ => "",
    }
}

fn deadline(end: End) -> Option<String> {
    Some(match end {
        End::Unknown => return None,
        End::Never => "no deadline".to_owned(),
        End::Passed => "deadline passed".to_owned(),
        End::In(ns @ 1..) => format!("deadline in {}", duration(ns)),
        End::In(ns) => format!("deadline passed {} ago", duration(ns.saturating_neg())),
    })
}

/// `300 ms`, `57 s`, `5 min`.
fn duration(ns: i64) -> String {
    let seconds = ns.saturating_add(500_000_000) / 1_000_000_000;
    match seconds {
        ..1 => format!("{} ms", ns / 1_000_000),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn listener(file: &OpenFile) -> String {
    format!("{} ({})", file.local.as_deref().map_or("?".into(), printable), file.kind.name())
}

/// Who or what is at the other end. `op`: of what bytes are told.
fn of_file(file: &OpenFile, op: Option<Op>, number: u32) -> String {
    let (local, peer) = (file.local.as_deref().map(printable), file.peer.as_deref().map(printable));
    let who = match (file.kind, peer, local) {
        (FileKind::Tcp | FileKind::Udp, Some(peer), _) => peer.into_owned(),
        (FileKind::Tcp | FileKind::Udp, None, Some(local)) => format!("socket {local}"),
        (FileKind::Unix, _, Some(local)) if file.accepted == Some(true) => format!("a client of {local}"),
        (FileKind::Unix, _, Some(local)) => format!("socket {local}"),
        (FileKind::Unix, _, None) => "a socket".to_owned(),
        (FileKind::Pipe, ..) => return "a pipe".to_owned(),
        (FileKind::Eventfd, ..) => return "an eventfd".to_owned(),
        (FileKind::File, ..) => {
            return file
                .path
                .as_deref()
                .map_or_else(|| format!("fd {number}"), |p| printable(p).into_owned());
        }
        (FileKind::Pidfd, ..) => {
            return file.process.as_ref().map_or_else(|| "a process".to_owned(), |p| process(p, 0));
        }
        _ => return format!("fd {number}"),
    };
    let mut details = vec![Cow::from(file.kind.name())];
    details.extend(file.state.map(|s| Cow::from(s.replace('_', " "))));
    let queue = match op {
        Some(Op::Read) => file.unread_bytes.map(|n| (n, "unread")),
        Some(Op::Write) => file.unsent_bytes.map(|n| (n, "unsent")),
        _ => None,
    };
    details.extend(queue.map(|(n, what)| match n {
        0 => Cow::from(format!("nothing {what}")),
        n => Cow::from(format!("{} {what}", bytes(n))),
    }));
    format!("{who} ({})", details.join(", "))
}

/// `flock /var/lib/app.lock, held by process 4711 (backup)`. `own`: the process itself.
fn of_call(call: &SystemCall, in_c: bool, own: u32) -> String {
    let name = call.name.map_or_else(|| format!("system call {}", call.number).into(), Cow::from);
    let op = match &*name {
        "read" | "readv" | "pread64" | "preadv" | "recvfrom" | "recvmsg" => Some(Op::Read),
        "write" | "writev" | "pwrite64" | "pwritev" | "sendto" | "sendmsg" => Some(Op::Write),
        _ => None,
    };
    let mut text = match (&call.child, &call.file, call.descriptor) {
        (Some(child), ..) => format!("waits for child {}", process(child, 0)),
        (None, Some(f), fd) => {
            let what = of_file(f, op, fd.unwrap_or(0));
            // `recvfrom` says so itself.
            match op {
                Some(_) if matches!(&*name, "read" | "write") => format!("{}{what}", verb(op)),
                _ => format!("{name} {what}"),
            }
        }
        (None, None, Some(fd)) => format!("{name} fd {fd}"),
        (None, None, None) => name.into_owned(),
    };
    if let Some(holder) = &call.held_by {
        text += &format!(", held by {}", process(holder, own));
    }
    if in_c { format!("in C: {text}") } else { text }
}

/// `process 4711 (backup)`.
fn process(process: &NamedProcess, own: u32) -> String {
    match &process.name {
        _ if process.pid == own => "this process".to_owned(),
        Some(name) => format!("process {} ({})", process.pid, printable(name)),
        None => format!("process {}", process.pid),
    }
}

/// An entry of `waits_on`.
pub(crate) fn wait_json(wait: Wait, object: &WaitObject, outside: Option<&Outside>) -> Value {
    let chan = (object.kind == ObjectKind::Chan && object.known).then_some(object);
    let is_chan = object.kind == ObjectKind::Chan;
    let mut value = json!({
        "kind": object.kind.name(),
        "address": (object.address != 0).then(|| format!("{:#x}", object.address)),
        "op": wait.op.map(|op| op.name()),
        "len": chan.map(|c| c.len),
        "cap": chan.map(|c| c.cap),
        "closed": chan.map(|c| c.closed),
        "elem_size": chan.map(|c| c.elem_size),
        "senders": is_chan.then_some(object.senders),
        "receivers": is_chan.then_some(object.receivers),
        "fd": object.descriptor(),
    });
    match object.kind {
        ObjectKind::Fd => {
            value["object"] = outside.and_then(|o| o.file(object)).map_or(Value::Null, file_json);
            value["deadline"] = deadline_json(wait.until);
        }
        ObjectKind::Chan | ObjectKind::Timer => {
            value["fires_in_ns"] = match wait.until.end() {
                End::In(ns) => ns.into(),
                _ => Value::Null,
            };
        }
        _ => {}
    }
    value
}

/// All entries of `waits_on` of a goroutine of a snapshot.
pub(crate) fn goroutine_json(snapshot: &Snapshot, goroutine: &Goroutine) -> Vec<Value> {
    let waits = snapshot.waits_of(goroutine).iter();
    let one = |w: &Wait| {
        let object = snapshot.object(w.object);
        object.map_or(Value::Null, |object| wait_json(*w, object, Some(&snapshot.outside)))
    };
    waits.map(one).chain(snapshot.outside.call(goroutine.goid).map(call_json)).collect()
}

/// The same of a system call.
pub(crate) fn call_json(call: &SystemCall) -> Value {
    json!({
        "kind": "syscall",
        "address": null,
        "op": null,
        "name": call.name,
        "number": call.number,
        "fd": call.descriptor,
        "object": call.file.as_ref().map(file_json),
        "held_by": call.held_by.as_ref().map(process_json),
        "child": call.child.as_ref().map(process_json),
    })
}

fn file_json(file: &OpenFile) -> Value {
    json!({
        "type": file.kind.name(),
        "local": file.local,
        "peer": file.peer,
        "state": file.state,
        "unread_bytes": file.unread_bytes,
        "unsent_bytes": file.unsent_bytes,
        "path": file.path,
        "pid": file.process.as_ref().map(|p| p.pid),
        "process": file.process.as_ref().and_then(|p| p.name.as_deref()),
    })
}

fn process_json(process: &NamedProcess) -> Value {
    json!({"pid": process.pid, "process": process.name})
}

fn deadline_json(until: Until) -> Value {
    let (set, in_ns) = match until.end() {
        End::Unknown => return Value::Null,
        End::Never => (false, None),
        End::Passed => (true, None),
        End::In(ns) => (true, Some(ns)),
    };
    json!({"set": set, "in_ns": in_ns})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::testing::demo;

    fn tcp(peer: &str) -> OpenFile {
        OpenFile {
            kind: FileKind::Tcp,
            local: Some("10.0.0.2:41000".into()),
            peer: Some(peer.into()),
            state: Some("established"),
            unread_bytes: Some(0),
            unsent_bytes: Some(3_774_874),
            ..OpenFile::default()
        }
    }

    fn wait(kind: ObjectKind, op: Op, until: Until, file: Option<OpenFile>) -> (Option<String>, Value) {
        let (mut snapshot, _) = demo();
        if let Some(file) = file {
            snapshot.outside.set_file(9, file);
        }
        let wait = Wait { op: Some(op), until, ..snapshot.waits[0] };
        let object = WaitObject { kind, len: 9, known: true, ..snapshot.objects[0] };
        (of_wait(wait, &object, Some(&snapshot.outside)), wait_json(wait, &object, Some(&snapshot.outside)))
    }

    #[test]
    fn descriptors_are_told_with_peer_and_deadline() {
        let second = 1_000_000_000;
        let fd = |op, until, file| wait(ObjectKind::Fd, op, until, file).0.expect("a text");
        let never = Until::NEVER;
        for (op, until, file, expected) in [
            (
                Op::Read,
                never,
                Some(tcp("10.0.3.7:5432")),
                "read from 10.0.3.7:5432 (tcp, established, nothing unread), no deadline",
            ),
            (
                Op::Write,
                Until::in_ns(18 * second),
                Some(tcp("10.0.4.9:9092")),
                "write to 10.0.4.9:9092 (tcp, established, 3.6 MiB unsent), deadline in 18 s",
            ),
            (
                Op::Read,
                Until::in_ns(-3 * second),
                Some(OpenFile { state: Some("close_wait"), unread_bytes: Some(12), ..tcp("[::1]:80") }),
                "read from [::1]:80 (tcp, close wait, 12 B unread), deadline passed 3 s ago",
            ),
            (
                Op::Read,
                never,
                Some(OpenFile { peer: None, state: Some("listen"), ..tcp("") }),
                "accept on 10.0.0.2:41000 (tcp)",
            ),
            (
                Op::Write,
                Until::in_ns(second / 2 - 1),
                Some(OpenFile { state: Some("syn_sent"), ..tcp("10.0.3.7:1") }),
                "connect to 10.0.3.7:1 (tcp, syn sent), deadline in 499 ms",
            ),
            (
                Op::Read,
                never,
                Some(OpenFile {
                    local: Some("/run/\u{1b}x".into()),
                    accepted: Some(true),
                    kind: FileKind::Unix,
                    ..OpenFile::default()
                }),
                "read from a client of /run/\\u{1b}x (unix), no deadline",
            ),
            (Op::Read, Until::default(), Some(OpenFile::with_path("/dev/pts/1")), "read from /dev/pts/1"),
            (Op::Read, never, None, "read from fd 9, no deadline"),
        ] {
            assert_eq!(fd(op, until, file), expected);
        }
        let (_, json) = wait(ObjectKind::Fd, Op::Read, never, Some(tcp("10.0.3.7:5432")));
        assert_eq!(json["object"]["peer"], "10.0.3.7:5432");
        assert_eq!(json["object"]["unsent_bytes"], 3_774_874);
        assert_eq!(json["deadline"], json!({"set": false, "in_ns": null}));
        let (_, json) = wait(ObjectKind::Fd, Op::Read, Until::in_ns(-5), None);
        assert_eq!((&json["object"], &json["deadline"]["in_ns"]), (&Value::Null, &json!(-5)));
    }

    #[test]
    fn timers_are_told_with_their_time() {
        let second = 1_000_000_000;
        let (text, json) = wait(ObjectKind::Timer, Op::Sleep, Until::in_ns(57 * second), None);
        assert_eq!((text.as_deref(), &json["fires_in_ns"]), (Some("wakes in 57 s"), &json!(57 * second)));
        let (text, _) = wait(ObjectKind::Chan, Op::Receive, Until::in_ns(700 * second), None);
        assert_eq!(text.as_deref(), Some("timer fires in 11 min"));
        let (text, json) = wait(ObjectKind::Chan, Op::Receive, Until::default(), None);
        assert_eq!((text, &json["fires_in_ns"]), (None, &Value::Null));
        for (ns, expected) in [(2 * second, "2 s"), (7200 * second, "2 h"), (i64::MAX, "106751 days")] {
            assert_eq!(duration(ns), expected);
        }
    }

    #[test]
    fn system_calls_are_told_with_what_they_are_about() {
        let named = |pid, name: &str| Some(NamedProcess { pid, name: Some(name.into()) });
        let call =
            |name, file| SystemCall { name: Some(name), descriptor: Some(7), file, ..SystemCall::default() };
        let lock = SystemCall {
            held_by: named(4711, "backup"),
            ..call("flock", Some(OpenFile::with_path("/var/lib/app.lock")))
        };
        assert_eq!(of_call(&lock, false, 1), "flock /var/lib/app.lock, held by process 4711 (backup)");
        assert_eq!(of_call(&lock, false, 4711), "flock /var/lib/app.lock, held by this process");
        let child = SystemCall { child: named(4712, "ffmpeg"), ..call("wait4", None) };
        assert_eq!(of_call(&child, false, 1), "waits for child process 4712 (ffmpeg)");
        assert_eq!(
            of_call(&call("read", Some(tcp("10.0.3.7:1"))), true, 1),
            "in C: read from 10.0.3.7:1 (tcp, established, nothing unread)"
        );
        assert_eq!(of_call(&call("fsync", None), false, 1), "fsync fd 7");
        let unknown = SystemCall { number: 999, ..SystemCall::default() };
        assert_eq!(of_call(&unknown, false, 1), "system call 999");
        let json = call_json(&lock);
        assert_eq!(json["held_by"], json!({"pid": 4711, "process": "backup"}));
        assert_eq!((&json["object"]["path"], &json["child"]), (&json!("/var/lib/app.lock"), &Value::Null));
    }
}
