//! What the user sees: results on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
pub use narrowbit_tensor::memory::readable as bytes;
use serde::Serialize;

use crate::args::Global;

static QUIET: AtomicBool = AtomicBool::new(false);

/// Sets up logging and progress for the whole process.
pub fn init(global: &Global) {
    QUIET.store(global.quiet, Ordering::Relaxed);
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

/// Prints an error with its causes that its own text does not name yet.
pub fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    let full = |e: &(dyn std::error::Error + 'static)| {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let kind = e.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(kind, Some(StorageFull | QuotaExceeded | FileTooLarge))
    };
    if error.chain().any(full) {
        text.push_str("\nhelp: make room on that disk, or write to another; what was there before is untouched");
    }
    eprintln!("error: {text}");
}

/// Checks that a result can be written where it is wanted, before the work that it takes.
///
/// # Errors
/// When there is no such folder, nothing can be written into it, or something stands there that is no file.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    drop(narrowbit_tensor::staged::beside(path).with_context(|| path.display().to_string())?);
    Ok(())
}

/// Prints a line that helps a person, unless asked to be quiet.
pub fn note(text: impl std::fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        eprintln!("{text}");
    }
}

/// Prints a result as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    print(&format!("{text}\n"))
}

/// Prints a result as text. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A progress bar over `len` steps on standard error; invisible where that is no terminal.
pub fn progress(what: &str, len: usize) -> ProgressBar {
    let visible = !QUIET.load(Ordering::Relaxed) && std::io::stderr().is_terminal();
    let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(len as u64), target).with_message(what.to_owned());
    let style = ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A table with a header, columns aligned; numbers (cells that start with a digit or sign) to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().map(|r| r.get(i).map_or(0, |c| c.chars().count()));
        cells.chain([header[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let numeric = |i: usize| {
        let mut cells = rows.iter().filter_map(|r| r.get(i)).filter(|c| !c.is_empty()).peekable();
        cells.peek().is_some() && cells.all(|c| c.starts_with(|x: char| x.is_ascii_digit() || "+-−≥<".contains(x)))
    };
    let right: Vec<bool> = (0..header.len()).map(numeric).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(i, c)| {
            let gap = " ".repeat(widths[i].saturating_sub(c.chars().count()));
            if right[i] { format!("{gap}{c}") } else { format!("{c}{gap}") }
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut out = line(header.to_vec());
    for row in rows {
        out.push_str(&line((0..header.len()).map(|i| row.get(i).map_or("", String::as_str)).collect()));
    }
    out
}

/// A count for people: 1.2 k, 3.4 M, 5.6 G.
pub fn count(n: u64) -> String {
    match n {
        0..1_000 => format!("{n}"),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Decibels for people; equal tensors have no error to speak of.
pub fn decibels(db: f64) -> String {
    if db.is_infinite() && db > 0.0 { "exact".into() } else { format!("{db:.1} dB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_text_left_and_numbers_right() {
        let rows = vec![vec!["conv".into(), "1.5".into()], vec!["a".into(), "10.25".into()]];
        assert_eq!(table(&["node", "ms"], &rows), "node     ms\nconv    1.5\na     10.25\n");
    }

    #[test]
    fn writes_sizes_and_counts_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
        assert_eq!(count(2_500_000_000), "2.50 G");
    }
}
