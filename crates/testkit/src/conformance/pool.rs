use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::case::{self, Outcome};
use super::index::Case;

/// Deep graphs recurse; the stack is only reserved, not used.
const STACK: usize = 64 << 20;

struct Shared {
    dir: PathBuf,
    cases: Vec<Case>,
    next: AtomicUsize,
    /// Cases under way and since when.
    begun: Mutex<Vec<(usize, Instant)>>,
}

/// Runs all cases on all cores; a case that takes longer than `limit` fails and is left behind.
/// The outcomes are in the order of the cases.
pub fn run_all(dir: &Path, cases: Vec<Case>, limit: Duration) -> Vec<Outcome> {
    let n = cases.len();
    let begun = Mutex::new(Vec::new());
    let shared = Arc::new(Shared { dir: dir.into(), cases, next: AtomicUsize::new(0), begun });
    let (send, receive) = mpsc::channel();
    case::catch_panics();
    let cores = thread::available_parallelism().map_or(2, |n| n.get());
    (0..cores).for_each(|_| start(&shared, &send));
    let mut outcomes: Vec<Option<Outcome>> = vec![None; n];
    let mut left = n;
    while left > 0 {
        match receive.recv_timeout(Duration::from_millis(200)) {
            Ok((i, outcome)) if outcomes[i].is_none() => {
                outcomes[i] = Some(outcome);
                left -= 1;
            }
            Ok(_) => {}
            Err(_) => {
                for i in overdue(&shared, limit) {
                    let message = format!("takes longer than {} s", limit.as_secs());
                    if outcomes[i].replace(Outcome::fail(message)).is_none() {
                        left -= 1;
                        start(&shared, &send);
                    }
                }
            }
        }
    }
    let _ = std::panic::take_hook();
    outcomes.into_iter().flatten().collect()
}

fn start(shared: &Arc<Shared>, send: &mpsc::Sender<(usize, Outcome)>) {
    let (shared, send) = (shared.clone(), send.clone());
    let work = move || {
        loop {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = shared.cases.get(i) else { return };
            lock(&shared.begun).push((i, Instant::now()));
            let outcome = case::run(&shared.dir, case);
            let mut begun = lock(&shared.begun);
            let in_time = begun.iter().any(|(k, _)| *k == i);
            begun.retain(|(k, _)| *k != i);
            drop(begun);
            // A worker that was given up has a successor.
            if send.send((i, outcome)).is_err() || !in_time {
                return;
            }
        }
    };
    if thread::Builder::new().stack_size(STACK).spawn(work).is_err() {
        eprintln!("could not start a worker thread");
    }
}

fn overdue(shared: &Shared, limit: Duration) -> Vec<usize> {
    let mut begun = lock(&shared.begun);
    let late: Vec<usize> = begun.iter().filter(|(_, t)| t.elapsed() > limit).map(|(i, _)| *i).collect();
    begun.retain(|(i, _)| !late.contains(i));
    late
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}
