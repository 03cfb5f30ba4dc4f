//! Every operator with attributes and inputs that make no sense: an error, never a panic, in bounded memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use narrowbit_ir::{Attr, AttrMap, Datum, EvalCx, Fact, InferCx, TensorType, ValueType};
use narrowbit_ops::{Entry, entries};
use narrowbit_tensor::{DType, Tensor};
use narrowbit_testkit::hostile;
use narrowbit_testkit::random::Random;

const ROUNDS: usize = 1500;
/// An output may ask for more than this (up to the operators' own limit), but no input here asks for it by accident.
const MEMORY: usize = 2 << 30;

const INTS: &[&str] = &[
    "axis",
    "group",
    "keepdims",
    "stash_type",
    "sorted",
    "saturate",
    "p",
    "block_size",
    "bits",
    "to",
    "dtype",
    "upper",
    "rotary_embedding_dim",
    "quantize_axis",
    "gather_axis",
    "offset_group",
    "layout",
    "largest",
    "k",
    "batch_dims",
    "batch_axis",
    "time_axis",
    "start",
    "end",
    "size",
    "num_outputs",
    "num_heads",
    "kv_num_heads",
    "q_num_heads",
    "num_groups",
    "hidden_size",
    "blocksize",
    "transA",
    "transB",
    "transBatchA",
    "transBatchB",
    "channels_last",
    "ceil_mode",
    "count_include_pad",
    "align_corners",
    "exclusive",
    "reverse",
    "storage_order",
    "select_last_index",
    "noop_with_empty_axes",
    "allowzero",
    "is_causal",
    "interleaved",
    "unidirectional",
    "linear_before_reset",
    "output_height",
    "output_width",
    "sampling_ratio",
    "N",
    "K",
    "center_point_box",
    "size",
    "value_int",
    "size_2",
    "ignore_index",
    "sample_size",
    "new_axis",
    "training_mode",
    "antialias",
    "exclude_outside",
    "do_rotary",
    "qk_matmul_output_mode",
    "past_present_share_buffer",
    "max_skip_count",
    "min_gram_length",
    "input_forget",
];
const LISTS: &[&str] = &[
    "axes",
    "perm",
    "kernel_shape",
    "strides",
    "dilations",
    "pads",
    "output_padding",
    "output_shape",
    "split",
    "starts",
    "ends",
    "steps",
    "shape",
    "pooled_shape",
    "qkv_hidden_sizes",
    "scan_input_axes",
    "value_ints",
];
const FLOATS: &[&str] = &[
    "epsilon",
    "alpha",
    "beta",
    "scale",
    "spatial_scale",
    "softcap",
    "momentum",
    "mean",
    "low",
    "high",
    "ratio",
    "min",
    "max",
    "clip",
    "extrapolation_value",
    "cubic_coeff_a",
    "bias",
    "value",
    "value_float",
    "mask_filter_value",
    "lambd",
];
const TEXTS: &[(&str, &[&str])] = &[
    (
        "mode",
        &["constant", "nearest", "linear", "cubic", "bilinear", "reflect", "edge", "wrap", "DCR", "CRD", "avg", "max"],
    ),
    ("auto_pad", &["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    ("reduction", &["none", "add", "mul", "min", "max", "mean", "sum"]),
    ("direction", &["forward", "reverse", "bidirectional", "LEFT", "RIGHT"]),
    ("padding_mode", &["zeros", "border", "reflection"]),
    ("equation", &["ij,jk->ik", "...i,i...", "ii->i", "bij,bjk", "->", "i,,j", "zz"]),
    ("approximate", &["none", "tanh"]),
    ("coordinate_transformation_mode", &["half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"]),
    ("keep_aspect_ratio_policy", &["stretch", "not_larger", "not_smaller"]),
    ("activation", &["Relu", "Clip", "LeakyRelu", "HardSigmoid"]),
];
const TYPES: &[DType] = &[
    DType::F32,
    DType::F32,
    DType::F32,
    DType::I64,
    DType::I64,
    DType::I32,
    DType::U8,
    DType::I8,
    DType::Bool,
    DType::F16,
    DType::F64,
    DType::U4,
    DType::I4,
    DType::String,
    DType::F8E4M3Fn,
    DType::U64,
    DType::Complex64,
];

fn int(random: &mut Random) -> i64 {
    match random.below(24) {
        0 => i64::MAX,
        1 => i64::MIN,
        2 => 1 << 40,
        3 => i64::from(i32::MIN),
        n => n as i64 % 9 - 3,
    }
}

fn small(random: &mut Random) -> i64 {
    random.below(4) as i64
}

fn attributes(random: &mut Random) -> AttrMap {
    let mut attrs = AttrMap::new();
    // Sound values mostly, so that operators get as far as their arithmetic.
    let wild = random.below(3) == 0;
    let number = |r: &mut Random| if wild { int(r) } else { small(r) };
    for name in INTS {
        if random.below(3) == 0 {
            attrs.set(*name, Attr::Int(number(random)));
        }
    }
    for name in LISTS {
        if random.below(3) == 0 {
            let n = random.below(6);
            attrs.set(*name, Attr::Ints((0..n).map(|_| number(random)).collect()));
        }
    }
    for name in FLOATS {
        if random.below(4) == 0 {
            let values = [0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, 1e30, 0.5];
            attrs.set(*name, Attr::Float(values[random.below(values.len())]));
        }
    }
    for (name, values) in TEXTS {
        if random.below(3) == 0 {
            attrs.set(*name, values[random.below(values.len())]);
        }
    }
    if random.below(4) == 0 {
        attrs.set("scales", Attr::Floats((0..random.below(5)).map(|_| random.signed_unit() * 3.0).collect()));
    }
    attrs
}

fn tensor(random: &mut Random, shape: &[usize], dtype: DType) -> Tensor {
    let n: usize = shape.iter().product();
    let wild = random.below(5) == 0;
    let ints: Vec<i64> = (0..n).map(|_| if wild { int(random) } else { small(random) }).collect();
    let made = match dtype {
        DType::String => Tensor::from_strings(shape, ints.iter().map(i64::to_string).collect()),
        DType::Complex64 => Tensor::from_bytes(dtype, shape, vec![1u8; n * 8]),
        d if d.is_float() => Tensor::from_f64s(d, shape, &ints.iter().map(|&i| i as f64).collect::<Vec<_>>()),
        d => Tensor::from_i64s(d, shape, &ints),
    };
    made.expect("a tensor of this type")
}

fn inputs(random: &mut Random) -> Vec<Option<Tensor>> {
    let base: Vec<usize> = (0..random.below(6)).map(|_| random.below(5)).collect();
    let main = TYPES[random.below(TYPES.len())];
    let count = random.below(8);
    let one = |random: &mut Random| {
        let shape = match random.below(4) {
            0 => (0..random.below(5)).map(|_| random.below(4)).collect(),
            1 => vec![random.below(6)],
            _ => base.clone(),
        };
        let dtype = if random.below(3) == 0 { TYPES[random.below(TYPES.len())] } else { main };
        (random.below(8) > 0).then(|| tensor(random, &shape, dtype))
    };
    (0..count).map(|_| one(random)).collect()
}

/// Builds, infers and runs one operator; what it says does not matter.
fn exercise(entry: &Entry, random: &mut Random) -> bool {
    let opset = [1, 7, 9, 10, 11, 12, 13, 16, 18, 19, 20, 21, 22, 23, 24, 25][random.below(16)];
    let (mut attrs, ins) = (attributes(random), inputs(random));
    let Ok(op) = (entry.build)(opset, &mut attrs) else { return false };
    let outputs = 1 + random.below(3);
    let facts: Vec<Option<Fact>> = ins
        .iter()
        .map(|t| {
            let t = t.as_ref()?;
            Some(match random.below(3) {
                0 => Fact::constant(t.clone()),
                1 => Fact { ty: ValueType::Tensor(TensorType::of(t)), ..Fact::default() },
                _ => Fact::tensor(Some(t.dtype()), None),
            })
        })
        .collect();
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let _ = op.infer(&InferCx::new(&facts, outputs));
    let _ = (op.quant(), op.attrs(), op.is_deterministic());
    let data: Vec<Option<Datum>> = ins.into_iter().map(|t| t.map(Datum::Tensor)).collect();
    let data: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
    op.eval(&EvalCx::new(&data, outputs)).is_ok()
}

#[test]
fn survives_senseless_attributes_and_inputs() {
    let (mut failures, mut idle) = (Vec::new(), Vec::new());
    for (e, entry) in entries().enumerate() {
        let mut ran = 0;
        for round in 0..ROUNDS {
            let mut random = Random::new((e * 1_000_003 + round) as u64);
            match catch_unwind(AssertUnwindSafe(|| exercise(entry, &mut random))) {
                Ok(done) => ran += usize::from(done),
                Err(_) => {
                    failures.push(format!("{}.{} round {round}", entry.domain, entry.name));
                    break;
                }
            }
        }
        if ran == 0 {
            idle.push(entry.name);
        }
    }
    assert!(failures.is_empty(), "{} operators panic: {failures:#?}", failures.len());
    // Operators of many inputs that must fit each other; the others get as far as their arithmetic.
    assert!(idle.len() < entries().count() / 3, "{} operators never ran: {idle:?}", idle.len());
    hostile::assert_memory_below(MEMORY);
}
