//! The fused attention against the operators that it replaces.

use super::*;
use crate::Activation;
use crate::gemm::BatchDim;
use crate::integer::{Quant, softmax_rows};
use crate::panel::{CodeSum, IntMatMul, panel_matmul};
use crate::testing::{Guarded, Random, execs};

/// A case: shape, signs and zero points.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: [usize; 2],
    queries: usize,
    keys: usize,
    depth: usize,
    value_depth: usize,
    /// By operand, weights included (q, keys, v, weights): whether it is i8, and its zero point.
    formats: [(bool, i32); 4],
    factor: Factor,
    masked: bool,
    by_row: bool,
    coded: Option<CodedScores<'static>>,
}

const PLAIN: Case = Case {
    heads: [1, 2],
    queries: 9,
    keys: 21,
    depth: 8,
    value_depth: 5,
    formats: [(false, 120), (false, 128), (false, 131), (false, 0)],
    factor: Factor::None,
    masked: false,
    by_row: false,
    coded: None,
};

const SCALE: f32 = 3e-4;
const VALUE_SCALE: f32 = 1e-3;
const INVERSE: f32 = 255.0;

/// The operands, dense and in the natural order.
struct Data {
    q: Vec<u8>,
    kt: Vec<u8>,
    v: Vec<u8>,
    mask: Vec<f32>,
}

impl Case {
    fn data(&self, random: &mut Random) -> Data {
        let heads = self.heads[0] * self.heads[1];
        let mut bytes = |rows: usize, columns: usize| -> Vec<u8> {
            (0..heads * rows * columns).map(|_| random.next() as u8).collect()
        };
        let (q, kt) = (bytes(self.queries, self.depth), bytes(self.depth, self.keys));
        let v = bytes(self.keys, self.value_depth);
        let mask = (0..heads * self.queries * self.keys)
            .map(|_| if random.below(5) == 0 { f32::NEG_INFINITY } else { random.unit() })
            .collect();
        Data { q, kt, v, mask }
    }

    /// Without rounding, and the most that rounding may be off: half a step of 255 for each weight. The values' scale is that of
    /// 1/255 and the values.
    fn exact(&self, data: &Data) -> Vec<(f64, f64)> {
        let (s, t, d, e) = (self.queries, self.keys, self.depth, self.value_depth);
        let [q, k, v, _] = self.formats;
        let of = |x: &[u8], i: usize, (signed, zero): (bool, i32)| {
            f64::from(if signed { i32::from(x[i] as i8) } else { i32::from(x[i]) } - zero)
        };
        let mut y = Vec::new();
        for row in 0..self.heads[0] * self.heads[1] * s {
            let h = row / s;
            let score = |j: usize| {
                let sum: f64 = (0..d).map(|i| of(&data.q, row * d + i, q) * of(&data.kt, (h * d + i) * t + j, k)).sum();
                sum * f64::from(SCALE) + if self.masked { f64::from(data.mask[row * t + j]) } else { 0.0 }
            };
            let weights: Vec<f64> = (0..t).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            let greatest = weights.iter().fold(0f64, |most, &w| most.max(w));
            y.extend((0..e).map(|c| {
                let value = |j: usize| of(&data.v, (h * t + j) * e + c, v) * f64::from(VALUE_SCALE);
                let sum: f64 = (0..t).map(|j| weights[j] / total * value(j) * 255.0).sum();
                let size: f64 = (0..t).map(|j| value(j).abs()).sum();
                (sum, 0.5 * greatest / total * size)
            }));
        }
        y
    }

