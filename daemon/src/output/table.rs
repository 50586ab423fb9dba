//! Tables, written row by row: in columns under a heading on a terminal, with sizes for people;
//! otherwise as plain numbers and texts with tabs between them.

use std::borrow::Cow;

use anstyle::Style;
use indicatif::{BinaryBytes, HumanCount};

use super::Output;
use crate::exit::Failure;

/// What the heading looks like.
const HEADING: Style = Style::new().bold();

/// What stands where nothing is known.
const UNKNOWN: &str = "-";

/// A column. Rows are not waited for, so it has a width from the start; what is wider, moves the rest of
/// its row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    width: usize,
    is_right: bool,
}

impl Column {
    /// Text, at the left.
    pub(crate) const fn text(title: &'static str, width: usize) -> Self {
        Self { title, width, is_right: false }
    }

    /// Numbers, at the right.
    pub(crate) const fn number(title: &'static str, width: usize) -> Self {
        Self { title, width, is_right: true }
    }
}

/// What is in a column of a row.
#[derive(Debug, Clone)]
pub(crate) enum Cell<'a> {
    /// A number of bytes.
    Size(u64),
    /// A number of anything else.
    Count(u64),
    /// A name from a store, which a terminal is shown escaped.
    Name(&'a [u8], Style),
    /// A text of our own.
    Text(Cow<'a, str>),
    /// Nothing is known.
    Unknown,
}

impl Cell<'_> {
    fn shown(&self, output: &Output) -> Vec<u8> {
        match self {
            Self::Size(size) if output.is_terminal() => BinaryBytes(*size).to_string().into_bytes(),
            Self::Count(count) if output.is_terminal() => {
                HumanCount(*count).to_string().into_bytes()
            }
            Self::Size(number) | Self::Count(number) => number.to_string().into_bytes(),
            Self::Name(name, _) => output.name(name).into_owned(),
            Self::Text(text) => text.as_bytes().to_vec(),
            Self::Unknown => UNKNOWN.as_bytes().to_vec(),
        }
    }

    fn style(&self) -> Style {
        match self {
            Self::Name(_, style) => *style,
            _ => Style::new(),
        }
    }
}

/// A table that is being written.
#[derive(Debug)]
pub(crate) struct Table {
    columns: &'static [Column],
    has_heading: bool,
}

impl Table {
    /// A table of these columns.
    pub(crate) const fn new(columns: &'static [Column]) -> Self {
        Self { columns, has_heading: false }
    }

    /// Writes a row, behind the heading if it is the first.
    pub(crate) async fn row(
        &mut self,
        output: &mut Output,
        cells: &[Cell<'_>],
    ) -> Result<(), Failure> {
        if !self.has_heading {
            self.has_heading = true;
            if output.is_terminal() {
                let titles = self.columns.iter().map(|column| column.title.as_bytes().to_vec());
                self.line(output, titles.map(|title| (title, HEADING)).collect()).await?;
            }
        }
        let cells = cells.iter().map(|cell| (cell.shown(output), cell.style())).collect();
        self.line(output, cells).await
    }

    async fn line(&self, output: &mut Output, cells: Vec<(Vec<u8>, Style)>) -> Result<(), Failure> {
        let last = self.columns.len().saturating_sub(1);
        for (index, (column, (bytes, style))) in self.columns.iter().zip(cells).enumerate() {
            if !output.is_terminal() {
                output.bytes(&bytes).await?;
                output.bytes(if index < last { b"\t" } else { b"" }).await?;
                continue;
            }
            let padding = " ".repeat(column.width.saturating_sub(width(&bytes)));
            if column.is_right {
                output.bytes(padding.as_bytes()).await?;
            }
            output.styled(style, &bytes).await?;
            if !column.is_right && index < last {
                output.bytes(padding.as_bytes()).await?;
            }
            output.bytes(if index < last { b"  " } else { b"" }).await?;
        }
        output.bytes(b"\n").await
    }
}

/// How wide a text is on a terminal, if all of its characters are of one width.
fn width(text: &[u8]) -> usize {
    String::from_utf8_lossy(text).chars().count()
}
