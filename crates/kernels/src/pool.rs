//! The thread pool: the caller works too, tasks are claimed one at a time, and
//! an idle worker spins shortly and then sleeps.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How often an idle worker polls before it sleeps: about 150 µs where `pause`
/// takes 140 cycles, which bridges the serial parts between two operators.
const SPINS: usize = 3000;
/// The same while a run goes on ([`Pool::keep_awake`]): about 4 ms. Waking a sleeping thread
/// can take longer than an operator, above all on a virtual machine.
const SPINS_IN_RUN: usize = 60_000;

/// The most threads that a pool starts.
pub const MAX_THREADS: usize = 256;

/// A fixed set of threads that run the tasks of one call at a time.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the host thread whose call the workers serve.
    busy: AtomicBool,
    workers: Vec<JoinHandle<()>>,
    threads: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    /// Counts published jobs, so that spinning workers see a new one without the lock.
    epoch: AtomicU64,
    /// Runs that go on.
    runs: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<JobRef>,
    /// Workers inside the current job.
    active: usize,
    sleepers: usize,
    stop: bool,
}

type Payload = Box<dyn Any + Send>;

struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    /// Workers that left the job, to let the caller wait without the lock.
    left: AtomicUsize,
    panic: Mutex<Option<Payload>>,
}