    /// The product, the scores' factor and mask, the softmax, and the second product, one after the other.
    fn unfused(&self, exec: &Exec, data: &Data) -> Vec<f32> {
        let heads = self.heads[0] * self.heads[1];
        let [q, k, v, w] = self.formats;
        let product = |a: (Rows<'_>, i32), b: (Rows<'_>, i32), shape: [usize; 3], scale: f32| {
            let [m, k, n] = shape;
            let batch = [BatchDim { len: heads, a: m * k, b: k * n, c: m * n, bias: 0 }];
            let p = IntMatMul { a, b, shape, batch: &batch, scale, activation: Activation::None };
            let mut y = vec![0f32; heads * m * n];
            panel_matmul(exec, &p, Target::F32(&mut y)).unwrap();
            y
        };
        let (mq, mk, mv) = (signed(&data.q), signed(&data.kt), signed(&data.v));
        let shape = [self.queries, self.depth, self.keys];
        let mut scores = product((rows(&data.q, &mq, q.0), q.1), (rows(&data.kt, &mk, k.0), k.1), shape, SCALE);
        if let Some(coded) = &self.coded {
            let mask = |i: usize| if self.masked { Some(data.mask[i]) } else { None };
            scores.iter_mut().enumerate().for_each(|(i, x)| *x = coded_score(coded, *x, i, mask(i)));
        }
        for (x, m) in scores.iter_mut().zip(&data.mask).filter(|_| self.coded.is_none()) {
            match self.factor {
                Factor::None => {}
                Factor::Mul(by) => *x *= by,
                Factor::Div(by) => *x /= by,
            }
            if self.masked {
                *x += m;
            }
        }
        let mut weights = vec![0u8; scores.len()];
        let shape = [heads * self.queries, self.keys];
        if let Some(softmax) = self.coded.and_then(|c| c.weights) {
            let round = |row: &[f32]| softened(row, softmax, w);
            weights = scores.chunks(self.keys).flat_map(round).collect();
        } else if w.0 {
            let mut codes = vec![0i8; scores.len()];
            softmax_rows(exec, Quant::F32(&scores), shape, false, Target::I8(&mut codes, INVERSE, w.1)).unwrap();
            weights.iter_mut().zip(codes).for_each(|(w, c)| *w = c as u8);
        } else {
            softmax_rows(exec, Quant::F32(&scores), shape, false, Target::U8(&mut weights, INVERSE, w.1)).unwrap();
        }
        let mw = signed(&weights);
        let shape = [self.queries, self.keys, self.value_depth];
        product((rows(&weights, &mw, w.0), w.1), (rows(&data.v, &mv, v.0), v.1), shape, VALUE_SCALE)
    }
}

fn signed(x: &[u8]) -> Vec<i8> {
    x.iter().map(|&b| b as i8).collect()
}

fn rows<'a>(x: &'a [u8], as_signed: &'a [i8], is_signed: bool) -> Rows<'a> {
    if is_signed { Rows::I8(as_signed) } else { Rows::U8(x) }
}

/// `[heads, rows, columns]` with its axes in the order of `to`, which says where each goes.
fn moved<T: Copy + Default>(x: &[T], dims: [usize; 3], strides: [usize; 3]) -> Vec<T> {
    let mut y = vec![T::default(); x.len()];
    for (i, &v) in x.iter().enumerate() {
        let (h, r, c) = (i / (dims[1] * dims[2]), i / dims[2] % dims[1], i % dims[2]);
        y[h * strides[0] + r * strides[1] + c * strides[2]] = v;
    }
    y
}

