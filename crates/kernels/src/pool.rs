//! The thread pool: the caller works too, tasks are claimed one at a time, and
//! an idle worker spins shortly and then sleeps. Nobody takes a lock unless somebody sleeps.
//!
//! A thread begins with its own share of the tasks, the same part of them in every job, and then helps the others: rows
//! that it made in one operator are the ones that it reads in the next, from its own cache.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
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
    /// The number of the current job ([`JOB`]), whether workers may enter it ([`OPEN`]), and below those how many have.
    gate: AtomicU64,
    /// The current job, while the gate is open.
    job: AtomicPtr<Job<'static>>,
    /// Runs that go on.
    runs: AtomicUsize,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    /// Whether a caller sleeps, or is about to, until the workers have left its job.
    waits: AtomicBool,
    stop: AtomicBool,
    /// Held by who is about to sleep, and by who wakes it: nobody else needs a lock.
    sleep: Mutex<()>,
    wake: Condvar,
    done: Condvar,
}

/// A job counts this much in [`Shared::gate`].
const JOB: u64 = 1 << 32;
/// Workers may enter the current job.
const OPEN: u64 = 1 << 31;

type Payload = Box<dyn Any + Send>;

struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    shares: Shares,
    /// Workers that left the job: none touches it behind that.
    left: AtomicUsize,
    panic: Mutex<Option<Payload>>,
}

/// Shares at the most; more threads have some together.
const SHARES: usize = 8;

/// The next task of a share, alone on its lines of the cache.
#[repr(align(128))]
struct Next(AtomicUsize);

/// Tasks in as many consecutive parts as there are threads.
struct Shares {
    next: [Next; SHARES],
    count: usize,
    tasks: usize,
}

impl Shares {
    fn new(tasks: usize, threads: usize) -> Shares {
        let count = threads.clamp(1, SHARES);
        Shares { next: std::array::from_fn(|i| Next(AtomicUsize::new(tasks * i.min(count) / count))), count, tasks }
    }

    /// Claims a task for a thread: of its own share while there are any. `at` is the share that it claimed from last.
    fn claim(&self, thread: usize, at: &mut usize) -> Option<usize> {
        while *at < self.count {
            let share = (thread + *at) % self.count;
            let end = self.tasks * (share + 1) / self.count;
            let next = &self.next[share].0;
            // Looked at before it is counted up, which takes the line from the share's own thread.
            if next.load(Ordering::Relaxed) < end {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task < end {
                    return Some(task);
                }
            }
            *at += 1;
        }
        None
    }

    /// Leaves no task to claim.
    fn cancel(&self) {
        self.next.iter().for_each(|next| next.0.store(self.tasks, Ordering::Relaxed));
    }
}

