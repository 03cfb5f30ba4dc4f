//! Which array feeds which input, and what refusals say.

use bytes::Bytes;
use narrowbit_data::{DataOptions, Dataset, InputSpec, LabelKind, NpzWriter, Preprocess, write_npz};
use narrowbit_tensor::{DType, Tensor};

fn npz(arrays: Vec<(&str, Tensor)>) -> Bytes {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    write_npz(&path, arrays).unwrap();
    std::fs::read(path).unwrap().into()
}

fn open(arrays: Vec<(&str, Tensor)>, preprocess: &str) -> Dataset {
    let options = DataOptions { preprocess: Preprocess::from_toml(preprocess).unwrap(), ..DataOptions::default() };
    Dataset::from_bytes("x.npz", npz(arrays), &options).unwrap()
}

fn ramp(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::new(shape, (0..n).map(|v| v as u8).collect::<Vec<_>>()).unwrap()
}

fn floats(shape: &[usize]) -> Tensor {
    Tensor::new(shape, ramp(shape).to_f32s().unwrap().into_owned()).unwrap()
}

fn input(dims: &[Option<usize>]) -> InputSpec {
    InputSpec::new("input", DType::F32, dims)
}

const NCHW: [Option<usize>; 4] = [None, Some(3), Some(2), Some(5)];
const NHWC: [Option<usize>; 4] = [None, Some(2), Some(5), Some(3)];

fn first(data: &Dataset) -> Tensor {
    data.sample(0).unwrap().remove(0).1
}

fn error(data: Dataset, specs: &[InputSpec]) -> String {
    data.bind(specs).err().unwrap().to_string()
}

#[test]
fn turns_images_only_where_the_layouts_differ() {
    let turned = first(&open(vec![("images", ramp(&[2, 2, 5, 3]))], "").bind(&[input(&NCHW)]).unwrap());
    assert_eq!(turned.shape(), [1, 3, 2, 5]);
    assert_eq!(turned.to_f64s().unwrap()[..3], [0.0, 3.0, 6.0]);
    for (shape, spec) in [([2, 3, 2, 5], NCHW), ([2, 2, 5, 3], NHWC)] {
        for array in [ramp(&shape), floats(&shape)] {
            let kept = first(&open(vec![("a", array)], "").bind(&[input(&spec)]).unwrap());
            assert_eq!(kept.to_f64s().unwrap()[..3], [0.0, 1.0, 2.0], "{shape:?}");
        }
    }
    let gray =
        first(&open(vec![("a", ramp(&[2, 2, 5]))], "").bind(&[input(&[None, Some(1), Some(2), Some(5)])]).unwrap());
    assert_eq!(gray.shape(), [1, 1, 2, 5]);
    // A cube fits both ways: 8-bit pixels are taken channels last, floats as they are.
    let cube = [None, Some(3), Some(3), Some(3)];
    let bytes = first(&open(vec![("a", ramp(&[1, 3, 3, 3]))], "").bind(&[input(&cube)]).unwrap());
    assert_eq!(bytes.to_f64s().unwrap()[1], 3.0);
    let float = first(&open(vec![("a", floats(&[1, 3, 3, 3]))], "").bind(&[input(&cube)]).unwrap());
    assert_eq!(float.to_f64s().unwrap()[1], 1.0);
}

#[test]
fn turns_floats_by_the_layout_where_the_model_leaves_it_open() {
    let open_dims = [None, None, None, None];
    let turned =
        first(&open(vec![("a", floats(&[1, 5, 7, 3]))], "layout = 'nchw'").bind(&[input(&open_dims)]).unwrap());
    assert_eq!(turned.shape(), [1, 3, 5, 7]);
    let kept = first(&open(vec![("a", floats(&[1, 3, 5, 7]))], "layout = 'nchw'").bind(&[input(&open_dims)]).unwrap());
    assert_eq!(kept.shape(), [1, 3, 5, 7]);
    let kept = first(&open(vec![("a", floats(&[1, 5, 7, 3]))], "").bind(&[input(&open_dims)]).unwrap());
    assert_eq!(kept.shape(), [1, 5, 7, 3]);
}

#[test]
fn normalises_float_images_too_when_told() {
    let data = open(vec![("a", floats(&[2, 3, 2, 5]))], "scale = 2\nmean = [1, 2, 3]");
    let t = first(&data.bind(&[input(&NCHW)]).unwrap()).to_f64s().unwrap();
    assert_eq!((t[0], t[10], t[20]), (-1.0, 18.0, 37.0));
    let data = open(vec![("a", floats(&[2, 7]))], "scale = 2\noffset = 1");
    let t = first(&data.bind(&[input(&[None, Some(7)])]).unwrap()).to_f64s().unwrap();
    assert_eq!(t[3], 7.0);
}