fn run(case: &Case, exec: &Exec, data: &Data, is_moved: bool) -> Vec<f32> {
    let (heads, (s, t)) = (case.heads[0] * case.heads[1], (case.queries, case.keys));
    let (d, e) = (case.depth, case.value_depth);
    // As models that split a row into heads have them: rows before heads.
    let places = |rows: usize, columns: usize| match is_moved {
        true => [columns, heads * columns, 1],
        false => [rows * columns, columns, 1],
    };
    let (to_q, to_v) = (places(s, d), places(t, e));
    let to_k = if is_moved { [d, 1, heads * d] } else { [d * t, t, 1] };
    let mut q = Guarded::new(&moved(&data.q, [heads, s, d], to_q));
    let mut k = Guarded::new(&moved(&data.kt, [heads, d, t], to_k));
    let mut v = Guarded::new(&moved(&data.v, [heads, t, e], to_v));
    let (mq, mk, mv) = (signed(q.get()), signed(k.get()), signed(v.get()));
    // Batch entries and heads are one axis in memory.
    let strides = |[h, r, c]: [usize; 3]| [case.heads[1] * h, h, r, c];
    let [fq, fk, fv, fw] = case.formats;
    let mut mask = Guarded::new(&data.mask);
    let mask = HeadView { data: mask.get(), strides: [case.heads[1] * s * t, s * t, t] };
    let p = IntAttention {
        heads: case.heads,
        kv_heads: case.heads[1],
        queries: s,
        keys: t,
        depth: d,
        value_depth: e,
        q: IntHeads { data: rows(q.get(), &mq, fq.0), zero: fq.1, strides: strides(to_q) },
        kt: IntHeads { data: rows(k.get(), &mk, fk.0), zero: fk.1, strides: strides(to_k) },
        v: ValueHeads::Codes {
            v: IntHeads { data: rows(v.get(), &mv, fv.0), zero: fv.1, strides: strides(to_v) },
            weights: match case.coded.and_then(|c| c.weights) {
                Some(_) => Weights::Fixed(fw.0, 1.0, fw.1),
                None if case.by_row => Weights::ByRow,
                None => Weights::Fixed(fw.0, INVERSE, fw.1),
            },
            scale: VALUE_SCALE,
        },
        scale: SCALE,
        factor: case.factor,
        mask: case.masked.then_some(mask),
        guarded: false,
        coded: case.coded,
    };
    let mut y = Guarded::new(&vec![0f32; heads * s * e]);
    let to_y = places(s, e);
    int_attention(exec, &p, Target::F32(y.get()), [case.heads[1] * to_y[0], to_y[0], to_y[1]]).unwrap();
    let mut natural = vec![0f32; heads * s * e];
    for (i, v) in natural.iter_mut().enumerate() {
        *v = y.get()[i / (s * e) * to_y[0] + i / e % s * to_y[1] + i % e * to_y[2]];
    }
    natural
}

#[test]
fn gives_the_bits_of_the_operators_it_replaces_on_every_tier() {
    let signed = [(true, -3), (true, 5), (true, 2), (true, -128)];
    let mixed = [(true, 0), (false, 128), (true, 0), (false, 3)];
    let cases = [
        PLAIN,
        Case { queries: 1, keys: 1, depth: 1, value_depth: 1, ..PLAIN },
        Case { formats: signed, masked: true, ..PLAIN },
        Case { heads: [2, 3], queries: 37, keys: 70, depth: 11, value_depth: 33, formats: mixed, ..PLAIN },
        Case { heads: [1, 1], queries: 61, keys: 131, depth: 64, value_depth: 64, masked: true, ..PLAIN },
        Case { factor: Factor::Mul(0.3), keys: 48, masked: true, ..PLAIN },
        Case { factor: Factor::Div(7.0), formats: signed, keys: 33, value_depth: 32, ..PLAIN },
    ];
    let mut random = Random::new(61);
    for case in cases {
        let data = case.data(&mut random);
        let want = case.unfused(&execs()[0], &data);
        for exec in execs() {
            for is_moved in [false, true] {
                assert_eq!(run(&case, &exec, &data, is_moved), want, "{case:?} {exec:?} {is_moved}");
            }
        }
    }
}