/// A job whose borrow was erased; the caller keeps it alive until no worker is active.
#[derive(Clone, Copy)]
struct JobRef(*const Job<'static>);

// SAFETY: `Job` is only shared (its fields are `Sync`), and `Pool::run` outlives every use.
unsafe impl Send for JobRef {}

thread_local! {
    /// Set while this thread runs tasks, so that a nested call runs inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job<'_> {
    /// Claims and runs tasks until none is left; a panic cancels the rest.
    fn work(&self) {
        let outer = INSIDE.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= self.tasks {
                    break;
                }
                (self.task)(index);
            }
        }));
        INSIDE.set(outer);
        if let Err(payload) = result {
            self.next.store(self.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included (0 counts as 1). When the
    /// system refuses a thread, the pool goes on with those that it has.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            done: Condvar::new(),
            epoch: AtomicU64::new(0),
            runs: AtomicUsize::new(0),
        });
        let workers: Vec<_> = (1..threads.clamp(1, MAX_THREADS))
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let name = format!("narrowbit-{index}");
                std::thread::Builder::new().name(name).spawn(move || worker(&shared)).ok()
            })
            .collect();
        let threads = workers.len() + 1;
        Pool { shared, busy: AtomicBool::new(false), workers, threads }
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(0) … task(tasks − 1)`, each once, and returns when all are done.
    ///
    /// Runs inline when it is nested in another task, when there is one thread or one
    /// task, and while another host thread uses the pool.
    ///
    /// # Panics
    /// Passes on the panic of a task; the remaining tasks are then skipped.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let inline = tasks <= 1 || self.workers.is_empty() || INSIDE.get();
        if inline || self.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(task);
            return;
        }
        let job = Job { task, tasks, next: AtomicUsize::new(0), left: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.publish(&job);
        job.work();
        self.retire(&job);
        self.busy.store(false, Ordering::Release);
        let payload = lock(&job.panic).take();
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    /// Wakes the workers and lets them wait for jobs awake until the guard is dropped: for a
    /// run of many short jobs.
    pub fn keep_awake(&self) -> Awake<'_> {
        self.shared.runs.fetch_add(1, Ordering::Relaxed);
        if !self.workers.is_empty() {
            let state = lock(&self.shared.state);
            if state.sleepers > 0 {
                self.shared.epoch.fetch_add(1, Ordering::Release);
                drop(state);
                self.shared.wake.notify_all();
            }
        }
        Awake(&self.shared.runs)
    }

    /// As [`Pool::run`], on the caller alone unless `parallel`.
    pub fn run_if(&self, parallel: bool, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if parallel {
            self.run(tasks, task);
        } else {
            (0..tasks).for_each(task);
        }
    }

    fn publish(&self, job: &Job<'_>) {
        let mut state = lock(&self.shared.state);
        state.job = Some(JobRef(std::ptr::from_ref(job).cast()));
        self.shared.epoch.fetch_add(1, Ordering::Release);
        let wanted = state.sleepers.min(job.tasks - 1);
        drop(state);
        match wanted {
            0 => {}
            1 => self.shared.wake.notify_one(),
            _ => self.shared.wake.notify_all(),
        }
    }

    /// Withdraws the job and waits until the workers that entered it have left.
    fn retire(&self, job: &Job<'_>) {
        let entered = {
            let mut state = lock(&self.shared.state);
            state.job = None;
            state.active
        };
        for _ in 0..SPINS {
            if job.left.load(Ordering::Acquire) >= entered {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&self.shared.state);
        while state.active > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Keeps a pool's workers awake while it lives.
#[derive(Debug)]
pub struct Awake<'a>(&'a AtomicUsize);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker can't panic outside of a task, whose panic is caught.
            let _ = worker.join();
        }
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0;
    while let Some(job) = next_job(shared, &mut seen) {
        // SAFETY: the job was entered under the lock while published, so `Pool::run`
        // waits in `retire` until `active` drops below.
        let job = unsafe { &*job.0 };
        job.work();
        job.left.fetch_add(1, Ordering::Release);
        let mut state = lock(&shared.state);
        state.active -= 1;
        if state.active == 0 {
            shared.done.notify_all();
        }
    }
}

/// Waits for a job and enters it; `None` when the pool is dropped.
fn next_job(shared: &Shared, seen: &mut u64) -> Option<JobRef> {
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == *seen {
            let most = if shared.runs.load(Ordering::Relaxed) > 0 { SPINS_IN_RUN } else { SPINS };
            if spins >= most {
                break;
            }
            spins += 1;
            std::hint::spin_loop();
        }
        let mut state = lock(&shared.state);
        while !state.stop && shared.epoch.load(Ordering::Acquire) == *seen {
            state.sleepers += 1;
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleepers -= 1;
        }
        if state.stop {
            return None;
        }
        *seen = shared.epoch.load(Ordering::Acquire);
        if let Some(job) = state.job {
            state.active += 1;
            return Some(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn count_runs(pool: &Pool, tasks: usize) -> Vec<u32> {
        let hits: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
        pool.run(tasks, &|i| {
            hits[i].fetch_add(1, Ordering::Relaxed);
        });
        hits.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn runs_every_task_once_for_any_thread_count() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                assert_eq!(count_runs(&pool, tasks), vec![1; tasks]);
            }
        }
    }

    #[test]
    fn survives_many_short_jobs_and_sleeps() {
        let pool = Pool::new(3);
        for round in 0..2000 {
            assert_eq!(count_runs(&pool, 5), vec![1; 5]);
            let awake = (round % 3 == 0).then(|| pool.keep_awake());
            assert_eq!(count_runs(&pool, 5), vec![1; 5]);
            drop(awake);
            if round % 500 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }

    #[test]
    fn runs_nested_calls_inline() {
        let pool = Pool::new(2);
        let total = AtomicU32::new(0);
        pool.run(4, &|_| {
            let me = std::thread::current().id();
            pool.run(4, &|_| {
                assert_eq!(std::thread::current().id(), me);
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 16);
    }

    #[test]
    fn passes_on_a_panic_and_stays_usable() {
        let pool = Pool::new(2);
        for bad in 0..8 {
            let run = || pool.run(8, &|i| assert_ne!(i, bad, "task fails"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(count_runs(&pool, 9), vec![1; 9]);
        }
    }

    #[test]
    fn serves_several_host_threads_at_once() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(count_runs(&pool, 6), vec![1; 6]);
                    }
                });
            }
        });
    }
}
