//! Samples in the runs that a model takes: its batch axis, and runs that are filled up.

use bytes::Bytes;
use narrowbit_data::{BatchAxis, DataOptions, Dataset, Fill, InputSpec, Limits, RunSize, write_npz};
use narrowbit_tensor::{DType, Tensor};

fn open(arrays: Vec<(&str, Tensor)>, options: &DataOptions) -> Dataset {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    write_npz(&path, arrays).unwrap();
    let bytes: Bytes = std::fs::read(path).unwrap().into();
    Dataset::from_bytes("x.npz", bytes, options).unwrap()
}

fn bound(arrays: Vec<(&str, Tensor)>, specs: &[InputSpec]) -> Result<Dataset, String> {
    open(arrays, &DataOptions::default()).bind(specs).map_err(|e| e.to_string())
}

/// Elements with their place in the array.
fn ramp(shape: &[usize]) -> Tensor {
    Tensor::new(shape, (0..shape.iter().product::<usize>()).map(|v| v as f32).collect::<Vec<_>>()).unwrap()
}

fn spec(name: &str, dims: &[i64]) -> InputSpec {
    InputSpec::new(name, DType::F32, dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Vec<_>>())
}

/// The first element of each row of the first input, the number of samples, and those that fill up.
fn runs(data: &Dataset, size: usize, fill: Fill) -> Vec<(Vec<f64>, usize, usize)> {
    let one = |b: narrowbit_data::Batch| {
        let t = &b.inputs[0].1;
        let row = t.len() / t.shape()[0];
        let values = t.to_f64s().unwrap();
        (values.chunks(row).map(|r| r[0]).collect(), b.indices.len(), b.filled)
    };
    data.batches(size).filled(fill).map(|b| one(b.unwrap())).collect()
}

#[test]
fn fills_the_last_run_with_copies_that_are_told_of() {
    let data = bound(vec![("x", ramp(&[10, 1]))], &[spec("x", &[4, 1])]).unwrap();
    assert!(matches!(data.run_size(), RunSize::Fixed(4, s) if s.name == "x"));
    let (first, second) = ((vec![0.0, 1.0, 2.0, 3.0], 4, 0), (vec![4.0, 5.0, 6.0, 7.0], 4, 0));
    let last = runs(&data, 4, Fill::Last);
    assert_eq!(last, [first.clone(), second.clone(), (vec![8.0, 9.0, 9.0, 9.0], 2, 2)]);
    assert_eq!(runs(&data, 4, Fill::First), [first, second, (vec![8.0, 9.0, 0.0, 1.0], 2, 2)]);
    // Fewer samples than a run takes: each as often as any other, nearly.
    assert_eq!(runs(&data, 24, Fill::First)[0].0[10..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3].map(f64::from));
    assert_eq!(runs(&data, 5, Fill::Last).iter().map(|r| r.2).sum::<usize>(), 0);
}

#[test]
fn fills_up_where_the_shape_changes() {
    let data = tempfile::tempdir().unwrap();
    for (i, width) in [2, 2, 2, 3].into_iter().enumerate() {
        let sample = Tensor::new([width], vec![i as f32; width]).unwrap();
        narrowbit_data::write_npy(data.path().join(format!("{i}.npy")), &sample).unwrap();
    }
    let set = Dataset::open(data.path(), &DataOptions::default()).unwrap().bind(&[spec("x", &[2, -1])]).unwrap();
    for fill in [Fill::First, Fill::Last] {
        let found = runs(&set, 2, fill);
        assert_eq!(found, [(vec![0.0, 1.0], 2, 0), (vec![2.0, 2.0], 1, 1), (vec![3.0, 3.0], 1, 1)], "{fill:?}");
    }
}

#[test]
fn puts_samples_along_the_batch_axis() {
    let time_major = InputSpec { batch: BatchAxis::At(1), ..spec("x", &[3, -1, 2]) };
    for shape in [&[5, 3, 2][..], &[5, 3, 1, 2]] {
        let data = bound(vec![("x", ramp(shape))], std::slice::from_ref(&time_major)).unwrap();
        assert_eq!(data.run_size(), RunSize::Any);
        let batch = data.batch(1..3).unwrap();
        assert_eq!(batch.inputs[0].1.shape(), [3, 2, 2], "{shape:?}");
        // Sample 1 is 6 … 11, sample 2 is 12 … 17, and two numbers make a step.
        assert_eq!(batch.inputs[0].1.to_f64s().unwrap()[..8], [6., 7., 12., 13., 8., 9., 14., 15.]);
    }
    let error = bound(vec![("x", ramp(&[3, 5, 2]))], &[time_major]).err().unwrap();
    assert!(
        error.contains("f32[3, any, 2] lie along its axis 1") && error.contains("axis 0 counts samples"),
        "{error}"
    );
}