#[test]
fn casts_token_ids_by_name_and_keeps_named_masks_as_inputs() {
    let ids = Tensor::new([3, 4], (0..12i64).collect::<Vec<_>>()).unwrap();
    let mask = Tensor::new([3, 4], vec![1i32; 12]).unwrap();
    let specs = [InputSpec::new("mask", DType::I64, [None, None]), InputSpec::new("ids", DType::I32, [None, None])];
    let data = open(vec![("ids", ids), ("mask", mask)], "").bind(&specs).unwrap();
    let batch = data.batch(1..3).unwrap();
    assert_eq!((batch.inputs[0].0.as_str(), batch.inputs[0].1.dtype()), ("mask", DType::I64));
    assert_eq!(batch.inputs[1].1.to_i64s().unwrap(), (4..12).collect::<Vec<_>>());
    assert!(batch.labels.is_none());
    assert_eq!(data.describe().len(), 2);
}

#[test]
fn takes_unnamed_arrays_in_order() {
    let specs = [InputSpec::new("a", DType::F32, [None, Some(2)]), InputSpec::new("b", DType::F32, [None, Some(3)])];
    let data = open(vec![("arr_0", floats(&[4, 2])), ("arr_1", floats(&[4, 3]))], "").bind(&specs).unwrap();
    assert_eq!(data.batch(0..4).unwrap().inputs[1].1.shape(), [4, 3]);
}

#[test]
fn says_what_does_not_fit_and_what_to_do() {
    let e = error(open(vec![("a", floats(&[2, 7]))], ""), &[input(&NCHW)]);
    assert!(e.contains("\"a\"") && e.contains("[7]") && e.contains("\"input\"") && e.contains("[3, 2, 5]"), "{e}");
    let both = [InputSpec::new("a", DType::F32, [None, Some(7)]), InputSpec::new("zz", DType::F32, [None, Some(7)])];
    let e = error(open(vec![("a", floats(&[2, 7]))], ""), &both);
    assert!(e.contains("zz") && e.contains("[\"a\"]"), "{e}");
    let e = error(open(vec![("a", floats(&[2, 7])), ("zz", floats(&[3, 7]))], ""), &both);
    assert!(e.contains("3 samples"), "{e}");
    let e = error(
        open(vec![("ids", Tensor::new([2, 2], vec![1i64; 4]).unwrap())], "scale = 2"),
        &[InputSpec::new("ids", DType::I64, [None, None])],
    );
    assert!(e.contains("no input is an image"), "{e}");
    let e =
        open(vec![("a", ramp(&[1, 9, 9, 3]))], "").bind(&[input(&NCHW)]).unwrap().sample(0).unwrap_err().to_string();
    assert!(e.contains("--resize 5x2"), "{e}");
    let e = error(open(vec![("a", ramp(&[1, 2, 5, 3]))], "channels = 'gray'"), &[input(&NCHW)]);
    assert!(e.contains("gray"), "{e}");
    let e = error(open(vec![("a", floats(&[0, 7]))], ""), &[input(&[None, Some(7)])]);
    assert!(e.contains("no samples"), "{e}");
}

#[test]
fn refuses_geometry_without_an_image() {
    let e = error(open(vec![("a", floats(&[2, 7]))], "scale = 2\nresize = 9"), &[input(&[None, Some(7)])]);
    assert!(e.contains("no input is an image"), "{e}");
}

#[test]
fn finds_values_that_are_not_finite() {
    let mut values = vec![0f32; 12];
    values[7] = f32::NAN;
    let array = Tensor::new([4, 3], values).unwrap();
    let data = open(vec![("a", array.clone())], "").bind(&[input(&[None, Some(3)])]).unwrap();
    let e = data.batch(1..4).unwrap_err().to_string();
    assert!(e.contains("\"a\", sample 2") && e.contains("element 1 is NaN"), "{e}");
    let options = DataOptions { check_finite: false, ..DataOptions::default() };
    let data =
        Dataset::from_bytes("x.npz", npz(vec![("a", array)]), &options).unwrap().bind(&[input(&[None, Some(3)])]);
    assert!(data.unwrap().batch(1..4).is_ok());
}

#[test]
fn resizes_masks_with_their_images() {
    let masks = Tensor::new([1, 2, 2], vec![1u8, 2, 3, 255]).unwrap();
    let data = open(vec![("images", ramp(&[1, 2, 2, 3])), ("masks", masks)], "resize = '4x4'\ncrop = '4x2'");
    let data = data.bind(&[input(&[None, Some(3), Some(2), Some(4)])]).unwrap();
    assert_eq!(data.labels().unwrap().kind(), LabelKind::Mask);
    let batch = data.batch(0..1).unwrap();
    assert_eq!(batch.labels.unwrap(), Tensor::new([1, 2, 4], vec![1u8, 1, 2, 2, 3, 3, 255, 255]).unwrap());
}

