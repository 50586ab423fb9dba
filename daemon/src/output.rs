//! Standard output: lines, bytes and JSON, written behind the runtime's back so that a slow reader
//! holds up nobody else. Names go out as they are, or escaped to a terminal; colours go to a terminal
//! alone. Tables are in a file of their own.

pub(crate) mod table;

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use indicatif::HumanCount;
use serde::Serialize;
use tokio::io::{AsyncWriteExt as _, BufWriter, Stdout};

use crate::exit::Failure;

/// The bytes that are gathered before they are written.
const BUFFER: usize = 64 * 1024;

/// Standard output. What was written is certain to be out only after [`Output::flush`].
#[derive(Debug)]
pub(crate) struct Output {
    stdout: BufWriter<Stdout>,
    is_terminal: bool,
    is_coloured: bool,
}

impl Output {
    /// The process's standard output.
    pub(crate) fn new() -> Self {
        let stdout = BufWriter::with_capacity(BUFFER, tokio::io::stdout());
        let is_terminal = io::stdout().is_terminal();
        // What NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM say, as for the help.
        let is_coloured = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self { stdout, is_terminal, is_coloured }
    }

    /// Whether people read it, and not a program.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes bytes as they are.
    pub(crate) async fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).await.map_err(Failure::output)
    }

    /// Writes a line.
    pub(crate) async fn line(&mut self, line: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.bytes(line.as_ref()).await?;
        self.bytes(b"\n").await
    }

    /// Writes bytes in a style, where colours are shown.
    pub(crate) async fn styled(&mut self, style: Style, bytes: &[u8]) -> Result<(), Failure> {
        if !self.is_coloured || style.is_plain() {
            return self.bytes(bytes).await;
        }
        self.bytes(style.render().to_string().as_bytes()).await?;
        self.bytes(bytes).await?;
        self.bytes(style.render_reset().to_string().as_bytes()).await
    }

    /// Writes a line at once, that something is there now. It is there also if nobody reads the line.
    pub(crate) async fn announce(&mut self, line: String) {
        let announced = match self.line(&line).await {
            Ok(()) => self.flush().await,
            failed => failed,
        };
        if let Err(failure) = announced {
            tracing::warn!(%failure, "{line}");
        }
    }

    /// Writes a value as one line of JSON.
    pub(crate) async fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text =
            serde_json::to_vec(value).map_err(|error| Failure::output(io::Error::other(error)))?;
        self.line(text).await
    }

    /// A name or target as it is to be written.
    pub(crate) fn name<'a>(&self, name: &'a [u8]) -> Cow<'a, [u8]> {
        if self.is_terminal { escaped(name) } else { Cow::Borrowed(name) }
    }

    /// Hands out what was written.
    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.flush().await.map_err(Failure::output)
    }
}

/// The name with what could confuse a terminal written as an escape.
fn escaped(name: &[u8]) -> Cow<'_, [u8]> {
    let is_plain = |text: &str| !text.chars().any(|c| c.is_control() || c == '\\');
    if str::from_utf8(name).is_ok_and(is_plain) {
        return Cow::Borrowed(name);
    }
    let mut safe = String::with_capacity(name.len() * 2);
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                safe.extend(c.escape_default());
            } else {
                safe.push(c);
            }
        }
        for byte in chunk.invalid() {
            write!(safe, "\\x{byte:02x}").expect("writing to a string does not fail");
        }
    }
    Cow::Owned(safe.into_bytes())
}

/// A number, and what is counted.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", HumanCount(number), if number == 1 { one } else { many })
}

/// Bytes that are usually text, as JSON has them: the text, and the bytes in hexadecimal where
/// the text can't stand for them.
pub(crate) fn json_text(bytes: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(bytes);
    let hex = matches!(text, Cow::Owned(_)).then(|| hex(bytes));
    (text.into_owned(), hex)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string does not fail");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_no_control_characters() {
        for (name, shown) in [
            (&b"plain name"[..], "plain name"),
            ("größe".as_bytes(), "größe"),
            (b"a\nb\x1b[31m", "a\\nb\\u{1b}[31m"),
            (b"back\\slash", "back\\\\slash"),
            (b"\xff\xfea", "\\xff\\xfea"),
        ] {
            assert_eq!(escaped(name), shown.as_bytes());
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_whole_in_json() {
        assert_eq!(json_text(b"name"), ("name".to_owned(), None));
        assert_eq!(json_text(b"a\xff"), ("a\u{fffd}".to_owned(), Some("61ff".to_owned())));
    }
}
