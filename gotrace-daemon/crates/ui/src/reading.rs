//! The views of what reports do not have, read from the process when the user asks: who waits for which lock and channel,
//! and all goroutines by where they stand; and who holds what a goroutine waits for.
//!
//! A [`Reader`] reads, on a thread of its own; this keeps what was asked, what came of it and when, and makes rows of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gotrace_export::reading::{GoroutineGroup, Goroutines, Lock, LockGroup, Locks};
use gotrace_model::printable::printable;
use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Modifier, Style},
    text::{Line, Text},
    widgets::{Cell, Paragraph, Row as TableRow, Table},
};

use super::{
    format,
    state::{State, View},
};

/// Reads the process, which takes its time.
pub trait Reader: Send + Sync {
    /// All its goroutines.
    ///
    /// # Errors
    /// Why they cannot be read.
    fn goroutines(&self) -> Result<Goroutines, String>;
    /// Who waits for which lock and channel.
    ///
    /// # Errors
    /// Why that cannot be known.
    fn locks(&self) -> Result<Locks, String>;
    /// Who holds what a goroutine waits for, as lines.
    ///
    /// # Errors
    /// Why that cannot be known.
    fn why(&self, goid: u64) -> Result<Vec<String>, String>;
}

/// What is asked of a [`Reader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Goroutines,
    Locks,
    Why(u64),
}

/// What it says.
#[derive(Debug)]
pub(super) enum Answer {
    Goroutines(Result<Goroutines, String>),
    Locks(Result<Locks, String>),
    Why(u64, Result<Vec<String>, String>),
}

impl Question {
    pub(super) fn ask(self, reader: &dyn Reader) -> Answer {
        match self {
            Self::Goroutines => Answer::Goroutines(reader.goroutines()),
            Self::Locks => Answer::Locks(reader.locks()),
            Self::Why(goid) => Answer::Why(goid, reader.why(goid)),
        }
    }

    /// What is said where reading broke off.
    pub(super) fn failed(self) -> Answer {
        let why = "reading broke off: a defect of gotrace, which its log tells".to_owned();
        match self {
            Self::Goroutines => Answer::Goroutines(Err(why)),
            Self::Locks => Answer::Locks(Err(why)),
            Self::Why(goid) => Answer::Why(goid, Err(why)),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Goroutines => "reading all goroutines …".into(),
            Self::Locks => "reading who waits for whom …".into(),
            Self::Why(goid) => format!("reading the heap for who holds what goroutine {goid} waits for …"),
        }
    }
}

/// Something that was read, or why not.
#[derive(Debug)]
struct Read<T> {
    at: Instant,
    what: Result<T, String>,
    /// Made once: there may be thousands, with their stacks.
    rows: Vec<Arc<ReadRow>>,
}

impl<T> Read<T> {
    fn now(what: Result<T, String>, rows: fn(&T) -> Vec<ReadRow>) -> Self {
        let rows = what.as_ref().map(rows).unwrap_or_default().into_iter().map(Arc::new).collect();
        Self { at: Instant::now(), what, rows }
    }
}

/// What was asked, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// Why nothing can be read; empty where it can be.
    pub refused: String,
    /// Of the view that is shown, if it is one of these.
    pub rows: Vec<Arc<ReadRow>>,
    /// Whether rows are sorted by their second number.
    second: bool,
    wanted: Option<Question>,
    asked: Option<Question>,
    goroutines: Option<Read<Goroutines>>,
    locks: Option<Read<Locks>>,
    why: Option<(u64, Result<Vec<String>, String>)>,
}

/// A group of goroutines, or a lock or channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReadRow {
    pub key: String,
    /// What stands in the first column, before the numbers.
    pub name: String,
    pub numbers: [String; 2],
    /// What stands behind them.
    pub texts: [String; 2],
    /// One of the goroutines that wait.
    pub goid: Option<u64>,
    /// More about it.
    pub details: Vec<String>,
    sort: [u64; 2],
    system: bool,
}

