//! What `cairn top` shows, drawn into a terminal's cells. What keys do, and where the numbers come from, is
//! elsewhere.

use std::{cmp::Ordering, time::Instant};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, BorderType, Cell, Padding, Paragraph, Row, Table},
};

use super::{
    figures::{bytes, rate, share, time},
    snapshot::{Requests, Snapshot},
};

/// How wide a terminal has to be for two columns of panels.
const WIDE: u16 = 120;

/// How wide the right one is then.
const RIGHT: u16 = 64;

/// How high a terminal has to be to show all panels in one column.
const HIGH: u16 = 44;

/// An operation in which nothing has happened for so many seconds is worth a look.
const LONG: f64 = 5.0;

/// What is wrong.
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// What may be.
const DOUBTFUL: Style = Style::new().fg(Color::Yellow);

/// What is well.
const GOOD: Style = Style::new().fg(Color::Green);

/// What is not of much interest.
const FAINT: Style = Style::new().fg(Color::DarkGray);

/// Of columns and of groups.
const HEADING: Style = Style::new().fg(Color::Cyan);

/// By what requests of a kind are ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Rate,
    Time,
    Name,
}

/// What there is to show.
#[derive(Debug)]
pub(super) struct View {
    /// Where the process is.
    pub(super) url: String,
    /// What came last; `None` as long as nothing could be compared.
    pub(super) shown: Option<Snapshot>,
    /// Since when there is no answer, and why.
    pub(super) lost: Option<(Instant, String)>,
    pub(super) is_paused: bool,
    pub(super) order: Order,
}

impl Order {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Rate => Self::Time,
            Self::Time => Self::Name,
            Self::Name => Self::Rate,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Time => "time",
            Self::Name => "name",
        }
    }

    fn compare(self, one: &Requests, other: &Requests) -> Ordering {
        let by = |one: f64, other: f64| other.total_cmp(&one);
        let first = match self {
            Self::Rate => by(one.per_second, other.per_second),
            Self::Time => by(one.p99_seconds.unwrap_or(-1.0), other.p99_seconds.unwrap_or(-1.0)),
            Self::Name => Ordering::Equal,
        };
        first.then_with(|| one.name.cmp(&other.name))
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let [body, status] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    match &view.shown {
        Some(shown) => panels(frame, body, view, shown),
        None => {
            let text = format!("Asking {} …", view.url);
            frame.render_widget(Paragraph::new(text).block(panel("cairn top".into())), body);
        }
    }
    if view.lost.is_some() {
        // What is shown was so once.
        let faint = FAINT.remove_modifier(Modifier::BOLD);
        frame.buffer_mut().set_style(body, faint);
    }
    frame.render_widget(status_line(view), status);
}

fn panels(frame: &mut Frame<'_>, area: Rect, view: &View, shown: &Snapshot) {
    let [header, body] = Layout::vertical([Constraint::Length(4), Constraint::Fill(1)]).areas(area);
    frame.render_widget(process(view, shown), header);
    let (flows, caches, troubles) = (flows(shown), caches(shown), troubles(shown));
    let height = |rows: &Panel<'_>| Constraint::Length(rows.height());
    if area.width >= WIDE {
        let columns = [Constraint::Fill(1), Constraint::Length(RIGHT)];
        let [left, right] = Layout::horizontal(columns).areas(body);
        let [top, bottom] =
            Layout::vertical([Constraint::Fill(3), Constraint::Fill(2)]).areas(left);
        requests(shown, view.order).draw(frame, top);
        pending(shown).draw(frame, bottom);
        let rows = [height(&flows), height(&caches), height(&troubles), Constraint::Fill(1)];
        let areas: [Rect; 4] = Layout::vertical(rows).areas(right);
        for (panel, area) in [flows, caches, troubles, slowest(shown)].into_iter().zip(areas) {
            panel.draw(frame, area);
        }
        return;
    }
    let mut all = vec![(Constraint::Fill(3), requests(shown, view.order))];
    if area.height >= HIGH {
        all.extend([(height(&flows), flows), (height(&caches), caches)]);
    }
    if !shown.troubles.is_empty() {
        all.push((height(&troubles), troubles));
    }
    all.push((Constraint::Fill(2), pending(shown)));
    if area.height >= HIGH {
        all.push((Constraint::Fill(2), slowest(shown)));
    }
    let areas = Layout::vertical(all.iter().map(|(height, _)| *height)).split(body);
    for ((_, panel), area) in all.into_iter().zip(areas.iter()) {
        panel.draw(frame, *area);
    }
}

