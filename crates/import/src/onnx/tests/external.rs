use std::fs;

use narrowbit_tensor::Tensor as Array;

use super::super::{ExternalData, SaveOptions, external_files, load, save, stage};
use super::*;

fn external(entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(k, v): &(&str, &str)| StringStringEntryProto { key: Some(k.to_string()), value: Some(v.to_string()) };
    TensorProto {
        external_data: entries.iter().map(entry).collect(),
        data_location: Some(1),
        raw_data: None,
        ..floats("w", &[2], &[])
    }
}

fn with_initializer(t: TensorProto) -> ModelProto {
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])], &["x"], &["y"]);
    g.initializer.push(t);
    model(g)
}

#[test]
fn reads_external_data_at_an_offset() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = vec![0u8; 64];
    data.extend([1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
    fs::write(dir.path().join("w.bin"), data).unwrap();
    let m = with_initializer(external(&[("location", "w.bin"), ("offset", "64"), ("length", "8")]));
    fs::write(dir.path().join("m.onnx"), m.encode_to_vec()).unwrap();
    let m = load(dir.path().join("m.onnx")).unwrap();
    let w = m.graph.constant(m.graph.value_named("w").unwrap()).unwrap();
    assert_eq!(*w, Array::vector(vec![1.5f32, -2.0]));
}

#[test]
fn names_each_file_of_external_data_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = with_initializer(external(&[("location", "w.bin")]));
    let more = [("v", "./w.bin"), ("u", "other.bin")]
        .map(|(name, location)| TensorProto { name: Some(name.into()), ..external(&[("location", location)]) });
    m.graph.as_mut().unwrap().initializer.extend(more);
    fs::write(dir.path().join("m.onnx"), m.encode_to_vec()).unwrap();
    for file in ["w.bin", "other.bin", "m.onnx.data"] {
        fs::write(dir.path().join(file), [0u8; 8]).unwrap();
    }
    let found = external_files(dir.path().join("m.onnx")).unwrap();
    assert_eq!(found, [dir.path().join("other.bin"), dir.path().join("w.bin")]);
}

#[test]
fn puts_a_staged_model_in_place_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let weight = Array::new([2, 256], vec![0.25f32; 512]).unwrap();
    let mut t = floats("w", &[2, 256], &[]);
    t.raw_data = Some(weight.bytes().clone());
    let m = super::super::parse(with_initializer(t).encode_to_vec(), None).unwrap();
    let options = SaveOptions { external_data: ExternalData::Always, ..SaveOptions::default() };
    let files = || fs::read_dir(dir.path()).unwrap().count();
    let staged = stage(&m, &path, &options).unwrap();
    let read = staged.load().unwrap();
    assert_eq!(read.graph.constant(read.graph.value_named("w").unwrap()), Some(&weight));
    assert!(!path.exists());
    drop((staged, read));
    assert_eq!(files(), 0, "nothing is left behind");
    stage(&m, &path, &options).unwrap().commit().unwrap();
    assert_eq!(files(), 2);
    assert_eq!(external_files(&path).unwrap(), [dir.path().join("m.onnx.data")]);
}

#[test]
fn refuses_external_data_outside_of_the_folder_or_behind_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(dir.path().join("secret"), [0u8; 8]).unwrap();
    fs::write(inner.join("short"), [0u8; 8]).unwrap();
    let absolute = dir.path().join("secret").display().to_string();
    let mut cases = vec![
        (vec![("location", "../secret")], "outside of the model's folder"),
        (vec![("location", absolute.as_str())], "outside of the model's folder"),
        (vec![("location", "")], "outside of the model's folder"),
        (vec![("location", "short"), ("offset", "4")], "behind the end"),
        (vec![("location", "short"), ("offset", "18446744073709551615")], "behind the end"),
        (vec![("location", "short"), ("length", "4")], "needs 8 bytes"),
        (vec![("location", "short"), ("offset", "-4")], "no number"),
        (vec![("offset", "4")], "without a location"),
        (vec![("location", "missing")], "missing"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.path().join("secret"), inner.join("link")).unwrap();
        cases.push((vec![("location", "link")], "leads out of the model's folder"));
    }
    for (entries, what) in cases {
        fs::write(inner.join("m.onnx"), with_initializer(external(&entries)).encode_to_vec()).unwrap();
        let text = load(inner.join("m.onnx")).unwrap_err().to_string();
        assert!(text.contains(what), "{entries:?}: {text}");
    }
    let text = parse(&with_initializer(external(&[("location", "short")]))).unwrap_err().to_string();
    assert!(text.contains("folder is not known"), "{text}");
}

#[test]
fn writes_external_data_aligned_and_shared() {
    let dir = tempfile::tempdir().unwrap();
    let big = Array::vector(vec![2.5f32; 5000]);
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])], &["x"], &["y"]);
    g.initializer.push(floats("w", &[2], &[1.0, 2.0]));
    let mut m = parse(&model(g)).unwrap();
    m.graph.add_const("first", big.clone());
    m.graph.add_const("second", big.clone());
    m.graph.add_const("third", Array::vector(vec![1i64; 300]));
    let path = dir.path().join("m.onnx");
    let options = SaveOptions { external_data: ExternalData::Always, ..SaveOptions::default() };
    save(&m, &path, &options).unwrap();
    let data = fs::read(dir.path().join("m.onnx.data")).unwrap();
    assert_eq!(data.len(), 20032 + 2400, "one copy of the shared tensor, then the next 64-byte boundary");
    assert!(fs::metadata(&path).unwrap().len() < 2000);
    let again = load(&path).unwrap();
    let constant = |name: &str| again.graph.constant(again.graph.value_named(name).unwrap()).unwrap().clone();
    assert_eq!(constant("second"), big);
    assert_eq!(constant("w"), Array::vector(vec![1f32, 2.0]));
    // Over the very files that the model is mapped from.
    save(&again, &path, &options).unwrap();
    assert_eq!(fs::read(dir.path().join("m.onnx.data")).unwrap(), data);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "temporary files are left: {left:?}");
}

#[test]
fn leaves_the_old_file_when_the_new_one_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let m = parse(&model(graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]))).unwrap();
    let text = save(&m, dir.path().join("no/such/m.onnx"), &SaveOptions::default()).unwrap_err().to_string();
    assert!(text.contains("no/such/m.onnx"), "{text}");
}

#[test]
#[ignore = "writes 2.2 GB"]
fn writes_models_over_2_gib_with_external_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = parse(&model(graph(vec![node("Relu", &["x"], &["y"])], &["x"], &["y"]))).unwrap();
    for i in 0..3 {
        m.graph.add_const(&format!("big{i}"), Array::zeros(narrowbit_tensor::DType::F32, [200 << 20]).unwrap());
    }
    assert!(super::super::to_bytes(&m).unwrap_err().to_string().contains("2 GiB"));
    let path = dir.path().join("m.onnx");
    let never = SaveOptions { external_data: ExternalData::Never, ..SaveOptions::default() };
    assert!(save(&m, &path, &never).is_err());
    save(&m, &path, &SaveOptions::default()).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 1000);
    assert_eq!(fs::metadata(dir.path().join("m.onnx.data")).unwrap().len(), 600 << 22);
    let again = load(&path).unwrap();
    assert_eq!(again.graph.constant(again.graph.value_named("big2").unwrap()).unwrap().len(), 200 << 20);
}