/// How a view of rows looks.
struct Look {
    name: &'static str,
    numbers: [&'static str; 2],
    texts: [&'static str; 2],
    /// Shares of the width that is left, in percent: of the name, and of the first text.
    shares: [u16; 2],
}

const GOROUTINES: Look = Look {
    name: "goroutines at (own code)",
    numbers: ["count", "waits≥"],
    texts: ["state", "created at"],
    shares: [45, 20],
};
const LOCKS: Look = Look {
    name: "lock or channel",
    numbers: ["waiting", "alike"],
    texts: ["who waits", "who holds or uses it"],
    shares: [26, 37],
};
/// A view that is come back to within this time is not read anew by itself.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// Width of a number.
const NUMBER: u16 = 7;
/// From this width on there is room for the second text.
const SECOND_FROM: u16 = 72;

impl Readings {
    /// Asks for what a view shows, unless it was read just now and is not to be read anew.
    pub(super) fn want(&mut self, view: View, anew: bool) {
        let (question, at) = match view {
            View::Goroutines => (Question::Goroutines, self.goroutines.as_ref().map(|read| read.at)),
            View::Locks => (Question::Locks, self.locks.as_ref().map(|read| read.at)),
            View::Sites | View::Places | View::Requests => return,
        };
        let is_fresh = at.is_some_and(|at| at.elapsed() < FRESH_FOR);
        if (anew || !is_fresh) && self.asked != Some(question) && self.refused.is_empty() {
            self.wanted = Some(question);
        }
    }

    /// Asks who holds what this goroutine waits for.
    pub(super) fn want_why(&mut self, goid: u64) {
        self.why = None;
        self.wanted = Some(Question::Why(goid));
    }

    /// What is to be asked now: one question at a time.
    pub(super) fn take_wanted(&mut self) -> Option<Question> {
        if self.asked.is_some() {
            return None;
        }
        self.asked = self.wanted.take();
        self.asked
    }

    /// Takes an answer.
    pub(super) fn answered(&mut self, answer: Answer) {
        self.asked = None;
        match answer {
            Answer::Goroutines(read) => self.goroutines = Some(Read::now(read, groups)),
            Answer::Locks(read) => self.locks = Some(Read::now(read, locks)),
            Answer::Why(goid, found) => self.why = Some((goid, found)),
        }
    }

    /// What the last line says while something is read.
    pub(super) fn busy(&self) -> Option<String> {
        self.asked.or(self.wanted).map(Question::name)
    }

    /// Who holds what a goroutine waits for, while that is shown.
    pub(super) fn told_why(&self) -> Option<Vec<String>> {
        let (goid, found) = self.why.as_ref()?;
        let mut lines = vec![format!("who holds what goroutine {goid} waits for")];
        match found {
            Ok(found) => lines.extend(found.iter().map(|line| printable(line).into_owned())),
            Err(why) => lines.push(printable(why).into_owned()),
        }
        Some(lines)
    }

    /// What was read last, to be written down.
    pub(super) fn known(&self) -> (Option<&Goroutines>, Option<&Locks>) {
        let goroutines = self.goroutines.as_ref().and_then(|read| read.what.as_ref().ok());
        (goroutines, self.locks.as_ref().and_then(|read| read.what.as_ref().ok()))
    }

    /// Shows that no more; whether it was shown.
    pub(super) fn leave_why(&mut self) -> bool {
        self.why.take().is_some()
    }

    pub(super) fn sort_by_next(&mut self) {
        self.second = !self.second;
    }

    pub(super) fn sorted_by(&self, view: View) -> &'static str {
        let look = if view == View::Locks { &LOCKS } else { &GOROUTINES };
        look.numbers[usize::from(self.second)]
    }

    /// Makes the rows of a view that have the text, which is in lower case. `system`: with the runtime's own.
    pub(super) fn refresh(&mut self, view: View, wanted: &str, system: bool) {
        let all = match view {
            View::Goroutines => self.goroutines.as_ref().map(|read| &read.rows),
            _ => self.locks.as_ref().map(|read| &read.rows),
        };
        let mut rows: Vec<_> = all.into_iter().flatten().map(Arc::clone).collect();
        rows.retain(|row| (system || !row.system) && (wanted.is_empty() || row.has(wanted)));
        let by = usize::from(self.second);
        // What has the same value stays in its order.
        rows.sort_by_key(|row| std::cmp::Reverse(row.sort[by]));
        self.rows = rows;
    }

    /// What stands below the head where there is no row, or beside it.
    fn notes(&self, view: View, filtered: bool) -> Vec<String> {
        if !self.refused.is_empty() {
            return vec![self.refused.clone()];
        }
        let (failed, mut notes) = match view {
            View::Goroutines => match self.goroutines.as_ref().map(|read| &read.what) {
                Some(Err(why)) => (Some(why), Vec::new()),
                Some(Ok(read)) => {
                    let more = (read.groups_left_out > 0)
                        .then(|| format!("{} smaller groups are left out", read.groups_left_out));
                    (None, more.into_iter().chain(read.incomplete.clone()).collect())
                }
                None => return Vec::new(),
            },
            _ => match self.locks.as_ref().map(|read| &read.what) {
                Some(Err(why)) => (Some(why), Vec::new()),
                Some(Ok(read)) => (None, read.notes.clone()),
                None => return Vec::new(),
            },
        };
        match failed {
            Some(why) => notes.push(format!("not known: {why}")),
            None if self.rows.is_empty() && filtered => notes.push("none with this filter".into()),
            None if self.rows.is_empty() && view == View::Locks => {
                notes.push("no goroutine waits for a lock or a channel".into());
            }
            None => {}
        }
        notes.iter().map(|note| printable(note).into_owned()).collect()
    }

    /// How long ago what a view shows was read.
    fn age(&self, view: View) -> Option<String> {
        let at = match view {
            View::Goroutines => self.goroutines.as_ref().map(|read| read.at),
            _ => self.locks.as_ref().map(|read| read.at),
        };
        let seconds = at?.elapsed().as_secs();
        Some(format!("read {} ago, R reads anew", format::duration(seconds * 1_000_000_000)))
    }
}

impl ReadRow {
    fn has(&self, wanted: &str) -> bool {
        let has = |text: &String| text.to_lowercase().contains(wanted);
        has(&self.name) || self.texts.iter().any(has) || self.details.iter().any(has)
    }
}

fn groups(read: &Goroutines) -> Vec<ReadRow> {
    let row = |group: &GoroutineGroup| {
        let clean = |text: &str| printable(text).into_owned();
        let (first, last) = group.goids;
        let ids = if group.count == 1 {
            format!("goroutine   {first}")
        } else {
            format!("goroutines  {first} to {last}")
        };
        let mut details = vec![
            clean(&group.at),
            format!("state       {}", clean(&group.state)),
            format!("created by  {}", if group.created_by.is_empty() { "?" } else { &group.created_by }),
            ids,
        ];
        details.extend(stack(&group.stack));
        ReadRow {
            key: format!("{} {first}", group.at),
            name: clean(&group.at),
            numbers: [
                format::count(group.count),
                group.waits_ns.map_or_else(|| "-".into(), format::duration),
            ],
            texts: [clean(&group.state), clean(&group.created_by)],
            goid: Some(first),
            details: details.iter().map(|line| clean(line)).collect(),
            sort: [group.count, group.waits_ns.unwrap_or(0)],
            system: group.system,
        }
    };
    read.groups.iter().map(row).collect()
}

fn locks(read: &Locks) -> Vec<ReadRow> {
    let row = |lock: &Lock| {
        let clean = |text: &str| printable(text).into_owned();
        let mut details = vec![clean(&lock.name)];
        for LockGroup { what, count, at, goids, stack: frames } in &lock.groups {
            let ids: Vec<String> = goids.iter().map(u64::to_string).collect();
            let more = if goids.len() < *count { " …" } else { "" };
            details.push(clean(&format!("{what:<11} {count} × {at}: goroutines {}{more}", ids.join(" "))));
            details.extend(stack(frames).iter().map(|line| clean(line)));
        }
        ReadRow {
            key: lock.name.clone(),
            name: clean(&lock.name),
            numbers: [format::count(lock.waiting as u64), format::count(lock.count as u64)],
            texts: [clean(&lock.waiters), clean(&lock.held_by)],
            goid: lock.goid,
            details,
            sort: [lock.waiting as u64, lock.count as u64],
            system: false,
        }
    };
    read.objects.iter().map(row).collect()
}

/// A stack, one frame a line.
fn stack(frames: &[String]) -> Vec<String> {
    let line = |(n, frame): (usize, &String)| format!("{:<11} {frame}", if n == 0 { "stack" } else { "" });
    frames.iter().enumerate().map(line).collect()
}

impl State {
    /// Makes the rows of a view that is read, and more about the one that is selected.
    pub(super) fn refresh_readings(&mut self) {
        let selected = self.readings.rows.get(self.selected).map(|row| row.key.clone());
        self.clear_rows();
        self.readings.refresh(self.view, &self.filter.to_lowercase(), self.system);
        if let Some(at) = selected.and_then(|key| self.readings.rows.iter().position(|row| row.key == key)) {
            self.selected = at;
        }
        self.clamp();
        let chosen = self.readings.rows.get(self.selected).filter(|_| self.with_detail);
        self.detail = chosen.map(|row| row.details.clone()).unwrap_or_default();
    }

