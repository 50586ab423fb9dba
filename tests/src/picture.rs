//! A terminal's screen as a picture: SVG, with the colours of a dark terminal, for pages that show what a
//! command looks like.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// The width and height of a cell, and the size of its letters.
const CELL: (f64, f64) = (8.4, 17.0);
const FONT_SIZE: f64 = 14.0;

/// How much is left free around the cells, and above them for the title.
const MARGIN: f64 = 12.0;
const TITLE: f64 = 32.0;

/// What is drawn where nothing else is said.
const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d8dee9";

/// The sixteen colours.
const COLOURS: [&str; 16] = [
    "#2e3440", "#f0606c", "#a3d977", "#f0c674", "#6ea8f0", "#c792ea", "#5fc9d8", "#d8dee9",
    "#6b7486", "#ff7b86", "#b8e994", "#ffd98a", "#8dbcff", "#d9a8ff", "#7fe0ec", "#ffffff",
];

/// What cells side by side have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    ink: String,
    paper: Option<String>,
    is_bold: bool,
    is_underlined: bool,
}

impl Look {
    fn of(cell: &Cell) -> Self {
        let (mut ink, mut paper) = (colour(cell.fgcolor()), colour(cell.bgcolor()));
        if cell.inverse() {
            ink = ink.or(Some(FOREGROUND.to_owned()));
            (ink, paper) = (paper.or(Some(BACKGROUND.to_owned())), ink);
        }
        Self {
            ink: ink.unwrap_or_else(|| FOREGROUND.to_owned()),
            paper,
            is_bold: cell.bold(),
            is_underlined: cell.underline(),
        }
    }
}

/// The screen as an SVG, with a title.
pub fn svg(screen: &Screen, title: &str) -> String {
    let (rows, columns) = screen.size();
    let width = f64::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = f64::from(rows) * CELL.1 + TITLE + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" \
         font-size=\"{FONT_SIZE}\" role=\"img\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n",
        title = escaped(title),
    );
    for (index, light) in [COLOURS[1], COLOURS[3], COLOURS[2]].into_iter().enumerate() {
        let x = MARGIN + 6.0 + 20.0 * index as f64;
        writeln!(svg, "<circle cx=\"{x}\" cy=\"{}\" r=\"6\" fill=\"{light}\"/>", TITLE / 2.0)
            .unwrap();
    }
    writeln!(
        svg,
        "<text x=\"50%\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{}\">{}</text>",
        TITLE / 2.0 + 5.0,
        COLOURS[8],
        escaped(title),
    )
    .unwrap();
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let (look, text, length) = run(screen, row, column);
            draw(&mut svg, (row, column), &look, &text, length);
            column += length;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The cells from here on that look alike: how, what is in them, and how many they are.
fn run(screen: &Screen, row: u16, column: u16) -> (Look, String, u16) {
    let cell = |column| screen.cell(row, column).expect("the cell is on the screen");
    let look = Look::of(cell(column));
    let mut text = String::new();
    let mut length = 0;
    while column + length < screen.size().1 {
        let cell = cell(column + length);
        // What is under a wide letter belongs to it.
        if !cell.is_wide_continuation() {
            if Look::of(cell) != look {
                break;
            }
            text.push_str(if cell.has_contents() { cell.contents() } else { " " });
        }
        length += 1;
    }
    (look, text, length)
}

fn draw(svg: &mut String, (row, column): (u16, u16), look: &Look, text: &str, length: u16) {
    let (x, y) = (MARGIN + f64::from(column) * CELL.0, TITLE + f64::from(row) * CELL.1);
    let width = f64::from(length) * CELL.0;
    if let Some(paper) = &look.paper {
        let height = CELL.1;
        writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{paper}\"/>",
        )
        .unwrap();
    }
    if text.trim().is_empty() {
        return;
    }
    // Whatever font there is, the cells stand where they do in a terminal.
    let bold = if look.is_bold { " font-weight=\"bold\"" } else { "" };
    let underlined = if look.is_underlined { " text-decoration=\"underline\"" } else { "" };
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{width:.1}\" xml:space=\"preserve\" \
         fill=\"{}\"{bold}{underlined}>{}</text>",
        y + 0.76 * CELL.1,
        look.ink,
        escaped(text),
    )
    .unwrap();
}

/// `None` for what the terminal has unless told.
fn colour(colour: Color) -> Option<String> {
    match colour {
        Color::Default => None,
        Color::Rgb(red, green, blue) => Some(format!("#{red:02x}{green:02x}{blue:02x}")),
        Color::Idx(index @ 0..16) => Some(COLOURS[usize::from(index)].to_owned()),
        Color::Idx(index @ 16..232) => {
            let level = |part: u8| if part == 0 { 0 } else { 55 + 40 * part };
            let cube = index - 16;
            let [red, green, blue] = [cube / 36, cube / 6 % 6, cube % 6].map(level);
            Some(format!("#{red:02x}{green:02x}{blue:02x}"))
        }
        Color::Idx(index) => {
            let grey = 8 + 10 * (index - 232);
            Some(format!("#{grey:02x}{grey:02x}{grey:02x}"))
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use vt100::Parser;

    use super::*;

    #[test]
    fn a_picture_has_the_texts_and_colours_of_the_screen() {
        let mut parser = Parser::new(3, 20, 0);
        parser.process("a <b>\x1b[1;31mred\x1b[0m é漢!\r\n\x1b[7minverse\x1b[0m".as_bytes());
        let svg = svg(parser.screen(), "cairn & co");
        for part in [
            "<title>cairn &amp; co</title>",
            ">a &lt;b&gt;</text>",
            "fill=\"#f0606c\" font-weight=\"bold\">red</text>",
            "> é漢!",
            "fill=\"#16181d\">inverse</text>",
            "width=\"58.8\" height=\"17.0\" fill=\"#d8dee9\"",
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
