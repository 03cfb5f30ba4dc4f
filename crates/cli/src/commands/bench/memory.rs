//! The peak of a process's memory, where the system tells it.

use std::path::Path;
use std::process::{Command, Stdio};

use super::subject::Work;

/// Starts a new peak from the memory in use now (Linux: `proc(5)`, clear_refs).
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes in use at the most since the last reset.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// The peak of a process of its own that loads the model and runs it: beside other models in this process
/// their memory would count.
pub fn of_process(path: &Path, work: &Work) -> Option<u64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["bench", "--runs", "1", "--warmup", "0", "--json", "--quiet"]);
    command.args(["--threads", &work.threads.to_string()]);
    if let Some(batch) = work.batch {
        command.args(["--batch", &batch.to_string()]);
    }
    command.args(["--float", work.float.floats.float.name()]);
    if work.float.round_rows {
        command.arg("--round-rows");
    }
    for (flag, value) in [("--data", &work.data), ("--preprocess", &work.preprocess)] {
        value.iter().for_each(|v| {
            command.arg(flag).arg(v);
        });
    }
    let out = command.arg("--").arg(path).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let rows: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
    rows.get(0)?.get("peak_bytes")?.as_u64()
}
