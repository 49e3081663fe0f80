//! What findings and graphs have in common in JSON, with the forms of `dump`.

use std::io::{self, Write};

use serde_json::{Value, json};

use gotrace_go::Frame;
use gotrace_inspect::snapshot::{Names, StackFrame};
use gotrace_model::printable::write_json;

/// One object a line.
pub(crate) fn line(out: &mut (impl Write + ?Sized), value: &Value) -> io::Result<()> {
    write_json(out, value)?;
    out.write_all(b"\n")
}

/// A wait reason by its number; `null` for none.
pub(super) fn reason(names: &Names, reason: Option<u8>) -> Value {
    let name = reason.and_then(|r| names.binary().wait_reasons().get(usize::from(r)));
    match (reason, name) {
        (None, _) | (_, Some(&"")) => Value::Null,
        (_, Some(name)) => (*name).into(),
        (Some(number), None) => format!("reason {number}").into(),
    }
}

/// Function, file, line.
pub(super) fn place(frame: Option<&Frame>) -> Value {
    frame.map_or(
        Value::Null,
        |f| json!({"function": f.function, "file": text(&f.file), "line": number(f.line)}),
    )
}

/// A stack, innermost frame first.
pub(super) fn frames(stack: &[StackFrame], names: &mut Names) -> Value {
    let named = names.stack(stack);
    let frames = named.iter().map(|n| {
        json!({
            "function": n.frame.function,
            "file": text(&n.frame.file),
            "line": number(n.frame.line),
            "pc": format!("{:#x}", n.pc),
            "inlined": n.frame.inlined,
            "internal": n.internal,
        })
    });
    Value::Array(frames.collect())
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn number(line: u32) -> Option<u32> {
    (line != 0).then_some(line)
}