#[test]
fn gives_what_has_no_batch_axis_to_all_samples() {
    let specs = [spec("x", &[-1, 2]), spec("k", &[]), spec("t", &[2, 3])];
    let shared = vec![("x", ramp(&[5, 2])), ("k", Tensor::scalar(7f32)), ("t", ramp(&[2, 3]))];
    let each = vec![
        ("x", ramp(&[5, 2])),
        ("k", Tensor::vector(vec![7f32; 5])),
        ("t", Tensor::new([5, 2, 3], [0f32, 1., 2., 3., 4., 5.].repeat(5)).unwrap()),
    ];
    for arrays in [shared, each] {
        let data = bound(arrays, &specs).unwrap();
        assert_eq!((data.len(), data.run_size()), (5, RunSize::Any));
        let shapes = |b: narrowbit_data::Batch| b.inputs.iter().map(|(_, t)| t.shape().to_vec()).collect::<Vec<_>>();
        assert_eq!(shapes(data.batch(0..3).unwrap()), [vec![3, 2], vec![], vec![2, 3]]);
        assert_eq!(data.batch(2..4).unwrap().inputs[2].1.to_f64s().unwrap(), [0., 1., 2., 3., 4., 5.]);
    }
    let differing = vec![("x", ramp(&[5, 2])), ("k", ramp(&[5])), ("t", ramp(&[2, 3]))];
    let data = bound(differing, &specs).unwrap();
    assert_eq!(data.batch(3..4).unwrap().inputs[1].1.to_f64s().unwrap(), [3.0]);
    let error = data.batch(3..5).unwrap_err().to_string();
    assert!(error.contains("\"k\" (f32[]) has no batch axis, but samples 3 and 4 differ"), "{error}");
}

#[test]
fn lets_the_data_tell_a_model_without_a_batch_axis() {
    let image = [spec("x", &[3, 4, 5])];
    for shape in [&[6, 3, 4, 5][..], &[6, 1, 3, 4, 5]] {
        let data = bound(vec![("x", ramp(shape))], &image).unwrap();
        assert_eq!((data.len(), data.run_size()), (6, RunSize::One));
        assert_eq!(data.sample(2).unwrap()[0].1.shape(), [3, 4, 5]);
    }
    let pixels = Tensor::new([6, 4, 5, 3], vec![9u8; 360]).unwrap();
    let data = bound(vec![("x", pixels)], &image).unwrap();
    assert_eq!((data.sample(2).unwrap()[0].1.shape(), data.len()), (&[3, 4, 5][..], 6));
    // A batch of three gray images is one all the same.
    let data = bound(vec![("x", ramp(&[6, 4, 5]))], &image).unwrap();
    assert!(matches!(data.run_size(), RunSize::Fixed(3, _)));
}

#[test]
fn bounds_what_a_run_takes() {
    let options = DataOptions { limits: limits(1 << 20), ..DataOptions::default() };
    let data = open(vec![("x", ramp(&[2, 4]))], &options).bind(&[spec("x", &[1 << 40, 4])]).unwrap();
    let RunSize::Fixed(n, _) = data.run_size() else { panic!("the size is fixed") };
    let error = data.batches(n).filled(Fill::Last).next().unwrap().unwrap_err().to_string();
    assert!(error.contains("1099511627776 samples") && error.contains("help: export"), "{error}");
}

fn limits(read_bytes: usize) -> Limits {
    let mut limits = Limits::default();
    limits.read_bytes = read_bytes;
    limits
}

#[test]
fn bounds_random_runs() {
    let data = Dataset::random(&[spec("x", &[1 << 20, 4096])], 1 << 20, 0).unwrap();
    let error = data.batch(0..1 << 20).unwrap_err().to_string();
    assert!(error.contains("1048576 samples of shape [4096] exceed"), "{error}");
}

#[test]
fn random_samples_share_what_has_no_batch_axis() {
    let data = Dataset::random(&[spec("x", &[-1, 4]), spec("t", &[4, 2]), spec("k", &[])], 3, 0).unwrap();
    let shapes: Vec<_> = data.batch(0..3).unwrap().inputs.iter().map(|(_, t)| t.shape().to_vec()).collect();
    assert_eq!(shapes, [vec![3, 4], vec![4, 2], vec![]]);
}
