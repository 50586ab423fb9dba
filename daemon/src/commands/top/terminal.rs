//! The terminal that `cairn top` takes for itself: its keys, the signals that end it, and that it is given
//! back as it was, whatever happens. What is drawn is in `screen`.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use cairn_castore::errors::message;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    screen::{self, Order, View},
    snapshot::Snapshot,
    source::SourceError,
    watch::Watch,
};
use crate::exit::{Code, Failure};

/// How often the screen is drawn anew if there is nothing new, since times go on.
const REDRAWN: Duration = Duration::from_secs(1);

/// How many events of the terminal wait for us; the others wait in the terminal.
const EVENTS_MAX: usize = 16;

/// What the process has told, or why it has not. No snapshot if there is nothing to compare with.
type News = Result<Option<Snapshot>, SourceError>;

/// The terminal, as long as it is ours.
struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal. A panic gives it back before it is told.
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| {
            // It may have been taken in part.
            let _ = ratatui::try_restore();
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If that fails, the terminal is gone.
        let _ = ratatui::try_restore();
    }
}

/// Shows a process until the user, or a signal, ends it.
pub(super) async fn show(watch: Watch, url: String, every: Duration) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new("the terminal can't be used", error);
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangups = signal(SignalKind::hangup()).map_err(failed)?;
    let mut screen = Screen::take().map_err(failed)?;
    let (sender, mut news) = mpsc::channel(1);
    let _asking = AbortOnDropHandle::new(tokio::spawn(ask(watch, every, sender)));
    let mut events = events().map_err(failed)?;
    let mut clock = interval(REDRAWN);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut view = View { url, shown: None, lost: None, is_paused: false, order: Order::default() };
    loop {
        screen.0.draw(|frame| screen::draw(frame, &view)).map_err(failed)?;
        tokio::select! {
            biased;
            _ = terminations.recv() => return Err(Failure::told(Code::Terminated)),
            _ = hangups.recv() => return Err(Failure::told(Code::Terminated)),
            _ = interrupts.recv() => return Ok(()),
            // Without a keyboard there are signals.
            Some(event) = events.recv() => {
                if let Event::Key(key) = event && !obey(key, &mut view) {
                    return Ok(());
                }
            }
            Some(told) = news.recv() => hear(told, &mut view),
            _ = clock.tick() => {}
        }
    }
}

/// Asks the process again and again; as long as nobody listens, not at all.
async fn ask(mut watch: Watch, every: Duration, sender: mpsc::Sender<News>) {
    let mut times = interval(every);
    times.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // It was asked just now.
    times.tick().await;
    loop {
        times.tick().await;
        if sender.send(watch.ask().await).await.is_err() {
            return;
        }
    }
}

/// What comes from the terminal, by a thread of its own: there is no other way to wait for a key. It ends
/// with the process.
fn events() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("cairn-keys".to_owned()).spawn(read)?;
    Ok(receiver)
}

/// Does what a key says; whether to go on.
fn obey(key: KeyEvent, view: &mut View) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('c'), true) | (KeyCode::Char('q'), false) => return false,
        (KeyCode::Char('p'), false) => view.is_paused = !view.is_paused,
        (KeyCode::Char('s'), false) => view.order = view.order.next(),
        _ => {}
    }
    true
}

/// Takes in what the process has told.
fn hear(told: News, view: &mut View) {
    match told {
        Ok(snapshot) => {
            view.lost = None;
            if let Some(snapshot) = snapshot.filter(|_| !view.is_paused) {
                view.shown = Some(snapshot);
            }
        }
        Err(error) => {
            let since = view.lost.take().map_or_else(Instant::now, |(since, _)| since);
            view.lost = Some((since, message(&error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::snapshot::tests::busy;

    fn view() -> View {
        View { url: String::new(), shown: None, lost: None, is_paused: false, order: Order::Rate }
    }

    #[test]
    fn keys_are_obeyed() {
        let mut view = view();
        let mut press = |code: char, modifiers| {
            let goes_on = obey(KeyEvent::new(KeyCode::Char(code), modifiers), &mut view);
            (goes_on, view.is_paused, view.order)
        };
        assert_eq!(press('p', KeyModifiers::NONE), (true, true, Order::Rate));
        assert_eq!(press('p', KeyModifiers::NONE), (true, false, Order::Rate));
        assert_eq!(press('s', KeyModifiers::NONE), (true, false, Order::Time));
        assert!(press('c', KeyModifiers::NONE).0);
        assert!(!press('c', KeyModifiers::CONTROL).0);
        assert!(!press('q', KeyModifiers::NONE).0);
    }

    #[test]
    fn the_last_values_stay_while_nobody_answers_and_while_it_is_paused() {
        let mut view = view();
        hear(Ok(Some(busy())), &mut view);
        hear(Err(SourceError::TooLate), &mut view);
        let since = view.lost.clone().unwrap().0;
        hear(Err(SourceError::TooLate), &mut view);
        assert_eq!(view.lost.clone().unwrap().0, since);
        assert!(view.shown.is_some());
        view.is_paused = true;
        let other = Snapshot { interval_seconds: 7.0, ..busy() };
        hear(Ok(Some(other)), &mut view);
        assert!(view.lost.is_none());
        assert_eq!(view.shown.unwrap().interval_seconds, 2.0);
    }
}
