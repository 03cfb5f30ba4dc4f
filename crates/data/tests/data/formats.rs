//! Every format of the crate's page, from the small files that `fixtures/make.py` makes.

use std::path::{Path, PathBuf};

use narrowbit_data::{DataError, DataOptions, Dataset, InputSpec, LabelKind, Labels, Limits, Preprocess, Split};
use narrowbit_tensor::{DType, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(name: &str, options: &DataOptions) -> Dataset {
    Dataset::open(fixture(name), options).unwrap()
}

/// `numpy.arange(60).reshape(5, 4, 3)`, rows `range`.
fn values(range: std::ops::Range<usize>) -> Vec<f64> {
    (range.start * 12..range.end * 12).map(|v| v as f64).collect()
}

fn one(data: &Dataset, range: std::ops::Range<usize>) -> Tensor {
    data.batch(range).unwrap().inputs.remove(0).1
}

fn spec(name: &str, dtype: DType, sample: &[usize]) -> InputSpec {
    let mut shape = vec![None];
    shape.extend(sample.iter().map(|&d| Some(d)));
    InputSpec::new(name, dtype, shape)
}

#[test]
fn reads_arrays_of_every_container() {
    for name in ["root.h5", "root.safetensors", "fortran.npy", "deflated.npz"] {
        let data = open(name, &DataOptions::default());
        assert_eq!(data.len(), 5, "{name}");
        for range in [0..5, 3..4, 1..3, 4..5, 0..1] {
            let t = one(&data, range.clone());
            assert_eq!(t.shape(), [range.len(), 4, 3], "{name}");
            assert_eq!(t.to_f64s().unwrap(), values(range), "{name}");
        }
        assert!(matches!(data.batch(4..6), Err(DataError::Index { index: 5, len: 5 })));
        let bound = data.bind(&[spec("input", DType::F64, &[4, 3])]);
        // root.h5 holds bytes, which a 2-D input does not take for an image: they are cast.
        let bound = bound.unwrap();
        assert_eq!(one(&bound, 2..3).dtype(), DType::F64, "{name}");
        if name != "fortran.npy" {
            assert_eq!(bound.batch(1..4).unwrap().labels.unwrap(), Tensor::vector(vec![1i64, 2, 3]), "{name}");
        }
    }
}

#[test]
fn concatenates_arrays_without_names() {
    let data = open("parts.npz", &DataOptions::default());
    assert_eq!((data.len(), data.names()), (7, vec![""]));
    let t = one(&data, 4..6).to_f64s().unwrap();
    assert_eq!((t[0], t[12]), (48.0, 100.0));
    let data = data.bind(&[spec("x", DType::F32, &[4, 3])]).unwrap();
    assert_eq!(data.len(), 7);
}

#[test]
fn reads_all_hdf5_element_types() {
    let data = open("types.h5", &DataOptions::default());
    let batch = data.batch(3..5).unwrap();
    for (name, t) in batch.inputs {
        let want: Vec<f64> = values(3..5).into_iter().map(|v| if name == "bool" { v % 2.0 } else { v }).collect();
        assert_eq!(t.to_f64s().unwrap(), want, "{name}");
    }
}

#[test]
fn reads_hdf5_groups_with_one_sample_per_member() {
    let test = open("items.h5", &DataOptions { split: Split::Test, ..DataOptions::default() });
    assert_eq!(one(&test, 1..3), Tensor::new([2, 2, 2], [[11f32; 4], [12.0; 4]].concat()).unwrap());
    // The calibration samples grow: batches end where the shape changes.
    let varying =
        open("items.h5", &DataOptions::default()).bind(&[InputSpec::new("x", DType::F32, [None, Some(2), None])]);
    let shapes: Vec<_> = varying.unwrap().batches(2).map(|b| b.unwrap().inputs[0].1.shape().to_vec()).collect();
    assert_eq!(shapes, [[1, 2, 2], [1, 2, 3], [1, 2, 4]]);
}

#[test]
fn reads_hdf5_groups_of_image_and_mask() {
    let options = DataOptions { split: Split::Test, samples: Some(10), ..DataOptions::default() };
    let data = open("pairs.h5", &options).bind(&[spec("input", DType::F32, &[3, 4, 6])]).unwrap();
    assert_eq!((data.len(), data.labels().unwrap().kind()), (10, LabelKind::Mask));
    let sizes: Vec<usize> = data.batches(4).map(|b| b.unwrap().indices.len()).collect();
    assert_eq!(sizes, [4, 4, 2]);
    let batch = data.batch(5..6).unwrap();
    assert_eq!(batch.inputs[0].1, Tensor::new([1, 3, 4, 6], vec![105f32; 72]).unwrap());
    assert_eq!(batch.labels.unwrap(), Tensor::new([1, 4, 6], vec![2u8; 24]).unwrap());
}

#[test]
fn names_the_groups_when_the_split_is_missing() {
    let bytes = std::fs::read(fixture("items.h5")).unwrap();
    // "test" → "tost" in the group's name heap.
    let at = bytes.windows(5).position(|w| w == b"test\0").unwrap();
    let mut bytes = bytes;
    bytes[at + 1] = b'o';
    let options = DataOptions { split: Split::Test, ..DataOptions::default() };
    let e = Dataset::from_bytes("x.h5", bytes.into(), &options).err().unwrap().to_string();
    assert!(e.contains("\"test\"") && e.contains("tost"), "{e}");
}

#[test]
fn decodes_pictures_and_finds_labels_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    for (class, file) in [("b_dog", "scene.png"), ("a_cat", "scene.JPG"), ("b_dog", "gray.png")] {
        std::fs::create_dir_all(dir.path().join(class)).unwrap();
        std::fs::copy(fixture(file), dir.path().join(class).join(file)).unwrap();
    }
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let preprocess = Preprocess::from_json(r#"{"layout": "NHWC", "crop": "2x1"}"#).unwrap();
    let options = DataOptions { preprocess, ..DataOptions::default() };
    let data = Dataset::open(dir.path(), &options).unwrap().bind(&[spec("x", DType::F32, &[1, 2, 3])]).unwrap();
    assert_eq!(data.labels().unwrap().class_names(), ["a_cat", "b_dog"]);
    let all = data.batch(0..3).unwrap();
    assert_eq!(all.labels.unwrap(), Tensor::vector(vec![0i64, 1, 1]));
    // The scene is 53 × 37: (x·4, y·6, (x + y)·2) at x = 26, 27 (margin 25.5 rounds to 26) and y = 18.
    let v = all.inputs[0].1.to_f64s().unwrap();
    assert_eq!(v[12..18], [104.0, 108.0, 88.0, 108.0, 108.0, 90.0], "scene.png");
    assert_eq!(v[6..12], [104.0, 104.0, 104.0, 108.0, 108.0, 108.0], "gray.png");
    // JPEG at quality 95 stays within a few levels.
    assert!(v[..6].iter().zip(&v[12..18]).all(|(a, b)| (a - b).abs() <= 4.0), "{v:?}");

    let alone = DataOptions { threads: 1, ..options.clone() };
    let alone = Dataset::open(dir.path(), &alone).unwrap().bind(&[spec("x", DType::F32, &[1, 2, 3])]).unwrap();
    assert_eq!(one(&alone, 0..3), one(&data, 0..3));

    std::fs::write(dir.path().join("labels.csv"), "file,label\nb_dog/gray.png,7\na_cat/scene.JPG,3\n").unwrap();
    let data = Dataset::open(dir.path(), &options).unwrap().bind(&[spec("x", DType::F32, &[1, 2, 3])]).unwrap();
    assert_eq!(data.batch(0..2).unwrap().labels.unwrap(), Tensor::vector(vec![7i64, 3]));
    std::fs::write(dir.path().join("labels.csv"), "file,label\n../x.png,7\n").unwrap();
    assert!(Dataset::open(dir.path(), &options).is_err());
}

#[test]
fn reads_a_folder_of_numbered_samples() {
    let dir = tempfile::tempdir().unwrap();
    for i in [0i64, 1, 2, 10] {
        let ids = Tensor::new([1, (i % 2) as usize + 2], vec![i; (i % 2) as usize + 2]).unwrap();
        let arrays = [("ids", ids), ("label", Tensor::scalar(i))];
        narrowbit_data::write_npz(dir.path().join(format!("sample{i}.npz")), arrays).unwrap();
    }
    let data = Dataset::open(dir.path(), &DataOptions::default()).unwrap();
    let data = data.bind(&[InputSpec::new("ids", DType::I32, [None, None])]).unwrap();
    let batches: Vec<_> = data.batches(8).map(Result::unwrap).collect();
    let shapes: Vec<_> = batches.iter().map(|b| b.inputs[0].1.shape().to_vec()).collect();
    assert_eq!(shapes, [[1, 2], [1, 3], [2, 2]]);
    assert_eq!(batches[2].labels.as_ref().unwrap(), &Tensor::vector(vec![2i64, 10]));
    assert_eq!(batches[2].inputs[0].1.to_i64s().unwrap(), [2, 2, 10, 10]);
}

#[test]
fn takes_labels_from_a_file_and_refuses_a_wrong_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("y.txt");
    std::fs::write(&path, "3\n1\n4\n1\n5\n").unwrap();
    let options = DataOptions { labels: Some(path.clone()), ..DataOptions::default() };
    let x = [spec("x", DType::F32, &[4, 3])];
    let data = open("root.safetensors", &options).bind(&x).unwrap();
    assert_eq!(data.batch(2..5).unwrap().labels.unwrap(), Tensor::vector(vec![4i64, 1, 5]));
    std::fs::write(&path, "3\n1\n").unwrap();
    let e = open("root.safetensors", &options).bind(&x).err().unwrap().to_string();
    assert!(e.contains("2 labels for 5 samples"), "{e}");
    let npy = dir.path().join("scores.npy");
    narrowbit_data::write_npy(&npy, &Tensor::vector(vec![0.5f64, 1.0])).unwrap();
    let labels = Labels::open(&npy, &Limits::default()).unwrap();
    assert_eq!((labels.kind(), labels.read(0, 2).unwrap()), (LabelKind::Score, Tensor::vector(vec![0.5f32, 1.0])));
}

