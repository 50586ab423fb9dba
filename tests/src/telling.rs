//! What a process tells of itself by HTTP: its health, and the samples of its metrics. What they
//! should be is the affair of the tests.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// What the line starts with that says where.
pub const PREFIX: &str = "telling of itself on http://";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that tells of itself.
#[derive(Debug, Clone)]
pub struct Telling(String);

impl Telling {
    /// The one that has printed these lines.
    #[track_caller]
    pub fn of(lines: &[String]) -> Self {
        let address = lines.iter().find_map(|line| line.strip_prefix(PREFIX));
        Self(address.unwrap_or_else(|| panic!("it tells nothing: {lines:?}")).to_owned())
    }

    /// The one at an address.
    pub fn at(address: &str) -> Self {
        Self(address.to_owned())
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.0
    }

    /// The status and the text of the answer to a question.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The old protocol: its answers come whole.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.0).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {head}")), text.to_owned())
    }

    /// All samples.
    #[track_caller]
    pub fn metrics(&self) -> Samples {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        Samples::parse(&text)
    }
}

/// Samples by their names and labels, as they are written.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    /// Reads the text format.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
            (name.to_owned(), value.parse().expect("it is a number"))
        };
        Self(lines.map(sample).collect())
    }

    /// Names without labels, each once or more, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| name.split('{').next().unwrap_or(name))
    }

    /// The sum of all samples of a name that have these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_meant = |sample: &str| {
            let (found, rest) = sample.split_once('{').unwrap_or((sample, ""));
            found == name && labels.iter().all(|label| rest.contains(label))
        };
        self.0.iter().filter(|(sample, _)| is_meant(sample)).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_their_labels() {
        let text = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"2\",y=\"2\"} 0.5\nab 7\n";
        let samples = Samples::parse(text);
        assert_eq!(samples.sum("a", &["y=\"2\""]), 3.5);
        assert_eq!(samples.sum("a", &["y=\"2\"", "x=\"1\""]), 3.0);
        assert_eq!(samples.sum("ab", &[]), 7.0);
        let mut names = samples.names().collect::<Vec<_>>();
        names.sort_unstable();
        assert_eq!(names, ["a", "a", "ab"]);
    }
}
