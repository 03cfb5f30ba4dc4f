//! A server in a few lines: threads that answer requests with one model, whose weights are in memory once.
//!
//! Each thread has a fork of the session with a pool of its own, and runs from and into its own memory: after its first
//! requests it allocates nothing. `cargo run --release --example server`.

use std::path::Path;
use std::sync::{Mutex, mpsc};

use narrowbit_import::onnx;
use narrowbit_passes::{SanitizeOptions, sanitize};
use narrowbit_runtime::{Options, Session, View, ViewMut};

/// What a client sends: an image of 8 × 8 grey values, and where the answer goes.
struct Request {
    image: Vec<f32>,
    answer: mpsc::Sender<usize>,
}

/// Threads that answer.
const WORKERS: usize = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    serve(Path::new("examples/digits-cnn/model.onnx"), 1000)
}

/// Serves so many requests.
pub fn serve(model: &Path, requests: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut model = onnx::load(model)?;
    sanitize(&mut model, &SanitizeOptions::default())?;
    let session = Session::new(model.graph, Options { threads: 1, ..Options::default() })?;
    let (client, queue) = mpsc::channel::<Request>();
    let queue = Mutex::new(queue);
    let counts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work(session.fork(1), &queue))).collect();
        let (answer, answers) = mpsc::channel();
        for i in 0..requests {
            let image = (0..64).map(|pixel| ((pixel * i) % 17) as f32).collect();
            // A queue that nobody reads any more: all workers failed, which they tell below.
            if client.send(Request { image, answer: answer.clone() }).is_err() {
                break;
            }
        }
        // Without clients, the queue ends.
        drop((client, answer));
        let mut counts = [0usize; 10];
        answers.iter().for_each(|digit| counts[digit] += 1);
        let served: Result<usize, String> =
            workers.into_iter().map(|w| w.join().map_err(|_| "a worker panicked".to_owned())?).sum();
        served.map(|served| (served, counts))
    });
    let (served, counts) = counts?;
    println!("{served} requests; digits seen: {counts:?}");
    Ok(())
}

/// Answers requests until there are no more; the number of them.
fn work(session: Session, queue: &Mutex<mpsc::Receiver<Request>>) -> Result<usize, String> {
    let (mut scores, mut served) = ([0f32; 10], 0);
    loop {
        // The lock is held while waiting, and not while computing.
        let Ok(request) = queue.lock().map_err(|e| e.to_string())?.recv() else { return Ok(served) };
        let image = View::new(&[1, 1, 8, 8], &request.image);
        session.run_into(&[image], &mut [ViewMut::new(&[1, 10], &mut scores)]).map_err(|e| e.to_string())?;
        let best = (0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
        // The client may have gone: its answer is of no use then.
        let _ = request.answer.send(best);
        served += 1;
    }
}
