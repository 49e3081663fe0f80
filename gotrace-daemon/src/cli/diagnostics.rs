//! What gotrace says about its own work, on stderr; held back while the live view owns the terminal.
//!
//! Lines that would be written across the view are kept, up to a bound, and follow it; how many did not
//! fit is told. Where stderr is no terminal nothing is held.
//!
//! What a field or a message holds is escaped here ([`gotrace_model::printable`]), whoever logs it: a path or a name
//! that a program chose neither begins a line nor steers a terminal.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
};

use tracing::{Subscriber, field::Field, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt as _,
    fmt::{MakeWriter, format::Writer, format::debug_fn},
};

use gotrace_model::printable::{printable, printable_lines};

use super::output::{say, say_bytes};

/// Bytes that are held back.
const HELD_BYTES: usize = 64 << 10;

static HELD: Mutex<Option<Held>> = Mutex::new(None);

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    writes_dropped: u64,
}

/// Stderr, but for what is held back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Diagnostics;

impl Write for Diagnostics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A poisoned lock still guards whole values: nothing in between can panic half way.
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_mut() else {
            say_bytes(bytes);
            return Ok(bytes.len());
        };
        if held.bytes.len() + bytes.len() <= HELD_BYTES {
            held.bytes.extend_from_slice(bytes);
        } else {
            held.writes_dropped += 1;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The log: what the filter lets through, a line each, in colour or not.
pub fn log<W>(filter: EnvFilter, color: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Where the messages are for users, no module is named.
    let targets = filter.max_level_hint().is_none_or(|level| level > LevelFilter::INFO);
    tracing_subscriber::fmt()
        .with_ansi(color)
        .with_target(targets)
        .with_env_filter(filter)
        .with_writer(writer)
        .compact()
        .fmt_fields(debug_fn(field).delimited(" "))
        .finish()
}

/// A message as it is, in lines of which all but the first are indented; another field with its name, in one line.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => writer.write_str(&printable_lines(&text)),
        // What the crate `log` says of a message's origin, which stands before it.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{}", printable(&text))
        }
        name => write!(writer, "{name}={}", printable(&text)),
    }
}

/// Holds back what would be written on a terminal, until it is dropped.
#[derive(Debug)]
pub(super) struct HoldBack(());

impl HoldBack {
    pub(super) fn begin() -> Self {
        if io::stderr().is_terminal() {
            *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Held::default());
        }
        Self(())
    }
}

impl Drop for HoldBack {
    fn drop(&mut self) {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Held { bytes, writes_dropped }) = held else { return };
        say_bytes(&bytes);
        if writes_dropped > 0 {
            say(&format!(
                "gotrace: {writes_dropped} more messages were dropped while the live table was shown\n"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(color: bool, log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = super::log(EnvFilter::new("trace"), color, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = kept.0.lock().expect("whole").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn what_is_logged_cannot_forge_a_line_or_steer_a_terminal() {
        const EVIL: &str =
            "/tmp/a\n2026-01-01T00:00:00Z  WARN gotrace: forged\r\x1b[2J\u{9b}31m\u{202e}\u{2028}b";
        let error = io::Error::other(EVIL);
        let text = logged(false, || {
            tracing::info!(pid = 7, executable = %Path::new(EVIL).display(), "traced");
            tracing::warn!(?error, %error, debug = ?EVIL, text = EVIL, "failed: {error}");
            tracing::warn!(error = &error as &dyn std::error::Error, "{}", EVIL);
            tracing::info_span!("span", name = EVIL).in_scope(|| tracing::info!("within"));
        });
        let flat = text.replace('\n', "");
        assert_eq!(printable(&flat), flat);
        let own = |line: &&str| !line.starts_with("    ");
        assert_eq!(text.lines().filter(own).count(), 4, "{text}");
        assert!(text.lines().filter(own).all(|line| line.starts_with("20") && line.contains("gotrace::cli")));
        assert!(
            text.contains("traced pid=7 executable=/tmp/a\\n2026-01-01T00:00:00Z  WARN gotrace: forged"),
            "{text}"
        );
        assert!(text.contains("\n    2026-01-01T00:00:00Z  WARN gotrace: forged\\r\\u{1b}[2J"), "{text}");
    }

    #[test]
    fn colours_are_those_of_gotrace_alone() {
        let text = logged(true, || tracing::info!(executable = %"a\x1b[31mb", "traced\x1b[31m"));
        assert!(text.contains("\x1b[3mexecutable\x1b[0m") && !text.contains("\x1b[31m"), "{text:?}");
    }
}
