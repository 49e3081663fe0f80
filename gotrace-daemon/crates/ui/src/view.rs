//! The live view on a thread of its own, so that a slow terminal never holds up the line.
//!
//! Takes intervals over a bounded channel: when the terminal is behind, the newest one is what counts,
//! and those in between are passed over. Gives back only the wish to end, by a call of `on_quit`.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    Ui,
    reading::{Answer, Question, Reader},
};
use gotrace_model::Interval;
use gotrace_process::contained;

/// How long the keyboard is listened to before new intervals are looked for.
const KEYS_FOR: Duration = Duration::from_millis(50);
/// Intervals on their way to the terminal.
const QUEUE: usize = 4;

/// A view that runs. Dropping it, or [`View::finish`], gives the terminal back.
#[derive(Debug)]
pub struct View {
    intervals: Option<SyncSender<Arc<Interval>>>,
    thread: Option<JoinHandle<()>>,
    note: Arc<Mutex<String>>,
}

/// What is shown, and how.
pub struct Shown {
    /// Until the first interval.
    pub about: String,
    /// What the last line begins with.
    pub note: String,
    /// With the runtime's own goroutines, until the user wants it otherwise.
    pub system: bool,
    /// What reads the process when the user asks; otherwise why nobody can.
    pub reader: Result<Arc<dyn Reader>, String>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").field("about", &self.about).finish_non_exhaustive()
    }
}

/// A thread that reads the process for the view. It ends when the view has, and with what it was reading.
struct Readers {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
}

impl Readers {
    fn start(reader: Arc<dyn Reader>) -> io::Result<Self> {
        let (questions, asked) = channel::<Question>();
        let (told, answers) = channel();
        thread::Builder::new().name("gotrace-reader".into()).spawn(move || {
            while let Ok(question) = asked.recv() {
                // A panic was printed, and is an answer too: the question must not stay open.
                let answer = contained(|| question.ask(&*reader));
                let answer = answer.unwrap_or_else(|_| question.failed());
                if told.send(answer).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }

    /// Asks what the user wants to know, and shows what has come.
    fn tend(&self, ui: &mut Ui) -> io::Result<()> {
        while let Ok(answer) = self.answers.try_recv() {
            ui.answer(answer)?;
        }
        if let Some(question) = ui.take_question() {
            // Its thread lives as long as this.
            let _ = self.questions.send(question);
        }
        Ok(())
    }
}

impl View {
    /// Takes the terminal. `on_quit` is called, from another thread, when the user has enough or the terminal is gone.
    ///
    /// # Errors
    /// When stdout is no terminal that can be set up for it, or belongs to another job of the shell.
    pub fn start(shown: Shown, on_quit: impl Fn() + Send + 'static) -> io::Result<Self> {
        let Shown { about, note, system, reader } = shown;
        let mut ui = Ui::start(about, system)?;
        let reader = match reader {
            Ok(reader) => Some(Readers::start(reader)?),
            Err(why) => {
                ui.refuse_readings(&why);
                None
            }
        };
        let (sender, receiver) = sync_channel(QUEUE);
        let note = Arc::new(Mutex::new(note));
        let shown = Arc::clone(&note);
        let thread = thread::Builder::new()
            .name("gotrace-view".into())
            .spawn(move || run(ui, reader.as_ref(), &receiver, &shown, &on_quit))?;
        Ok(Self { intervals: Some(sender), thread: Some(thread), note })
    }

    /// What stands before the keys in the last line, from the next interval on.
    pub fn note(&self, note: String) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
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

fn run(
    mut ui: Ui,
    reader: Option<&Readers>,
    intervals: &Receiver<Arc<Interval>>,
    note: &Mutex<String>,
    on_quit: &impl Fn(),
) {
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
        ui.note(note.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let read = reader.map_or(Ok(()), |reader| reader.tend(&mut ui));
        let drawn = read.and_then(|()| newest.map_or(Ok(()), |interval| ui.draw(&interval)));
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