/// A border with a title.
fn panel(title: Line<'_>) -> Block<'_> {
    let block = Block::bordered().border_type(BorderType::Rounded).border_style(FAINT);
    block.padding(Padding::horizontal(1)).title(title)
}

fn process<'a>(view: &'a View, shown: &Snapshot) -> Paragraph<'a> {
    let process = &shown.process;
    let title = format!(" cairn {} {} ", process.role, process.version).bold();
    let up = process.uptime_seconds.map_or_else(|| "unknown".to_owned(), time);
    let mut first = vec![Span::raw(format!("pid {}   up {up}   ", process.pid))];
    let health = &shown.health;
    for (name, ills, style) in [
        ("live", &health.live, BAD),
        ("ready", &health.ready, DOUBTFUL),
        ("store", &health.store, BAD),
    ] {
        first.push(match &ills[..] {
            [] => Span::styled(format!("{name} ✓  "), GOOD),
            ills => Span::styled(format!("{name} ✗ {}  ", ills.join("; ")), style),
        });
    }
    let mut second = vec![Span::raw("memory ")];
    second.extend(filling(process.memory_bytes, process.memory_limit_bytes, bytes));
    second.push(Span::raw(format!("   processors {:.2}", process.processors)));
    if let Some(threads) = process.threads {
        second.push(Span::raw(format!("   threads {threads}")));
    }
    second.push(Span::raw("   files "));
    second.extend(filling(process.open_files, process.open_files_limit, |files| files.to_string()));
    let url = Line::from(format!(" {} ", view.url)).right_aligned();
    Paragraph::new(vec![Line::from(first), Line::from(second)])
        .block(panel(title.into()).title(url))
}

/// How much there is of what may be; red from nine tenths on.
fn filling(
    now: Option<f64>,
    limit: Option<f64>,
    shown: impl Fn(f64) -> String,
) -> Vec<Span<'static>> {
    let Some(now) = now else { return vec![Span::raw("unknown")] };
    let Some(limit) = limit.filter(|limit| *limit > 0.0) else { return vec![shown(now).into()] };
    let style = match now / limit {
        ..0.8 => Style::new(),
        ..0.9 => DOUBTFUL,
        _ => BAD,
    };
    vec![Span::styled(shown(now), style), Span::styled(format!(" of {}", shown(limit)), FAINT)]
}

/// A table in a border.
struct Panel<'a> {
    title: Line<'a>,
    columns: Vec<(&'static str, Constraint)>,
    rows: Vec<Row<'a>>,
    /// What is said if there are no rows.
    nothing: &'static str,
}

impl Panel<'_> {
    /// How many lines it takes.
    fn height(&self) -> u16 {
        // What does not fit in is not shown, whatever there is.
        let rows = u16::try_from(self.rows.len()).unwrap_or(u16::MAX);
        if rows == 0 { 3 } else { rows.saturating_add(3) }
    }

    fn draw(self, frame: &mut Frame<'_>, area: Rect) {
        let Self { title, columns, mut rows, nothing } = self;
        let mut block = panel(title);
        if rows.is_empty() {
            let nothing = Paragraph::new(Span::styled(nothing, FAINT)).block(block);
            return frame.render_widget(nothing, area);
        }
        let room = usize::from(area.height.saturating_sub(3));
        if rows.len() > room {
            let left_off = format!(" {} more ", rows.len() - room);
            block = block.title_bottom(Line::styled(left_off, FAINT).right_aligned());
            rows.truncate(room);
        }
        let (titles, widths): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        // The first column is text, all others are numbers.
        let titles = titles.into_iter().enumerate().map(|(index, title)| match index {
            0 => Cell::from(title),
            _ => number(title),
        });
        let heading = Row::new(titles).style(FAINT);
        frame.render_widget(Table::new(rows, widths).header(heading).block(block), area);
    }
}

fn number<'a>(text: impl Into<Line<'a>>) -> Cell<'a> {
    Cell::from(text.into().right_aligned())
}

/// What a kind is called, as the label has it but for the line below.
fn kind(name: &str) -> String {
    name.replace('_', " ")
}

