//! The live view on a thread of its own, so that a slow terminal never holds up the line.
//!
//! Takes intervals over a bounded channel: when the terminal is behind, the newest one is what counts,
//! and those in between are passed over. Gives back only the wish to end, by a call of `on_quit`.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::Ui;
use gotrace_model::Interval;

/// How long the keyboard is listened to before new intervals are looked for.
const KEYS_FOR: Duration = Duration::from_millis(50);
/// Intervals on their way to the terminal.
const QUEUE: usize = 4;

/// A view that runs. Dropping it, or [`View::finish`], gives the terminal back.
#[derive(Debug)]
pub struct View {
    intervals: Option<SyncSender<Arc<Interval>>>,
    thread: Option<JoinHandle<()>>,
}

impl View {
    /// Takes the terminal. `about` is shown until the first interval; `system`: with the runtime's own goroutines, until
    /// the user wants it otherwise. `on_quit` is called, from another thread, when the user has enough or the terminal is
    /// gone.
    ///
    /// # Errors
    /// When stdout is no terminal that can be set up for it, or belongs to another job of the shell.
    pub fn start(about: String, system: bool, on_quit: impl Fn() + Send + 'static) -> io::Result<Self> {
        let ui = Ui::start(about, system)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let thread =
            thread::Builder::new().name("gotrace-view".into()).spawn(move || run(ui, &receiver, &on_quit))?;
        Ok(Self { intervals: Some(sender), thread: Some(thread) })
    }

    /// Shows an interval, or passes over it when the terminal is behind. Never waits.
    pub fn show(&self, interval: &Arc<Interval>) {
        if let Some(intervals) = &self.intervals {
            // Full: a newer one follows. Closed: the thread has said so by `on_quit`.
            let _ = intervals.try_send(Arc::clone(interval));
        }
    }

    /// Gives the terminal back.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The thread ends when nobody can send any more.
        self.intervals = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the terminal was given back before.
            let _ = thread.join();
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut ui: Ui, intervals: &Receiver<Arc<Interval>>, on_quit: &impl Fn()) {
    let mut told = false;
    loop {
        let mut newest: Option<Arc<Interval>> = None;
        let over = loop {
            match intervals.try_recv() {
                Ok(interval) => {
                    if let Some(passed_over) = newest.replace(interval) {
                        ui.pass_over(&passed_over);
                    }
                }
                Err(TryRecvError::Empty) => break false,
                Err(TryRecvError::Disconnected) => break true,
            }
        };
        if over {
            ui.finish();
            return;
        }
        let drawn = newest.map_or(Ok(()), |interval| ui.draw(&interval));
        match drawn.and_then(|()| ui.poll_quit(KEYS_FOR)) {
            Ok(false) => {}
            Ok(true) if told => {}
            Ok(true) => {
                told = true;
                on_quit();
            }
            Err(error) => {
                // Nobody can see it any more.
                ui.finish();
                tracing::debug!(%error, "the terminal is gone");
                on_quit();
                return;
            }
        }
    }
}
