use super::*;
use crate::dynamic::dynamic_params;
use crate::isa::Scalar;
use crate::testing::{Edge, Guarded, Random, assert_same_everywhere, bits, execs};

/// A layer and its data.
struct Case {
    reverse: Vec<bool>,
    /// Steps, sequences, features of the input, units.
    shape: [usize; 4],
    batch_first: bool,
    input_forget: bool,
    clip: f32,
    lens: Option<Vec<i32>>,
    x: Vec<f32>,
    /// W and R.
    codes: [Vec<i8>; 2],
    scales: [Vec<f32>; 2],
    zeros: [Vec<i32>; 2],
    bias: Vec<f32>,
    states: [Vec<f32>; 2],
}

impl Case {
    fn new(reverse: &[bool], shape: [usize; 4], per_column: bool, zeros: bool, r: &mut Random) -> Case {
        let ([steps, batch, input, hidden], dirs) = (shape, reverse.len());
        let all = dirs * 4 * hidden;
        let count = if per_column { all } else { dirs };
        let mut half = |n: usize| r.vec(n).iter().map(|v| v * 0.5).collect::<Vec<f32>>();
        let (x, bias) = (half(steps * batch * input), half(2 * all));
        let states = [(); 2].map(|()| half(dirs * batch * hidden));
        let scales = [(); 2].map(|()| half(count).iter().map(|v| 0.004 + 0.006 * v.abs()).collect());
        let codes = [input, hidden].map(|rows| (0..all * rows).map(|_| r.next() as i8).collect());
        let points = if zeros { count } else { 0 };
        let zeros = [(); 2].map(|()| (0..points).map(|_| r.below(200) as i32 - 100).collect());
        let (batch_first, input_forget, clip, lens) = (false, false, f32::INFINITY, None);
        let reverse = reverse.to_vec();
        Case { reverse, shape, batch_first, input_forget, clip, lens, x, codes, scales, zeros, bias, states }
    }

    fn params(&self) -> Recurrent<'_> {
        Recurrent {
            steps: self.shape[0],
            batch: self.shape[1],
            batch_first: self.batch_first,
            reverse: &self.reverse,
            lens: self.lens.as_deref(),
            h: Some(&self.states[0]),
            c: Some(&self.states[1]),
            clip: self.clip,
        }
    }

    fn pack(&self, exec: &Exec) -> Result<IntLstmWeights> {
        let [_, _, input, hidden] = self.shape;
        let [w, r] =
            [0, 1].map(|i| IntMatrix { codes: &self.codes[i], scales: &self.scales[i], zeros: &self.zeros[i] });
        IntLstmWeights::new(exec, self.input_forget, [self.reverse.len(), input, hidden], [&w, &r], &self.bias)
    }

    /// With the operands at inaccessible pages.
    fn run(&self, exec: &Exec, edge: Edge) -> [Vec<f32>; 3] {
        let (weights, state) = (self.pack(exec).unwrap(), self.states[0].len());
        let mut x = Guarded::at(edge, &self.x);
        let [mut first_h, mut first_c] = self.states.each_ref().map(|s| Guarded::at(edge, s));
        let p = Recurrent { h: Some(first_h.get()), c: Some(first_c.get()), ..self.params() };
        let nan = |n: usize| Guarded::at(edge, &vec![f32::NAN; n]);
        let (mut y, mut h, mut c) = (nan(state * self.shape[0]), nan(state), nan(state));
        let out = RecurrentOutputs { y: Some(y.get()), h: Some(h.get()), c: Some(c.get()) };
        int_lstm(exec, &p, &weights, x.get(), out).unwrap();
        [y.get().to_vec(), h.get().to_vec(), c.get().to_vec()]
    }

    /// The products of one row of codes with a direction's columns, gate by gate.
    fn products(&self, which: usize, d: usize, codes: &[u8], (scale, zero): (f32, i32)) -> Vec<f32> {
        let columns = 4 * self.shape[3];
        let at = |j: usize| if self.scales[which].len() == self.reverse.len() { d } else { d * columns + j };
        let product = |j: usize| {
            let w_zero = self.zeros[which].get(at(j)).copied().unwrap_or(0);
            let w = |k: usize| i32::from(self.codes[which][(d * codes.len() + k) * columns + j]) - w_zero;
            let sum: i32 = codes.iter().enumerate().map(|(k, &code)| (i32::from(code) - zero) * w(k)).sum();
            sum as f32 * (scale * self.scales[which][at(j)])
        };
        (0..columns).map(product).collect()
    }

    /// The operator's definition, number by number.
    fn reference(&self) -> [Vec<f32>; 3] {
        let ([steps, batch, input, n], p) = (self.shape, self.params());
        let mut y = vec![0f32; self.states[0].len() * steps];
        let [mut h, mut c] = self.states.clone();
        let (x, x_format) = quantized(&self.x);
        for d in 0..self.reverse.len() {
            let places: Vec<usize> = (0..batch).map(|b| p.state(b, d) * n).collect();
            for step in 0..steps {
                let before: Vec<f32> = places.iter().flat_map(|&at| h[at..][..n].to_vec()).collect();
                let (codes, format) = quantized(&before);
                for b in 0..batch {
                    let len = p.len(b);
                    if step >= len {
                        continue;
                    }
                    let t = if self.reverse[d] { len - 1 - step } else { step };
                    let wx = self.products(0, d, &x[p.row(t, b) * input..][..input], x_format);
                    let rh = self.products(1, d, &codes[b * n..][..n], format);
                    for u in 0..n {
                        let gate = |g: usize| {
                            let j = g * n + u;
                            let bias = &self.bias[d * 8 * n..][..8 * n];
                            (wx[j] + rh[j] + (bias[j] + bias[4 * n + j])).clamp(-self.clip, self.clip)
                        };
                        let (cell, hidden) =
                            lstm_unit(Scalar::new(), [0, 1, 2, 3].map(gate), c[places[b] + u], self.input_forget);
                        (c[places[b] + u], h[places[b] + u]) = (cell, hidden);
                        y[p.place(t, b, d) * n + u] = hidden;
                    }
                }
            }
        }
        [y, h, c]
    }

    /// Every tier and number of threads gives the bits of the definition.
    fn check(&self, context: &str) {
        let want = self.reference();
        for exec in execs() {
            let got = self.run(&exec, Edge::Behind);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(bits(got), bits(want), "{context} {exec:?}");
            }
        }
    }
}