/// A score on its way through codes, in plain steps.
fn coded_score(c: &CodedScores<'_>, x: f32, i: usize, mask: Option<f32>) -> f32 {
    let steps = |v: f32, r: Rounded| {
        let (low, high) = if r.signed { (-128, 127) } else { (0, 255) };
        f32::max(v * r.inverse, (low - r.zero) as f32).min((high - r.zero) as f32).round_ties_even()
    };
    let first = steps(x, c.product);
    let mut v = match c.values {
        Values::Scaled => first * c.product.scale,
        Values::Linear { ratio, bounds: [low, high], scale, offset } => {
            (first * ratio).round_ties_even().max(low).min(high) * scale + offset
        }
        Values::Table(table) => table[usize::from((first as i32 + c.product.zero) as u8)],
    };
    v += mask.unwrap_or(-0.0);
    if let Some(m) = &c.mask {
        let code = if m.signed { f32::from(m.data[i] as i8) } else { f32::from(m.data[i]) };
        v = match m.sum.first {
            true => v.mul_add(m.sum.ratio, code.mul_add(m.ratio, m.sum.fixed)),
            false => code.mul_add(m.ratio, v.mul_add(m.sum.ratio, m.sum.fixed)),
        };
    }
    c.sum.map_or(v, |r| steps(v, r) * r.scale)
}

/// A row of codes through a softmax by table, in plain steps.
fn softened(row: &[f32], softmax: CodeWeights<'_>, (signed, zero): (bool, i32)) -> Vec<u8> {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, &c| most.max(c));
    let e: Vec<f32> = row.iter().map(|c| softmax.table[(most - c) as usize]).collect();
    let sum = e.iter().fold(0f32, |sum, e| sum + e);
    let (low, high) = if signed { (-128, 127) } else { (0, 255) };
    e.iter().map(|e| (((e * softmax.steps / sum).round_ties_even() as i32) + zero).clamp(low, high) as u8).collect()
}

#[test]
fn rounds_scores_as_the_operators_between_do_on_every_tier() {
    let mut random = Random::new(64);
    let exponentials: &[f32; 256] = Box::leak(Box::new(std::array::from_fn(|d| (9.0 - d as f32 * 0.06).exp())));
    let table: &[f32; 256] = Box::leak(Box::new(std::array::from_fn(|b| (b as f32 * 0.37).round())));
    let mask: &[u8] = Box::leak((0..6 * 37 * 70).map(|_| random.next() as u8).collect::<Vec<_>>().into_boxed_slice());
    let round = |signed, inverse: f32, zero| Rounded { signed, inverse, zero, scale: 1.0 / inverse };
    let plain =
        CodedScores { product: round(false, 9.0, 101), values: Values::Scaled, mask: None, sum: None, weights: None };
    let steps = |product: Rounded| Rounded { scale: 1.0, ..product };
    let weights = Some(CodeWeights { table: exponentials, steps: 255.0 });
    let whole = CodedScores { product: steps(plain.product), weights, ..plain };
    let masked = |signed, first| {
        let sum = CodeSum { ratio: 0.61, fixed: -13.3, first };
        // That of a batch of the first case.
        let mask = CodeMask { data: mask, signed, strides: [3 * 37 * 70, 37 * 70, 70], sum, ratio: 0.53 };
        let sum = Some(Rounded { signed, inverse: 1.0, zero: 0, scale: 1.0 });
        CodedScores { values: Values::Table(table), mask: Some(mask), sum, ..whole }
    };
    let linear = Values::Linear { ratio: 0.7, bounds: [-60.0, 77.0], scale: 2.0, offset: 121.0 };
    let large = Case { heads: [2, 3], queries: 37, keys: 70, depth: 11, value_depth: 33, ..PLAIN };
    let signed = [(true, -3), (true, 5), (true, 2), (true, -128)];
    let cases = [
        Case { coded: Some(plain), ..PLAIN },
        Case { coded: Some(CodedScores { values: Values::Table(table), ..plain }), keys: 33, ..PLAIN },
        Case { coded: Some(CodedScores { sum: Some(round(true, 20.0, 3)), ..plain }), masked: true, ..large },
        Case { coded: Some(CodedScores { values: linear, ..plain }), keys: 48, ..PLAIN },
        Case { coded: Some(CodedScores { values: linear, ..masked(false, true) }), ..large },
        Case { coded: Some(whole), formats: signed, ..PLAIN },
        Case {
            coded: Some(CodedScores { product: round(true, 9.0, -5), values: Values::Table(table), ..whole }),
            ..large
        },
        Case { coded: Some(masked(false, true)), ..large },
        Case { coded: Some(masked(true, false)), formats: signed, ..large },
    ];
    for case in cases {
        let data = case.data(&mut random);
        let want = case.unfused(&execs()[0], &data);
        assert!(want.iter().any(|v| *v != want[0]), "{case:?}");
        for exec in execs() {
            for is_moved in [false, true] {
                assert_eq!(run(&case, &exec, &data, is_moved), want, "{case:?} {exec:?} {is_moved}");
            }
        }
    }
    let mut short = masked(false, true);
    let full = [2, 3, 37, 70];
    assert!(short.check(full, false).is_ok());
    assert!(short.check(full, true).is_err(), "two masks");
    short.mask = short.mask.map(|m| CodeMask { data: &m.data[1..], ..m });
    assert!(short.check(full, false).is_err(), "a mask too short");
}

