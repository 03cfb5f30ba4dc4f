use narrowbit_tensor::{DType, Tensor};

use super::super::source::Source;
use super::super::tensor;
use super::*;

fn read(t: TensorProto) -> std::result::Result<narrowbit_tensor::Tensor, String> {
    tensor::read(&Source::new("test", None), "tensor \"t\"", t).map_err(|e| e.to_string())
}

fn of(dtype: DType, dims: &[i64]) -> TensorProto {
    TensorProto { dims: dims.to_vec(), data_type: Some(dtype.to_onnx()), ..Default::default() }
}

#[test]
fn reads_typed_fields_of_each_element_type() {
    let int32 =
        |d: DType, dims: &[i64], v: &[i32]| read(TensorProto { int32_data: v.to_vec(), ..of(d, dims) }).unwrap();
    assert_eq!(int32(DType::I32, &[2], &[-1, 7]).to_i64s().unwrap(), [-1, 7]);
    assert_eq!(int32(DType::I16, &[2], &[-300, 7]).to_i64s().unwrap(), [-300, 7]);
    assert_eq!(int32(DType::U16, &[1], &[65535]).to_i64s().unwrap(), [65535]);
    assert_eq!(int32(DType::I8, &[2], &[-128, 127]).to_i64s().unwrap(), [-128, 127]);
    assert_eq!(int32(DType::U8, &[1], &[255]).to_i64s().unwrap(), [255]);
    assert_eq!(int32(DType::Bool, &[3], &[0, 1, 5]).bools().unwrap(), [false, true, true]);
    assert_eq!(int32(DType::F16, &[1], &[0x3c00]).to_f64s().unwrap(), [1.0]);
    assert_eq!(int32(DType::Bf16, &[1], &[0x4000]).to_f64s().unwrap(), [2.0]);
    assert_eq!(int32(DType::F8E4M3Fn, &[1], &[0x38]).to_f64s().unwrap(), [1.0]);
    assert_eq!(int32(DType::I4, &[3], &[0x7f, 0x08]).to_i64s().unwrap(), [-1, 7, -8]);
    assert_eq!(int32(DType::U2, &[4], &[0b11100100]).to_i64s().unwrap(), [0, 1, 2, 3]);
    let t = read(TensorProto { uint64_data: vec![u64::MAX], ..of(DType::U64, &[1]) }).unwrap();
    assert_eq!(t.slice::<u64>().unwrap().as_ref(), [u64::MAX]);
    let t = read(TensorProto { uint64_data: vec![9], ..of(DType::U32, &[]) }).unwrap();
    assert_eq!(t.to_i64s().unwrap(), [9]);
    let t = read(TensorProto { double_data: vec![0.5], ..of(DType::F64, &[1]) }).unwrap();
    assert_eq!(t.to_f64s().unwrap(), [0.5]);
    let t = read(TensorProto { string_data: vec![b"ab".to_vec()], ..of(DType::String, &[1]) }).unwrap();
    assert_eq!(t.strings().unwrap(), ["ab"]);
    let t = read(TensorProto { float_data: vec![1.0, 2.0], ..of(DType::Complex64, &[1]) }).unwrap();
    assert_eq!(t.bytes().len(), 8);
}

#[test]
fn shares_raw_data_with_the_file() {
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])], &["x"], &["y"]);
    g.initializer.push(floats("w", &[1000], &[1.5; 1000]));
    let file = Bytes::from(model(g).encode_to_vec());
    let m = super::super::parse(file.clone(), None).unwrap();
    let w = m.graph.constant(m.graph.value_named("w").unwrap()).unwrap();
    let inside = file.as_ptr_range();
    assert!(inside.contains(&w.bytes().as_ptr()), "the initializer was copied");
}

#[test]
fn refuses_lying_sizes_and_absurd_shapes() {
    let raw = |dims: &[i64], n: usize| TensorProto { raw_data: Some(vec![0; n].into()), ..of(DType::F32, dims) };
    assert!(read(raw(&[3], 8)).unwrap_err().contains("takes 12 bytes, but 8 were given"));
    assert!(read(raw(&[-3], 12)).unwrap_err().contains("an extent is negative"));
    assert!(read(raw(&[i64::MAX, i64::MAX], 12)).is_err());
    assert!(read(of(DType::F32, &[1 << 40])).is_err());
    assert!(read(TensorProto { data_type: Some(99), ..of(DType::F32, &[]) }).unwrap_err().contains("type 99"));
    assert!(read(TensorProto { int32_data: vec![300], ..of(DType::U8, &[1]) }).unwrap_err().contains("do not fit u8"));
    assert!(read(TensorProto { string_data: vec![vec![0xff]], ..of(DType::String, &[1]) }).is_err());
}

#[test]
fn makes_sparse_initializers_dense() {
    let sparse = |dims: &[i64], at: &[i64], at_dims: &[i64]| SparseTensorProto {
        values: Some(floats("s", &[2], &[5.0, 6.0])),
        indices: Some(TensorProto { int64_data: at.to_vec(), ..of(DType::I64, at_dims) }),
        dims: dims.to_vec(),
    };
    let load = |s: SparseTensorProto| {
        let mut g = graph(vec![node("Add", &["x", "s"], &["y"])], &["x"], &["y"]);
        g.sparse_initializer.push(s);
        parse(&model(g)).map(|m| m.graph.constant(m.graph.value_named("s").unwrap()).unwrap().clone())
    };
    let want = Tensor::new([2, 2], vec![0f32, 5.0, 6.0, 0.0]).unwrap();
    assert_eq!(load(sparse(&[2, 2], &[1, 2], &[2])).unwrap(), want);
    assert_eq!(load(sparse(&[2, 2], &[0, 1, 1, 0], &[2, 2])).unwrap(), want);
    assert!(load(sparse(&[2, 2], &[1, 4], &[2])).is_err());
    assert!(load(sparse(&[2, 2], &[0, 3, 1, 0], &[2, 2])).is_err());
    assert!(load(sparse(&[1 << 20, 1 << 20], &[1, 2], &[2])).unwrap_err().to_string().contains("MiB"));
}