    /// Asks who holds what a goroutine of the selected row waits for.
    pub(super) fn ask_why(&mut self) {
        if !self.readings.refused.is_empty() {
            self.said.clone_from(&self.readings.refused);
            return;
        }
        let goid = match self.view {
            View::Locks | View::Goroutines => self.readings.rows.get(self.selected).and_then(|row| row.goid),
            View::Sites => self.goid_of_site(),
            View::Places | View::Requests => None,
        };
        match goid {
            Some(goid) => self.readings.want_why(goid),
            None => self.said = "W needs a goroutine that waits: views 4 and 5 have them".into(),
        }
    }

    /// A goroutine of a finding of the creation site that is selected.
    fn goid_of_site(&self) -> Option<u64> {
        let (entry, created_by) = &self.rows.get(self.selected)?.key;
        let last: &Arc<gotrace_model::Interval> = self.last.as_ref()?;
        let leaks = last.leaks.iter().map(|l| (&l.entry, &l.created_by, &l.goids));
        let all = leaks.chain(last.suspects.iter().map(|s| (&s.entry, &s.created_by, &s.goids)));
        let mut own = all.filter(|(e, c, _)| (*e, *c) == (entry, created_by));
        own.find_map(|(_, _, goids)| goids.first().copied())
    }

    /// Reads anew what the view shows.
    pub(super) fn read_again(&mut self) {
        match self.view {
            View::Locks | View::Goroutines => self.readings.want(self.view, true),
            _ => self.said = "R reads anew in the views 4 and 5; the others are reported".into(),
        }
    }
}

pub(super) fn table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let look = if state.view == View::Locks { &LOCKS } else { &GOROUTINES };
    let notes = state.readings.notes(state.view, !state.filter.is_empty());
    let age = state.readings.age(state.view);
    let below: Vec<String> = age.into_iter().chain(notes).collect();
    let below: Vec<String> =
        below.iter().flat_map(|note| format::wrap(note, usize::from(area.width), 0)).collect();
    let room = u16::try_from(below.len()).unwrap_or(u16::MAX).min(area.height / 2);
    let area_of_rows = Rect { height: area.height.saturating_sub(room), ..area };
    let with_second = area.width >= SECOND_FROM;
    let free = area.width.saturating_sub(2 * (NUMBER + 1) + if with_second { 2 } else { 1 });
    let name = free * look.shares[0] / 100;
    let first = if with_second { free * look.shares[1] / 100 } else { free.saturating_sub(name) };
    let second = free.saturating_sub(name + first);
    let mut constraints = vec![
        Constraint::Length(name),
        Constraint::Length(NUMBER),
        Constraint::Length(NUMBER),
        Constraint::Length(first),
    ];
    let mut titles: Vec<Cell<'_>> = vec![format::shorten(look.name, usize::from(name)).into()];
    titles.extend(look.numbers.map(|title| Cell::from(Text::from(title).right_aligned())));
    titles.push(look.texts[0].into());
    if with_second {
        constraints.push(Constraint::Length(second));
        titles.push(look.texts[1].into());
    }
    let visible = usize::from(area_of_rows.height.saturating_sub(1));
    let rows = state.readings.rows.iter().enumerate().skip(state.top).take(visible).map(|(n, row)| {
        let mut cells = vec![Cell::from(format::shorten(&row.name, usize::from(name)))];
        cells
            .extend(row.numbers.iter().map(|number| Cell::from(Text::from(number.as_str()).right_aligned())));
        cells.push(format::shorten(&row.texts[0], usize::from(first)).into());
        if with_second {
            cells.push(format::shorten(&row.texts[1], usize::from(second)).into());
        }
        let selected = if n == state.selected { Modifier::REVERSED } else { Modifier::empty() };
        TableRow::new(cells).style(Style::new().add_modifier(selected))
    });
    let head = TableRow::new(titles).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    frame.render_widget(Table::new(rows, constraints).column_spacing(1).header(head), area_of_rows);
    let lines = below.into_iter().take(usize::from(room)).map(Line::raw).collect::<Vec<_>>();
    frame
        .render_widget(Paragraph::new(lines), Rect { y: area.y + area_of_rows.height, height: room, ..area });
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;