#[test]
fn keeps_eight_bits_of_each_row_of_small_weights() {
    let signed = [(true, -3), (true, 5), (true, 2), (false, 0)];
    let by_row = Case { by_row: true, ..PLAIN };
    let cases = [
        by_row,
        Case { heads: [2, 3], queries: 37, keys: 70, depth: 11, value_depth: 33, formats: signed, ..by_row },
        // Each weight is about 1/700: as parts of 1 all of them would be 0.
        Case { queries: 30, keys: 700, depth: 4, value_depth: 16, masked: true, ..by_row },
    ];
    let mut random = Random::new(63);
    for case in cases {
        let data = case.data(&mut random);
        let exact = case.exact(&data);
        let mut first: Option<Vec<f32>> = None;
        for exec in execs() {
            for is_moved in [false, true] {
                let got = run(&case, &exec, &data, is_moved);
                for (g, (want, most)) in got.iter().zip(&exact) {
                    // And the floats' own rounding.
                    let tolerance = most * 1.001 + 1e-4 * want.abs();
                    assert!((f64::from(*g) - want).abs() <= tolerance, "{case:?}: {g} {want}, {most}");
                }
                assert_eq!(&got, first.get_or_insert_with(|| got.clone()), "{case:?} {exec:?} {is_moved}");
            }
        }
    }
}

#[test]
fn rounds_its_results() {
    let mut random = Random::new(62);
    let case = Case { queries: 20, keys: 40, value_depth: 16, ..PLAIN };
    let (data, exec) = (case.data(&mut random), &execs()[0]);
    let heads = |x, rows: usize, columns: usize, zero| IntHeads {
        data: Rows::U8(x),
        zero,
        strides: [2 * rows * columns, rows * columns, columns, 1],
    };
    let values = |x| ValueHeads::Codes {
        v: heads(x, 40, 16, 131),
        weights: Weights::Fixed(false, INVERSE, 0),
        scale: VALUE_SCALE,
    };
    let p = IntAttention {
        heads: case.heads,
        kv_heads: 2,
        queries: 20,
        keys: 40,
        depth: 8,
        value_depth: 16,
        q: heads(&data.q, 20, 8, 120),
        kt: heads(&data.kt, 8, 40, 128),
        v: values(&data.v),
        scale: SCALE,
        factor: Factor::None,
        mask: None,
        guarded: false,
        coded: None,
    };
    let want: Vec<i8> = case
        .unfused(exec, &data)
        .iter()
        .map(|v| ((v * 0.07).round_ties_even().clamp(-133.0, 122.0) as i32 + 5) as i8)
        .collect();
    let mut y = vec![0i8; want.len()];
    int_attention(exec, &p, Target::I8(&mut y, 0.07, 5), [2 * 20 * 16, 20 * 16, 16]).unwrap();
    assert_eq!(y, want);

    let mut y = vec![0f32; want.len()];
    assert!(int_attention(exec, &p, Target::F32(&mut y), [2 * 20 * 16, 20 * 16, 15]).is_err(), "rows overlap");
    assert!(int_attention(exec, &p, Target::F32(&mut y[1..]), [2 * 20 * 16, 20 * 16, 16]).is_err());
    let short = IntAttention { v: values(&data.v[1..]), ..p };
    assert!(int_attention(exec, &short, Target::F32(&mut y), [2 * 20 * 16, 20 * 16, 16]).is_err());
    let apart = IntAttention { q: IntHeads { strides: [160, 80, 4, 2], ..p.q }, ..p };
    assert!(int_attention(exec, &apart, Target::F32(&mut y), [2 * 20 * 16, 20 * 16, 16]).is_err(), "q by columns");
    let mask = [f32::NEG_INFINITY; 40];
    let mask = Some(HeadView { data: &mask, strides: [0; 3] });
    int_attention(exec, &IntAttention { mask, guarded: true, ..p }, Target::F32(&mut y), [640, 320, 16]).unwrap();
    assert!(y.iter().all(|&v| v == 0.0), "queries that see no key");
    let none = IntAttention { keys: 0, ..p };
    assert!(int_attention(exec, &none, Target::F32(&mut y), [2 * 20 * 16, 20 * 16, 16]).is_err());
    let odd = IntAttention { heads: [1, 3], kv_heads: 2, ..p };
    assert!(int_attention(exec, &odd, Target::F32(&mut y), [2 * 20 * 16, 20 * 16, 16]).is_err(), "heads share no keys");
}

