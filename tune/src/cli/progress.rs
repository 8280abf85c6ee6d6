//! The progress of a run, on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Interval between progress lines if stderr is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// A progress bar on a terminal, or occasional lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
    total: usize,
    start: Instant,
    latest_line: Instant,
}

impl Progress {
    /// Starts a progress display that counts up to `total`.
    pub fn new(total: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self { bar, total, start: Instant::now(), latest_line: Instant::now() }
    }

    /// Shows that `done` transcripts or prompts of the total are finished, `before` of them in earlier runs, and the
    /// rate of `tokens`, which counts this run's tokens.
    pub fn update(&mut self, done: usize, before: usize, tokens: usize) {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-9);
        self.show(done, before, &format!("{:.0} tokens/s", tokens as f64 / seconds));
    }

    /// Shows that `done` of the total are finished, `before` of them in earlier runs, and a message.
    pub fn show(&mut self, done: usize, before: usize, message: &str) {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-9);
        let mut message = message.to_owned();
        if done > before {
            let left = (self.total.saturating_sub(done)) as f64 * seconds / (done - before) as f64;
            message += &format!(", {} left", time(left));
        }
        if self.bar.is_hidden() && self.latest_line.elapsed() >= LINE_INTERVAL {
            self.latest_line = Instant::now();
            eprintln!("{done}/{} {message}", self.total);
        }
        self.bar.set_position(done as u64);
        self.bar.set_message(message);
    }

    /// Removes the progress bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        assert_eq!(super::time(61.4), "1:01");
        assert_eq!(super::time(3600.0 + 125.0), "1:02:05");
    }
}