#[test]
fn draws_random_samples_that_repeat() {
    let specs = [
        InputSpec { vocabulary: Some(100), ..InputSpec::new("ids", DType::I64, [None, None]) },
        InputSpec::new("attention_mask", DType::I64, [None, None]),
        InputSpec::new("pixels", DType::F32, [None, Some(3), None, None]),
    ];
    let data = Dataset::random(&specs, 5, 9).unwrap();
    assert!(data.is_random() && data.len() == 5);
    let batch = data.batch(1..3).unwrap();
    assert_eq!(batch.inputs[0].1.shape(), [2, 32]);
    assert!(batch.inputs[0].1.to_i64s().unwrap().iter().all(|v| (0..100).contains(v)));
    assert!(batch.inputs[1].1.to_i64s().unwrap().iter().all(|&v| v == 1));
    assert_eq!(batch.inputs[2].1.shape(), [2, 3, 224, 224]);
    let again = Dataset::random(&specs, 5, 9).unwrap();
    assert_eq!(again.sample(2).unwrap()[0].1.bytes()[..], batch.inputs[0].1.bytes()[32 * 8..]);
    assert_ne!(Dataset::random(&specs, 5, 10).unwrap().sample(2).unwrap(), again.sample(2).unwrap());
}

#[test]
fn appends_results_without_dimensions_as_a_vector() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.npz");
    let mut w = NpzWriter::create(&path).unwrap();
    (0..3).for_each(|i| w.append("loss", &Tensor::scalar(i as f32)).unwrap());
    assert!(w.append("loss", &Tensor::scalar(1i64)).is_err());
    w.finish().unwrap();
    let data = Dataset::open(&path, &DataOptions::default()).unwrap();
    assert_eq!(data.batch(0..3).unwrap().inputs[0].1, Tensor::vector(vec![0f32, 1.0, 2.0]));
}

#[test]
fn appends_rows_to_several_arrays_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.npz");
    for compressed in [false, true] {
        let mut w = NpzWriter::create(&path).unwrap();
        if compressed {
            w = w.compressed();
        }
        for i in 0..3usize {
            w.append("a", &floats(&[i + 1, 2])).unwrap();
            w.append("b", &ramp(&[1, 3])).unwrap();
        }
        assert!(w.append("a", &floats(&[1, 3])).is_err());
        assert!(w.add("a", &floats(&[1])).is_err());
        w.add("c", &Tensor::scalar(2.5f64)).unwrap();
        w.finish().unwrap();
        let all = Dataset::open(&path, &DataOptions::default()).unwrap();
        let shapes: Vec<_> = all.arrays().iter().map(|(n, d, s)| (n.to_string(), *d, s.unwrap().to_vec())).collect();
        assert_eq!(shapes[0], ("a".to_owned(), DType::F32, vec![2]));
        assert_eq!(all.len(), 6);
    }
    let kept = std::fs::read(&path).unwrap();
    let mut w = NpzWriter::create(&path).unwrap();
    w.append("a", &floats(&[1, 2])).unwrap();
    drop(w);
    assert_eq!(std::fs::read(&path).unwrap(), kept);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(NpzWriter::create(dir.path().join("no/such/x.npz")).is_err());
}

#[test]
fn flattens_for_a_flat_input_and_scales() {
    let data = open(vec![("images", ramp(&[2, 2, 5, 1]))], "scale = 0.5").bind(&[input(&[None, Some(10)])]).unwrap();
    let t = first(&data);
    assert_eq!((t.shape(), t.to_f64s().unwrap()[3]), (&[1, 10][..], 1.5));
}

#[test]
fn reads_samples_that_hold_nothing_but_not_any_number_of_them() {
    let read = |n: usize, row: usize| {
        let arrays = vec![("ids", ramp(&[3, 2])), ("cache", Tensor::zeros(DType::F32, [n, row, 4]).unwrap())];
        Dataset::from_bytes("x.npz", npz(arrays), &DataOptions::default())
    };
    let ids = InputSpec::new("ids", DType::F32, [None, Some(2)]);
    let data = read(3, 0).unwrap().bind(&[ids, InputSpec::new("cache", DType::F32, [None, None, Some(4)])]).unwrap();
    let batch = data.batch(1..3).unwrap();
    assert_eq!(batch.inputs.iter().map(|(_, t)| t.shape().to_vec()).collect::<Vec<_>>(), [vec![2, 2], vec![2, 0, 4]]);
    let e = read(1 << 21, 0).err().unwrap().to_string();
    assert!(e.contains("hold nothing"), "{e}");
}

#[test]
fn can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Dataset>();
}