#[test]
fn shuffles_and_limits_by_seed() {
    let options = |seed| DataOptions { shuffle: true, seed, samples: Some(3), ..DataOptions::default() };
    let indices = |seed| open("deflated.npz", &options(seed)).batch(0..3).unwrap().indices;
    // Fisher–Yates over SplitMix64 with seed 0; part of the contract.
    assert_eq!(indices(0), [4, 2, 1]);
    let data = open("deflated.npz", &options(0));
    assert_eq!(one(&data, 1..2).to_f64s().unwrap(), values(2..3));
    assert_eq!(data.len(), 3);
}

/// All rows of an array of `resize.npz`.
fn pillow(name: &str, sample: &[usize]) -> Vec<f64> {
    let data = open("resize.npz", &DataOptions::default()).bind(&[spec(name, DType::U8, sample)]).unwrap();
    one(&data, 0..data.len()).to_f64s().unwrap()
}

/// Our result for the image of `resize.npz`, channels last.
fn ours(options: &str) -> Vec<f64> {
    let pixels: Vec<u8> = pillow("image", &[53, 3]).into_iter().map(|v| v as u8).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npz");
    narrowbit_data::write_npz(&path, [("images", Tensor::new([1, 37, 53, 3], pixels).unwrap())]).unwrap();
    let preprocess = Preprocess::from_toml(options).unwrap();
    let input = InputSpec::new("input", DType::F32, [None; 4]);
    let data = Dataset::open(&path, &DataOptions { preprocess, ..DataOptions::default() }).unwrap().bind(&[input]);
    one(&data.unwrap(), 0..1).to_f64s().unwrap()
}