fn requests(shown: &Snapshot, order: Order) -> Panel<'_> {
    let dash = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), time);
    let mut rows = Vec::new();
    for group in shown.requests.chunk_by(|one, other| one.kind == other.kind) {
        let all: f64 = group.iter().map(|requests| requests.per_second).sum();
        let heading = Cell::from(kind(group[0].kind)).style(HEADING);
        rows.push(Row::new([heading, number(rate(all)).style(HEADING)]));
        let mut group: Vec<_> = group.iter().collect();
        group.sort_by(|one, other| order.compare(one, other));
        rows.extend(group.into_iter().map(|requests| {
            let Requests { name, per_second, p50_seconds, p99_seconds, .. } = requests;
            let cells = [
                Cell::from(format!("  {name}")),
                number(rate(*per_second)),
                number(dash(*p50_seconds)),
                number(dash(*p99_seconds)),
            ];
            Row::new(cells).style(if *per_second > 0.0 { Style::new() } else { FAINT })
        }));
    }
    Panel {
        title: format!(" Requests by {} ", order.name()).into(),
        columns: vec![
            ("", Constraint::Fill(1)),
            ("/s", Constraint::Length(7)),
            ("p50", Constraint::Length(8)),
            ("p99", Constraint::Length(8)),
        ],
        rows,
        nothing: "none yet",
    }
}

fn flows(shown: &Snapshot) -> Panel<'_> {
    let moved = shown.flows.iter().filter(|flow| flow.bytes > 0.0);
    let rows = moved.map(|flow| {
        let per_second = number(bytes(flow.bytes_per_second));
        let row = Row::new([Cell::from(flow.name), per_second, number(bytes(flow.bytes))]);
        row.style(if flow.bytes_per_second > 0.0 { Style::new() } else { FAINT })
    });
    Panel {
        title: " Bytes ".into(),
        columns: vec![
            ("", Constraint::Fill(1)),
            ("/s", Constraint::Length(11)),
            ("all", Constraint::Length(11)),
        ],
        rows: rows.collect(),
        nothing: "none yet",
    }
}

fn caches(shown: &Snapshot) -> Panel<'_> {
    let is_used = |bytes: Option<f64>| bytes.is_some_and(|bytes| bytes > 0.0);
    let used = shown.caches.iter().filter(|cache| {
        cache.hit_ratio.is_some() || is_used(cache.bytes) || is_used(cache.budget_bytes)
    });
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows = used.map(|cache| {
        Row::new([
            Cell::from(cache.layer),
            number(dash(cache.hit_ratio.map(share))),
            number(rate(cache.hits_per_second)),
            number(rate(cache.misses_per_second)),
            number(dash(cache.bytes.map(bytes))),
            number(dash(cache.budget_bytes.map(bytes))),
        ])
    });
    Panel {
        title: " Caches ".into(),
        columns: vec![
            ("", Constraint::Fill(1)),
            ("found", Constraint::Length(7)),
            ("hits/s", Constraint::Length(6)),
            ("miss/s", Constraint::Length(6)),
            ("kept", Constraint::Length(10)),
            ("of", Constraint::Length(10)),
        ],
        rows: rows.collect(),
        nothing: "none is used",
    }
}

fn troubles(shown: &Snapshot) -> Panel<'_> {
    let rows = shown.troubles.iter().map(|trouble| {
        let moves = trouble.per_second > 0.0;
        let cells = [
            Cell::from(trouble.name.as_str()),
            number(rate(trouble.per_second)),
            number(trouble.total.to_string()),
        ];
        Row::new(cells).style(if moves { BAD } else { Style::new() })
    });
    Panel {
        title: " Trouble ".into(),
        columns: vec![
            ("", Constraint::Fill(1)),
            ("/s", Constraint::Length(7)),
            ("all", Constraint::Length(9)),
        ],
        rows: rows.collect(),
        nothing: "none",
    }
}

fn pending(shown: &Snapshot) -> Panel<'_> {
    let mut title = vec![Span::raw(" Under way: ")];
    for queue in shown.queues.iter().filter(|queue| queue.under_way > 0.0) {
        title.push(format!("{} {}  ", kind(queue.kind), queue.under_way).into());
        if queue.hanging > 0.0 {
            title.push(Span::styled(format!("{} hang  ", queue.hanging), BAD));
        }
    }
    if title.len() == 1 {
        title.push("nothing ".into());
    }
    for (name, count) in [("serving", shown.fuse_threads), ("read ahead", shown.read_ahead)] {
        if let Some(count) = count.filter(|count| *count > 0.0) {
            title.push(Span::styled(format!("{name} {count}  "), FAINT));
        }
    }
    let rows = shown.under_way.iter().map(|pending| {
        let style = match pending.silent_seconds {
            _ if pending.hangs => BAD,
            LONG.. => DOUBTFUL,
            _ => Style::new(),
        };
        let hangs = if pending.hangs { " hangs" } else { "" };
        Row::new([
            Cell::from(format!("{} {}{hangs}", kind(&pending.kind), pending.name)),
            number(time(pending.seconds)),
            number(time(pending.silent_seconds)),
        ])
        .style(style)
    });
    Panel {
        title: title.into(),
        columns: vec![
            ("", Constraint::Fill(1)),
            ("for", Constraint::Length(11)),
            ("silent for", Constraint::Length(11)),
        ],
        rows: rows.collect(),
        nothing: "nothing",
    }
}

