//! A terminal without a window: a process that runs in one, the keys that are pressed, and what its screen
//! shows. What that should be is the affair of the tests.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus},
    sync::Arc,
    thread,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use vt100::{Parser, Screen};

use crate::process::eventually;

/// A process in a terminal. Killed when dropped.
pub struct Terminal {
    child: Child,
    master: File,
    /// Our own end of it, so that its modes can be read when the process is gone.
    slave: OwnedFd,
    parser: Arc<std::sync::Mutex<Parser>>,
}

impl Terminal {
    /// Starts a command in a terminal of so many columns and rows.
    #[track_caller]
    pub fn start(command: &mut Command, columns: u16, rows: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let end = || slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let parser = Arc::new(std::sync::Mutex::new(Parser::new(rows, columns, 0)));
        let (mut printed, seen) = (master.try_clone().unwrap(), parser.clone());
        // Ends when both ends of the terminal are closed.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = printed.read(&mut buffer) {
                seen.lock().unwrap().process(&buffer[..length]);
            }
        });
        Self { child, master, slave, parser }
    }

    /// Presses keys.
    #[track_caller]
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Makes the terminal another size, and tells the process.
    #[track_caller]
    pub fn resize(&self, columns: u16, rows: u16) {
        self.parser.lock().unwrap().screen_mut().set_size(rows, columns);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
        self.signal(Signal::WINCH);
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What the screen shows now.
    pub fn screen(&self) -> Screen {
        self.parser.lock().unwrap().screen().clone()
    }

    /// Waits until the screen shows all of these texts; the screen that does.
    #[track_caller]
    pub fn shows(&self, texts: &[&str]) -> Screen {
        let mut screen = self.screen();
        let what = format!("a screen with {texts:?}");
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&what, || {
                screen = self.screen();
                let contents = screen.contents();
                texts.iter().all(|text| contents.contains(text))
            });
        }));
        assert!(shown.is_ok(), "{texts:?} is not on the screen:\n{}", self.screen().contents());
        screen
    }

    /// Whether the terminal is as a shell wants it: lines, echo, signals, and the screen that was there
    /// before. What a process has printed last takes a moment to be seen.
    pub fn is_restored(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        let screen = self.screen();
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
            && !screen.alternate_screen()
            && !screen.hide_cursor()
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_shows_what_was_printed_and_typed() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "printf '\\033[31mred\\033[0m'; stty size; read x; echo \"<$x>\"; exit 3",
        ]);
        let mut terminal = Terminal::start(&mut command, 40, 10);
        let screen = terminal.shows(&["red", "10 40"]);
        assert_eq!(screen.cell(0, 0).unwrap().fgcolor(), vt100::Color::Idx(1));
        terminal.press("abc\r");
        terminal.shows(&["<abc>"]);
        assert_eq!(terminal.finish().code(), Some(3));
        assert!(terminal.is_restored());
    }

    #[test]
    fn a_terminal_that_is_not_given_back_is_noticed() {
        let mut command = Command::new("sh");
        command.args(["-c", "stty -icanon; printf '\\033[?1049hover'"]);
        let mut terminal = Terminal::start(&mut command, 40, 10);
        terminal.finish();
        terminal.shows(&["over"]);
        assert!(!terminal.is_restored());
    }
}
