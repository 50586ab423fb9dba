//! How far long work is, drawn on the terminal while it runs. What is said of it is the affair of
//! each command.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often progress is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Does the work, and shows what `told` says of it meanwhile, behind a label.
pub(crate) async fn watch<T>(
    label: &str,
    told: impl Fn() -> String,
    work: impl Future<Output = T>,
) -> T {
    let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})")
        .expect("the template is valid");
    let bar = ProgressBar::new_spinner().with_style(style).with_prefix(label.to_owned());
    // Removed also when the work is given up.
    let bar = ClearedBar(bar);
    let mut ticks = tokio::time::interval(DRAW_INTERVAL);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => break done,
            _ = ticks.tick() => {
                bar.0.set_message(told());
                bar.0.tick();
            }
        }
    }
}

/// A bar that leaves nothing behind.
struct ClearedBar(ProgressBar);

impl Drop for ClearedBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Bytes a second.
pub(crate) fn rate(bytes: u64, elapsed: Duration) -> u64 {
    (bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64
}