fn slowest(shown: &Snapshot) -> Panel<'_> {
    let rows = shown.slowest.iter().map(|slow| {
        Row::new([
            Cell::from(format!("{} {}", kind(&slow.kind), slow.name)),
            number(time(slow.seconds)),
            number(time(slow.ended_seconds_ago)),
        ])
    });
    Panel {
        title: " Slowest of the last minute ".into(),
        columns: vec![
            ("", Constraint::Fill(1)),
            ("took", Constraint::Length(8)),
            ("ago", Constraint::Length(8)),
        ],
        rows: rows.collect(),
        nothing: "all were quick",
    }
}

fn status_line(view: &View) -> Line<'_> {
    if let Some((since, why)) = &view.lost {
        let long = since.elapsed().as_secs();
        let text = format!(" No answer for {long} s, these are the last values: {why}");
        return Line::styled(text, BAD);
    }
    let mut line = Line::styled(" q quit  p pause  s order", FAINT);
    if view.is_paused {
        line.push_span(Span::styled("   paused", DOUBTFUL));
    }
    line
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

    use super::*;
    use crate::commands::top::snapshot::tests::busy;

    fn view() -> View {
        View {
            url: "http://127.0.0.1:9090".to_owned(),
            shown: Some(busy()),
            lost: None,
            is_paused: false,
            order: Order::default(),
        }
    }

    fn drawn(view: &View, width: u16, height: u16) -> (String, Buffer) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        (terminal.backend().to_string(), terminal.backend().buffer().clone())
    }

    /// The colour of a text's first letter.
    #[track_caller]
    fn colour(buffer: &Buffer, text: &str) -> Color {
        for y in 0..buffer.area.height {
            let line: Vec<_> = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
            if let Some(at) = line.concat().find(text) {
                let x = line.concat()[..at].chars().count();
                return buffer[(u16::try_from(x).unwrap(), y)].fg;
            }
        }
        panic!("{text} is not shown");
    }

    #[test]
    fn all_that_is_known_is_shown() {
        let (text, buffer) = drawn(&view(), 130, 36);
        for shown in [
            "cairn mount 0.1.0",
            "http://127.0.0.1:9090",
            "pid 4711   up 2 h 3 min",
            "live ✓",
            "store ✗ blobs: no answer within 15 s",
            "memory 70.00 MiB of 1.00 GiB",
            "processors 0.25   files unknown",
            "files read           1.00 MiB    2.00 MiB",
            "75.0 %",
            "64.00 MiB",
            "Under way: fuse 1  1 hang",
            "fuse read hangs",
            "75 s 75 s",
            "cairn.v1.BlobService/ReadRange",
            "q quit",
        ] {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(squeezed(&text).contains(&squeezed(shown)), "{shown}: {text}");
        }
        assert_eq!(colour(&buffer, "fuse read hangs"), Color::Red);
        assert_eq!(colour(&buffer, "damaged, from peer"), Color::Red);
        assert_eq!(colour(&buffer, "live ✓"), Color::Green);
    }

    #[test]
    fn requests_are_in_order() {
        let at = |order: Order| {
            let (text, _) = drawn(&View { order, ..view() }, 130, 36);
            (text.find("│   read ").unwrap(), text.find("│   open ").unwrap())
        };
        let (read, open) = at(Order::Rate);
        assert!(read < open);
        for order in [Order::Time, Order::Name] {
            let (read, open) = at(order);
            assert!(open < read, "{order:?}");
        }
    }

    #[test]
    fn what_is_old_is_grey_and_said_to_be() {
        let lost = Some((Instant::now(), "nobody can be reached there".to_owned()));
        let (text, buffer) = drawn(&View { lost, ..view() }, 130, 36);
        assert!(text.contains("No answer for 0 s"), "{text}");
        assert_eq!(colour(&buffer, "fuse read hangs"), Color::DarkGray);
        assert_eq!(colour(&buffer, "No answer"), Color::Red);
        let (text, _) = drawn(&View { is_paused: true, ..view() }, 130, 36);
        assert!(text.contains("paused"));
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_into() {
        for (width, height) in [(1, 1), (5, 3), (20, 8), (80, 24), (80, 60), (119, 50), (300, 200)]
        {
            drawn(&view(), width, height);
            drawn(&View { shown: None, ..view() }, width, height);
        }
        let (text, _) = drawn(&view(), 80, 24);
        assert!(text.contains("fuse read hangs") && text.contains("damaged"), "{text}");
    }
}
