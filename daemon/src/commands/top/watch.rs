//! A process that is asked again and again: what it has told last, and what has come since.

use std::time::Instant;

use super::{
    snapshot::Snapshot,
    source::{Source, SourceError, Told},
};

/// A process that is looked at.
#[derive(Debug)]
pub(super) struct Watch {
    source: Source,
    last: Option<(Instant, Told)>,
}

impl Watch {
    /// Looks at a process for the first time.
    pub(super) fn new(source: Source) -> Self {
        Self { source, last: None }
    }

    /// Asks the process. `None` if there is nothing to compare with yet: it is the first time, or another
    /// process answers now.
    pub(super) async fn ask(&mut self) -> Result<Option<Snapshot>, SourceError> {
        let told = self.source.ask().await?;
        let now = Instant::now();
        let before = self.last.replace((now, told.clone()));
        let before = before.filter(|(_, before)| before.is_followed_by(&told));
        Ok(before.map(|(then, before)| {
            let seconds = now.duration_since(then).as_secs_f64();
            Snapshot::between(&before, &told, seconds)
        }))
    }
}

impl Told {
    /// Whether the other comes from the same process, later on.
    fn is_followed_by(&self, other: &Self) -> bool {
        let (one, other) = (&self.report, &other.report);
        let (was, is) = (one.uptime_seconds.unwrap_or(0.0), other.uptime_seconds.unwrap_or(0.0));
        (one.pid, &one.role) == (other.pid, &other.role) && was <= is
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{commands::top::samples::Samples, http::report::Report};

    #[test]
    fn a_process_that_was_started_anew_is_another() {
        let told = |pid, uptime| Told {
            report: Report { pid, uptime_seconds: Some(uptime), ..Report::default() },
            samples: Samples::default(),
        };
        assert!(told(1, 5.0).is_followed_by(&told(1, 6.0)));
        assert!(!told(1, 5.0).is_followed_by(&told(2, 6.0)));
        // In a container it has the same number.
        assert!(!told(1, 5.0).is_followed_by(&told(1, 0.5)));
    }
}