fn quantized(x: &[f32]) -> (Vec<u8>, (f32, i32)) {
    let (scale, zero) = dynamic_params(x.iter().copied().fold(0.0, f32::min), x.iter().copied().fold(0.0, f32::max));
    let code = |v: &f32| ((v / scale).round_ties_even() as i32 + zero).clamp(0, 255) as u8;
    (x.iter().map(code).collect(), (scale, zero))
}

#[test]
fn equals_the_definition_at_odd_sizes() {
    let mut r = Random::new(21);
    for shape in [[1, 1, 1, 1], [3, 1, 4, 5], [4, 2, 3, 16], [2, 3, 9, 17], [3, 9, 2, 37], [2, 5, 70, 33], [0, 2, 3, 4]]
    {
        for reverse in [&[false][..], &[true], &[false, true]] {
            for (per_column, zeros) in [(false, false), (true, false), (false, true), (true, true)] {
                let case = Case::new(reverse, shape, per_column, zeros, &mut r);
                case.check(&format!("{shape:?} {reverse:?} {per_column} {zeros}"));
            }
        }
    }
}

#[test]
fn shares_the_product_of_a_step_where_it_is_large() {
    // 40 · 168 · 672 multiply-adds, and the directions one after the other.
    let case = Case::new(&[false, true], [2, 40, 3, 168], true, false, &mut Random::new(22));
    const { assert!(40 * 168 * 672 >= LARGE) };
    case.check("large");
}

#[test]
fn ends_each_sequence_at_its_length() {
    let mut r = Random::new(23);
    for batch_first in [false, true] {
        for input_forget in [false, true] {
            let mut case = Case::new(&[false, true], [5, 6, 3, 7], true, false, &mut r);
            (case.batch_first, case.input_forget) = (batch_first, input_forget);
            (case.lens, case.clip) = (Some(vec![5, 0, 1, 4, 2, 5]), 0.4);
            case.check("lengths");
        }
    }
}

#[test]
fn steps_to_the_same_bits_everywhere() {
    let mut r = Random::new(24);
    for shape in [[1, 1, 1, 1], [3, 2, 4, 7], [2, 5, 9, 17], [3, 9, 2, 33]] {
        let case = Case::new(&[false, true], shape, true, true, &mut r);
        assert_same_everywhere(&format!("{shape:?}"), &|exec, edge| {
            case.run(exec, edge).iter().flat_map(|part| bits(part)).collect()
        });
    }
}

#[test]
fn starts_at_zeros_and_writes_only_what_is_asked_for() {
    let exec = Exec::new(crate::Isa::detect(), 2);
    let case = Case::new(&[false], [3, 2, 4, 6], false, false, &mut Random::new(25));
    let zeros = Case { states: [vec![0.0; 12], vec![0.0; 12]], ..case };
    let (weights, mut c) = (zeros.pack(&exec).unwrap(), vec![0.0; 12]);
    let out = RecurrentOutputs { c: Some(&mut c), ..RecurrentOutputs::default() };
    int_lstm(&exec, &Recurrent { h: None, c: None, ..zeros.params() }, &weights, &zeros.x, out).unwrap();
    assert_eq!(bits(&c), bits(&zeros.reference()[2]));
}

#[test]
fn refuses_slices_and_lengths_that_do_not_fit() {
    let exec = Exec::new(crate::Isa::detect(), 1);
    let case = || Case::new(&[false], [3, 2, 4, 6], true, true, &mut Random::new(26));
    let w = case().pack(&exec).unwrap();
    let run = |p: &Recurrent<'_>, x: &[f32]| int_lstm(&exec, p, &w, x, RecurrentOutputs::default());
    let (good, p) = (case(), case());
    let p = p.params();
    assert!(run(&p, &good.x).is_ok());
    assert!(run(&p, &good.x[1..]).is_err());
    assert!(run(&Recurrent { c: Some(&[0.0]), ..p }, &good.x).is_err());
    assert!(run(&Recurrent { lens: Some(&[4, 0]), ..p }, &good.x).is_err());
    assert!(run(&Recurrent { reverse: &[false, true], ..p }, &good.x).is_err());
    let spoiled: [fn(&mut Case); 5] = [
        |c| c.codes[0].truncate(2),
        |c| c.scales[1].truncate(2),
        |c| c.zeros[0].truncate(2),
        |c| c.bias.truncate(2),
        |c| c.zeros[1][3] = i32::MAX,
    ];
    for spoil in spoiled {
        let mut bad = case();
        spoil(&mut bad);
        assert!(bad.pack(&exec).is_err());
    }
    let deep = IntMatrix { codes: &[], scales: &[1.0], zeros: &[] };
    assert!(IntLstmWeights::new(&exec, false, [1, usize::MAX, 1], [&deep, &deep], &[]).is_err());
}
