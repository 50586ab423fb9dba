//! A trace as a picture: an SVG with a row for each of its parts, below the part that it belongs to, and
//! a bar in it from when to when. Where the parts come from is not known here.

use std::{fmt::Write as _, time::Duration};

/// A part of a trace.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What was done.
    pub name: String,
    /// Who did it.
    pub service: String,
    /// Of how many others it is a part.
    pub depth: usize,
    /// When it began, from the start of the trace.
    pub start: Duration,
    /// How long it took.
    pub length: Duration,
}

/// The colours of services, in the order in which these come first; the last is that of all others.
const COLOURS: [&str; 4] = ["#2f6fd0", "#c2620c", "#1a7f5a", "#6e7781"];

/// Lengths in pixels: of the picture, of a row, and where the columns are.
const WIDTH: usize = 1000;
const ROW: usize = 22;
const MARGIN: usize = 16;
const INDENT: usize = 12;
const SERVICE: usize = 372;
const BARS: usize = 474;
const BARS_END: usize = 826;
const START: usize = 908;
const LENGTH: usize = WIDTH - MARGIN;

/// The picture of these, in their order: each behind the one that it is a part of. It has a background
/// of its own, as whoever shows it may have a dark one.
pub fn draw(bars: &[Bar]) -> String {
    let end = bars.iter().map(|bar| bar.start + bar.length).max().unwrap_or_default();
    let scale = (BARS_END - BARS) as f64 / milliseconds(end).max(f64::MIN_POSITIVE);
    let mut services: Vec<&str> = Vec::new();
    for bar in bars {
        if !services.contains(&&*bar.service) {
            services.push(&bar.service);
        }
    }
    let head = MARGIN + ROW;
    let foot = head + bars.len() * ROW;
    let height = foot + MARGIN;
    let mut svg = String::new();
    let mut add = |line: String| writeln!(svg, "{line}").expect("a text takes all that is written");
    add(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-size=\"12\" \
         font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, monospace\">"
    ));
    add(format!(
        "<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"#ffffff\" \
         stroke=\"#d0d7de\"/>",
        WIDTH - 1,
        height - 1
    ));
    let title = |x: usize, anchor: &str, text: &str| {
        let y = MARGIN + ROW / 2;
        format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"#59636e\">{text}</text>")
    };
    add(title(MARGIN, "start", "span"));
    add(title(SERVICE, "start", "service"));
    add(title(START, "end", "from, ms"));
    add(title(LENGTH, "end", "took, ms"));
    let step = step(milliseconds(end));
    let ticks = (0..).map(|tick| f64::from(tick) * step);
    for tick in ticks.take_while(|tick| *tick <= milliseconds(end)) {
        let x = BARS as f64 + tick * scale;
        add(format!(
            "<line x1=\"{x:.1}\" y1=\"{head}\" x2=\"{x:.1}\" y2=\"{foot}\" stroke=\"#e6eaef\"/>"
        ));
        add(title(x as usize, "middle", &format!("{tick}")));
    }
    for (row, bar) in bars.iter().enumerate() {
        let service = services.iter().position(|service| *service == bar.service);
        let colour = COLOURS[service.unwrap_or_default().min(COLOURS.len() - 1)];
        let (top, text) = (head + row * ROW, head + row * ROW + 15);
        let (from, took) = (milliseconds(bar.start), milliseconds(bar.length));
        add(format!(
            "<text x=\"{}\" y=\"{text}\" fill=\"#1f2328\">{}</text>",
            MARGIN + bar.depth * INDENT,
            escaped(&bar.name)
        ));
        add(format!(
            "<text x=\"{SERVICE}\" y=\"{text}\" fill=\"{colour}\">{}</text>",
            escaped(&bar.service)
        ));
        // What is too short to be seen has a width all the same.
        add(format!(
            "<rect x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" rx=\"2\" fill=\"{colour}\"/>",
            BARS as f64 + from * scale,
            top + 5,
            (took * scale).max(2.0),
            ROW - 10
        ));
        for (x, number) in [(START, from), (LENGTH, took)] {
            add(format!(
                "<text x=\"{x}\" y=\"{text}\" text-anchor=\"end\" fill=\"#1f2328\">{number:.2}</text>"
            ));
        }
    }
    add("</svg>".to_owned());
    svg
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How far the marks of an axis of this length are from each other: 1, 2 or 5 of some power of ten, so
/// that there are a few.
fn step(length: f64) -> f64 {
    let power = 10_f64.powf((length / 4.0).max(f64::MIN_POSITIVE).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    steps.into_iter().rfind(|step| step * 4.0 <= length).unwrap_or(power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_a_row_below_the_one_that_it_belongs_to() {
        let bar = |name: &str, depth, start, length| Bar {
            name: name.to_owned(),
            service: format!("service {}", depth / 2),
            depth,
            start: Duration::from_millis(start),
            length: Duration::from_millis(length),
        };
        let svg = draw(&[bar("a < b", 0, 0, 8), bar("part", 1, 2, 4), bar("of it", 2, 3, 0)]);
        assert!(svg.contains(">a &lt; b</text>") && svg.ends_with("</svg>\n"));
        // Half of the whole, from a quarter of it on.
        let half = (BARS_END - BARS) as f64 / 2.0;
        let from = BARS as f64 + half / 2.0;
        assert!(
            svg.contains(&format!("<rect x=\"{from:.1}\" y=\"65\" width=\"{half:.1}\"")),
            "{svg}"
        );
        assert_eq!(svg.matches(COLOURS[0]).count(), 4);
        assert_eq!(svg.matches(COLOURS[1]).count(), 2);
    }

    #[test]
    fn an_axis_has_some_marks_at_round_numbers() {
        for (length, wanted) in [(8.0, 2.0), (4.0, 1.0), (19.9, 2.0), (20.0, 5.0), (0.3, 0.05)] {
            assert!((step(length) - wanted).abs() < 1e-9, "{length}: {}", step(length));
        }
        assert!(step(0.0) > 0.0);
    }
}