thread_local! {
    /// Set while this thread runs tasks, so that a nested call runs inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job<'_> {
    /// Claims and runs tasks until none is left; a panic cancels the rest.
    fn work(&self, thread: usize) {
        let outer = INSIDE.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut at = 0;
            while let Some(task) = self.shares.claim(thread, &mut at) {
                (self.task)(task);
            }
        }));
        INSIDE.set(outer);
        if let Err(payload) = result {
            self.shares.cancel();
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included (0 counts as 1). When the
    /// system refuses a thread, the pool goes on with those that it has.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            runs: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            waits: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let workers: Vec<_> = (1..threads.clamp(1, MAX_THREADS))
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let name = format!("narrowbit-{index}");
                std::thread::Builder::new().name(name).spawn(move || worker(&shared, index)).ok()
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
        let shares = Shares::new(tasks, self.threads);
        let job = Job { task, tasks, shares, left: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.publish(&job);
        job.work(0);
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
        // A job without tasks, which is over before anybody enters it.
        self.shared.gate.fetch_add(JOB, Ordering::SeqCst);
        self.shared.wake_sleepers(usize::MAX);
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

    /// Opens the gate to a job: by the host thread that holds `busy`.
    fn publish(&self, job: &Job<'_>) {
        let shared = &self.shared;
        shared.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        // Another host may count up meanwhile (`keep_awake`), but nobody enters: the gate is closed.
        let next = |gate: u64| Some((gate & !(JOB - 1)).wrapping_add(JOB) | OPEN);
        let _ = shared.gate.fetch_update(Ordering::SeqCst, Ordering::Relaxed, next);
        shared.wake_sleepers(job.tasks - 1);
    }

    /// Closes the gate and waits until the workers that entered have left the job.
    fn retire(&self, job: &Job<'_>) {
        let shared = &self.shared;
        let entered = (shared.gate.fetch_and(!OPEN, Ordering::AcqRel) & (OPEN - 1)) as usize;
        for _ in 0..SPINS {
            if job.left.load(Ordering::Acquire) >= entered {
                return;
            }
            std::hint::spin_loop();
        }
        // A worker that leaves sees `waits`, or else this thread sees that it has left.
        let mut guard = lock(&shared.sleep);
        shared.waits.store(true, Ordering::SeqCst);
        while job.left.load(Ordering::SeqCst) < entered {
            guard = shared.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        shared.waits.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    /// Wakes some workers, behind a change of the gate.
    fn wake_sleepers(&self, most: usize) {
        // A worker that is about to sleep sees the change, or else this thread sees the worker.
        let wanted = self.sleepers.load(Ordering::SeqCst).min(most);
        if wanted > 0 {
            drop(lock(&self.sleep));
            match wanted {
                1 => self.wake.notify_one(),
                _ => self.wake.notify_all(),
            }
        }
    }

    /// Tries to enter the current job, unless it is the one that was `seen`.
    fn enter(&self, seen: &mut u64) -> Option<*const Job<'static>> {
        let mut gate = self.gate.load(Ordering::Acquire);
        while gate & OPEN != 0 && gate / JOB != *seen {
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    *seen = gate / JOB;
                    return Some(self.job.load(Ordering::Relaxed));
                }
                Err(now) => gate = now,
            }
        }
        *seen = gate / JOB;
        None
    }

    /// Waits for a job and enters it; `None` when the pool is dropped.
    fn next_job(&self, seen: &mut u64) -> Option<*const Job<'static>> {
        loop {
            self.await_change(*seen);
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            if let Some(job) = self.enter(seen) {
                return Some(job);
            }
        }
    }

    /// Spins, then sleeps, until the gate counts another job than the one that was seen.
    fn await_change(&self, seen: u64) {
        let changed = || self.gate.load(Ordering::SeqCst) / JOB != seen || self.stop.load(Ordering::SeqCst);
        let mut spins = 0;
        while spins < if self.runs.load(Ordering::Relaxed) > 0 { SPINS_IN_RUN } else { SPINS } {
            if changed() {
                return;
            }
            spins += 1;
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !changed() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
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
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker can't panic outside of a task, whose panic is caught.
            let _ = worker.join();
        }
    }
}

fn worker(shared: &Shared, index: usize) {
    let mut seen = 0;
    while let Some(job) = shared.next_job(&mut seen) {
        // SAFETY: the job was entered through the open gate, so `Pool::run` waits in `retire` until `left` counts this
        // worker too.
        let job = unsafe { &*job };
        job.work(index);
        job.left.fetch_add(1, Ordering::SeqCst);
        // The job may be gone by now.
        if shared.waits.load(Ordering::SeqCst) {
            drop(lock(&shared.sleep));
            shared.done.notify_all();
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
    fn claims_its_own_share_first_and_helps_then() {
        let (shares, mut mine, mut other) = (Shares::new(10, 2), 0, 0);
        assert_eq!(shares.claim(1, &mut other), Some(5));
        let rest: Vec<usize> = std::iter::from_fn(|| shares.claim(0, &mut mine)).collect();
        assert_eq!(rest, [0, 1, 2, 3, 4, 6, 7, 8, 9]);
        assert_eq!(shares.claim(1, &mut other), None);
        for (tasks, threads) in [(3, 2), (1, 4), (0, 3), (100, 20)] {
            let (shares, mut at) = (Shares::new(tasks, threads), 0);
            let mut all: Vec<usize> = std::iter::from_fn(|| shares.claim(threads - 1, &mut at)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..tasks).collect::<Vec<_>>());
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