#[test]
fn gives_groups_of_heads_the_same_keys() {
    let mut random = Random::new(64);
    let shared = Case { heads: [2, 2], masked: true, ..PLAIN };
    let data = shared.data(&mut random);
    let (t, d, e, s) = (shared.keys, shared.depth, shared.value_depth, shared.queries);
    // Queries of three heads for each one of keys.
    let group = 3;
    let q: Vec<u8> = (0..group * data.q.len()).map(|_| random.next() as u8).collect();
    let repeat = |x: &[u8], len: usize| -> Vec<u8> {
        x.chunks(len).flat_map(|head| std::iter::repeat_n(head, group).flatten().copied()).collect()
    };
    let mask: Vec<f32> = data.mask.iter().cycle().take(group * data.mask.len()).copied().collect();
    let whole = Case { heads: [2, 2 * group], ..shared };
    let all = Data { q, kt: repeat(&data.kt, d * t), v: repeat(&data.v, t * e), mask };
    for exec in execs() {
        let want = run(&whole, &exec, &all, false);
        let heads = |data, rows: usize, columns: usize, heads: usize, zero| IntHeads {
            data: Rows::U8(data),
            zero,
            strides: [heads * rows * columns, rows * columns, columns, 1],
        };
        let p = IntAttention {
            heads: whole.heads,
            kv_heads: 2,
            queries: s,
            keys: t,
            depth: d,
            value_depth: e,
            q: heads(&all.q, s, d, 2 * group, 120),
            kt: heads(&data.kt, d, t, 2, 128),
            v: ValueHeads::Codes {
                v: heads(&data.v, t, e, 2, 131),
                weights: Weights::Fixed(false, INVERSE, 0),
                scale: VALUE_SCALE,
            },
            scale: SCALE,
            factor: Factor::None,
            mask: Some(HeadView { data: &all.mask, strides: [2 * group * s * t, s * t, t] }),
            guarded: false,
            coded: None,
        };
        let mut y = vec![0f32; want.len()];
        int_attention(&exec, &p, Target::F32(&mut y), [2 * group * s * e, s * e, e]).unwrap();
        assert_eq!(y, want, "{exec:?}");
    }
}