#[test]
fn resizes_to_the_bit_as_pillow_does() {
    for filter in ["nearest", "bilinear", "bicubic", "lanczos", "area"] {
        for size in ["20x15", "53x20", "80x37", "71x64"] {
            let width = size[..2].parse().unwrap();
            let want = pillow(&format!("{filter}_{size}"), &[width, 3]);
            let have = ours(&format!("layout = 'nhwc'\nresize = '{size}'\nfilter = '{filter}'"));
            assert!(want == have, "{filter} {size}");
        }
    }
    assert!(pillow("gray", &[53]) == ours("channels = 'gray'"), "luma");
}

#[test]
fn interpolates_without_antialias_when_asked() {
    let up = ours("layout = 'nhwc'\nresize = '106x74'\nfilter = 'bilinear-noaa'");
    // Enlarging, antialias changes nothing: both agree to the rounding of one pass against two.
    let with = ours("layout = 'nhwc'\nresize = '106x74'\nfilter = 'bilinear'");
    assert!(up.iter().zip(&with).all(|(a, b)| (a - b).abs() <= 1.0));
    let down = ours("layout = 'nhwc'\nresize = '20x15'\nfilter = 'bilinear-noaa'");
    let with = ours("layout = 'nhwc'\nresize = '20x15'\nfilter = 'bilinear'");
    assert!(down.iter().zip(&with).any(|(a, b)| (a - b).abs() > 30.0));
}
