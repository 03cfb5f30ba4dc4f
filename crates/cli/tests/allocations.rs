//! A session on warm memory allocates nothing. A test of its own: it counts what the whole process allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use narrowbit_import::onnx;
use narrowbit_passes::{SanitizeOptions, sanitize};
use narrowbit_runtime::{Options, Session, View, ViewMut};
use narrowbit_tensor::Tensor;

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn session(model: &Path, threads: usize) -> Session {
    let mut model = onnx::load(model).expect("it loads");
    sanitize(&mut model, &SanitizeOptions::default()).expect("it is clean");
    Session::new(model.graph, Options { threads, ..Options::default() }).expect("a session")
}

/// Runs with the allocations of the best of some rounds: with several threads, one may get a kind of task for the first
/// time in any of them.
fn least_allocations(session: &Session, input: &Tensor) -> usize {
    let want = session.run(std::slice::from_ref(input)).expect("it runs");
    let mut got: Vec<Vec<f32>> = want.iter().map(|t| vec![0.0; t.len()]).collect();
    let floats = input.to_f32s().expect("floats");
    let mut round = |runs: usize| {
        let before = COUNT.load(Ordering::Relaxed);
        for _ in 0..runs {
            let [out] = &mut got[..] else { panic!("the examples have one output") };
            let outputs = &mut [ViewMut::new(want[0].shape(), out)];
            session.run_into(&[View::new(input.shape(), &floats)], outputs).expect("it runs");
        }
        COUNT.load(Ordering::Relaxed) - before
    };
    round(50);
    let least = (0..10).map(|_| round(20)).min().unwrap_or(0);
    assert_eq!(got[0], want[0].to_f32s().expect("floats").as_ref());
    least
}

#[test]
fn allocates_nothing_on_warm_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, shape) in
        [("diabetes-mlp", vec![1, 10]), ("digits-cnn", vec![1, 1, 8, 8]), ("digits-vit", vec![1, 1, 8, 8])]
    {
        let example = root().join("examples").join(name);
        let float = example.join("model.onnx");
        let int8 = folder.path().join(format!("{name}.onnx"));
        let mut quantize = Command::new(env!("CARGO_BIN_EXE_narrowbit"));
        quantize.arg("quantize").arg(&float).arg("--data").arg(example.join("calib.npz")).arg("-o").arg(&int8);
        let done = quantize.args(["--quiet", "--no-check"]).output().expect("it starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let len = shape.iter().product::<usize>();
        let input =
            Tensor::new(shape, (0..len).map(|i| (i % 13) as f32 / 13.0).collect::<Vec<f32>>()).expect("a tensor");
        for model in [&float, &int8] {
            for threads in [1, 2] {
                let least = least_allocations(&session(model, threads), &input);
                assert_eq!(least, 0, "{} on {threads} threads", model.display());
            }
        }
    }
    refuses_views_that_do_not_fit();
}

/// Part of the one test of this file: what other tests allocate would be counted.
fn refuses_views_that_do_not_fit() {
    let session = session(&root().join("examples/diabetes-mlp/model.onnx"), 1);
    let (x, mut y) = ([0f32; 10], [0f32; 2]);
    let mut run = |shape: &[usize], of: usize, out: &[usize], to: usize| {
        let result = session.run_into(&[View::new(shape, &x[..of])], &mut [ViewMut::new(out, &mut y[..to])]);
        result.map_err(|e| e.to_string())
    };
    assert_eq!(run(&[1, 10], 10, &[1, 1], 1), Ok(()));
    assert!(run(&[1, 10], 9, &[1, 1], 1).is_err_and(|e| e.contains("View::new")));
    assert!(run(&[1, 10], 10, &[1, 1], 2).is_err_and(|e| e.contains("help: make a view")));
    assert!(run(&[1, 10], 10, &[1, 2], 2).is_err_and(|e| e.contains("[1, 1]")));
    assert!(run(&[10], 10, &[1, 1], 1).is_err());
    assert!(session.run_into(&[View::new(&[1, 10], &x)], &mut []).is_err());
}