/// Scores of integers, their softmax and the product with values of floats, in f64.
fn mixed(case: &Case, data: &Data, values: &[f32]) -> Vec<f64> {
    let (s, t, d, e) = (case.queries, case.keys, case.depth, case.value_depth);
    let zero = [case.formats[0].1, case.formats[1].1];
    let mut y = Vec::new();
    for row in 0..case.heads[0] * case.heads[1] * s {
        let h = row / s;
        let score = |j: usize| {
            let one = |i: usize| {
                (i32::from(data.q[row * d + i]) - zero[0]) * (i32::from(data.kt[(h * d + i) * t + j]) - zero[1])
            };
            f64::from((0..d).map(one).sum::<i32>()) * f64::from(SCALE) + f64::from(data.mask[row * t + j])
        };
        let weights: Vec<f64> = (0..t).map(|j| score(j).exp()).collect();
        // All keys are hidden from some rows: their weights are 0 here, and their sum is made 1.
        let total = weights.iter().sum::<f64>();
        let total = if total == 0.0 { 1.0 } else { total };
        y.extend(
            (0..e).map(|c| (0..t).map(|j| weights[j] / total * f64::from(values[(h * t + j) * e + c])).sum::<f64>()),
        );
    }
    y
}

#[test]
fn multiplies_values_of_floats() {
    let mut random = Random::new(65);
    for case in [
        PLAIN,
        Case { heads: [2, 2], queries: 31, keys: 50, depth: 17, value_depth: 33, ..PLAIN },
        Case { heads: [1, 1], queries: 3, keys: 600, depth: 64, value_depth: 64, ..PLAIN },
    ] {
        let mut data = case.data(&mut random);
        let (s, t, d, e) = (case.queries, case.keys, case.depth, case.value_depth);
        data.mask[t..2 * t].fill(f32::NEG_INFINITY);
        let heads = case.heads[0] * case.heads[1];
        let values = random.vec(heads * t * e);
        let want = mixed(&case, &data, &values);
        let mut first: Option<Vec<u32>> = None;
        for exec in execs() {
            let ints = |data, rows: usize, columns: usize, zero| IntHeads {
                data: Rows::U8(data),
                zero,
                strides: [case.heads[1] * rows * columns, rows * columns, columns, 1],
            };
            let floats = |data, rows: usize, columns: usize| HeadView {
                data,
                strides: [case.heads[1] * rows * columns, rows * columns, columns],
            };
            let mut guarded_v = Guarded::new(&values);
            let p = IntAttention {
                heads: case.heads,
                kv_heads: case.heads[1],
                queries: s,
                keys: t,
                depth: d,
                value_depth: e,
                q: ints(&data.q, s, d, case.formats[0].1),
                kt: ints(&data.kt, d, t, case.formats[1].1),
                v: ValueHeads::Floats(floats(guarded_v.get(), t, e)),
                scale: SCALE,
                factor: Factor::None,
                mask: Some(floats(&data.mask, s, t)),
                guarded: true,
                coded: None,
            };
            let mut y = Guarded::new(&vec![9f32; heads * s * e]);
            let strides = [case.heads[1] * s * e, s * e, e];
            int_attention(&exec, &p, Target::F32(y.get()), strides).unwrap();
            crate::testing::assert_close(y.get(), &want.iter().map(|&x| x as f32).collect::<Vec<_>>(), 1e-5, "mixed");
            assert!(y.get()[e..2 * e].iter().all(|&x| x == 0.0), "the second row sees no key");
            let bits: Vec<u32> = y.get().iter().map(|x| x.to_bits()).collect();
            assert_eq!(&bits, first.get_or_insert_with(|| bits.clone()), "{case:?} {exec:?}");
            // The same results, rounded.
            let mut codes = vec![0i8; heads * s * e];
            int_attention(&exec, &p, Target::I8(&mut codes, 50.0, 3), strides).unwrap();
            let rounded = y.get().iter().map(|v| ((v * 50.0).round_ties_even().clamp(-131.0, 124.0) as i32 + 3) as i8);
            assert_eq!(codes, rounded.collect::<Vec<_>>(), "{exec:?}");
        }
    }
}
