use super::*;
use crate::testing::{Edge, Guarded, Random, assert_close, assert_same_everywhere, bits, execs};

/// A layer and its data.
struct Case {
    cell: Cell,
    reverse: Vec<bool>,
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    batch_first: bool,
    lens: Option<Vec<i32>>,
    clip: f32,
    x: Vec<f32>,
    weights: [Vec<f32>; 3],
    states: [Vec<f32>; 2],
}

const CELLS: [Cell; 4] = [
    Cell::Lstm { input_forget: false },
    Cell::Lstm { input_forget: true },
    Cell::Gru { linear_before_reset: false },
    Cell::Gru { linear_before_reset: true },
];

impl Case {
    fn new(cell: Cell, reverse: &[bool], [steps, batch, input, hidden]: [usize; 4], r: &mut Random) -> Case {
        let rows = reverse.len() * cell.gates() * hidden;
        let mut half = |n: usize| r.vec(n).iter().map(|v| v * 0.5).collect::<Vec<f32>>();
        Case {
            cell,
            reverse: reverse.to_vec(),
            steps,
            batch,
            input,
            hidden,
            batch_first: false,
            lens: None,
            clip: f32::INFINITY,
            weights: [half(rows * input), half(rows * hidden), half(2 * rows)],
            states: [half(reverse.len() * batch * hidden), half(reverse.len() * batch * hidden)],
            x: half(steps * batch * input),
        }
    }

    fn params(&self) -> Recurrent<'_> {
        Recurrent {
            steps: self.steps,
            batch: self.batch,
            batch_first: self.batch_first,
            reverse: &self.reverse,
            lens: self.lens.as_deref(),
            h: Some(&self.states[0]),
            c: Some(&self.states[1]),
            clip: self.clip,
        }
    }

    fn pack(&self, exec: &Exec) -> Result<RecurrentWeights> {
        let shape = [self.reverse.len(), self.input, self.hidden];
        RecurrentWeights::new(exec, self.cell, shape, self.weights.each_ref().map(Vec::as_slice))
    }

    fn run(&self, exec: &Exec) -> [Vec<f32>; 3] {
        self.run_at(exec, Edge::Behind)
    }

    /// With all operands at inaccessible pages.
    fn run_at(&self, exec: &Exec, edge: Edge) -> [Vec<f32>; 3] {
        let (state, mut x) = (self.states[0].len(), Guarded::at(edge, &self.x));
        let mut weights = self.weights.each_ref().map(|w| Guarded::at(edge, w));
        let shape = [self.reverse.len(), self.input, self.hidden];
        let packed = RecurrentWeights::new(exec, self.cell, shape, weights.each_mut().map(|w| &*w.get())).unwrap();
        let [mut first_h, mut first_c] = self.states.each_ref().map(|s| Guarded::at(edge, s));
        let mut lens = self.lens.as_ref().map(|lens| Guarded::at(edge, lens));
        let p = Recurrent {
            h: Some(first_h.get()),
            c: Some(first_c.get()),
            lens: lens.as_mut().map(|lens| &*lens.get()),
            ..self.params()
        };
        let nan = |n: usize| Guarded::at(edge, &vec![f32::NAN; n]);
        let (mut y, mut h, mut c) = (nan(state * self.steps), nan(state), nan(state));
        let out = RecurrentOutputs { y: Some(y.get()), h: Some(h.get()), c: Some(c.get()) };
        recurrent(exec, &p, &packed, x.get(), out).unwrap();
        [y.get().to_vec(), h.get().to_vec(), c.get().to_vec()]
    }

    /// The formulas of ONNX in f64.
    fn reference(&self) -> [Vec<f32>; 3] {
        let (p, n) = (self.params(), self.hidden);
        let mut y = vec![0f32; self.states[0].len() * self.steps];
        let [mut h, mut c] = self.states.clone();
        for d in 0..self.reverse.len() {
            for b in 0..self.batch {
                let at = p.state(b, d) * n;
                for step in 0..p.len(b) {
                    let t = if self.reverse[d] { p.len(b) - 1 - step } else { step };
                    let x = &self.x[p.row(t, b) * self.input..][..self.input];
                    let (before, cells) = (h[at..][..n].to_vec(), &mut c[at..][..n]);
                    let after = self.unit(d, x, &before, cells);
                    h[at..][..n].copy_from_slice(&after);
                    y[p.place(t, b, d) * n..][..n].copy_from_slice(&after);
                }
            }
        }
        [y, h, c]
    }

    /// The new hidden state of one sequence.
    fn unit(&self, d: usize, x: &[f32], h: &[f32], c: &mut [f32]) -> Vec<f32> {
        let (gates, n) = (self.cell.gates(), self.hidden);
        let [w, r, b] = &self.weights;
        let dot = |m: &[f32], v: &[f32]| m.iter().zip(v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let row = |g: usize, i: usize| d * gates * n + g * n + i;
        let wx = |g: usize, i: usize| {
            dot(&w[row(g, i) * self.input..][..self.input], x) + f64::from(b[d * 2 * gates * n + g * n + i])
        };
        let bias = |g: usize, i: usize| f64::from(b[d * 2 * gates * n + gates * n + g * n + i]);
        let rh = |g: usize, i: usize, h: &[f32]| dot(&r[row(g, i) * n..][..n], h) + bias(g, i);
        let clip = |v: f64| v.clamp(-f64::from(self.clip), f64::from(self.clip));
        let sigmoid = |v: f64| 1.0 / (1.0 + (-clip(v)).exp());
        let gate = |g: usize, i: usize| sigmoid(wx(g, i) + rh(g, i, h));
        let reset: Vec<f32> = (0..n).map(|i| (gate(1, i) * f64::from(h[i])) as f32).collect();
        let unit = |i: usize| match self.cell {
            Cell::Lstm { input_forget } => {
                let input = gate(0, i);
                let forget = if input_forget { 1.0 - input } else { gate(2, i) };
                let cell = forget * f64::from(c[i]) + input * clip(wx(3, i) + rh(3, i, h)).tanh();
                c[i] = cell as f32;
                (gate(1, i) * cell.tanh()) as f32
            }
            Cell::Gru { linear_before_reset } => {
                let product = if linear_before_reset { gate(1, i) * rh(2, i, h) } else { rh(2, i, &reset) };
                let (z, new) = (gate(0, i), clip(wx(2, i) + product).tanh());
                ((1.0 - z) * new + z * f64::from(h[i])) as f32
            }
        };
        (0..n).map(unit).collect()
    }

    /// A gate's argument is a sum of at most 37 + 9 products below 0.25: off by 46 · 2⁻²⁴ · 12 < 4e-5 at the most, which
    /// functions with slopes up to 1 pass on to the next steps.
    fn check(&self, context: &str) {
        let want = self.reference();
        let mut of_tier: Option<(crate::Isa, [Vec<f32>; 3])> = None;
        for exec in execs() {
            let got = self.run(&exec);
            let states = if matches!(self.cell, Cell::Lstm { .. }) { 3 } else { 2 };
            for (got, want) in got.iter().zip(&want).take(states) {
                assert_close(got, want, 4e-5, &format!("{:?} {context} {exec:?}", self.cell));
            }
            match &of_tier {
                Some((isa, other)) if *isa == exec.isa() => assert_eq!(&got[..2], &other[..2], "{context} {exec:?}"),
                _ => of_tier = Some((exec.isa(), got)),
            }
        }
    }
}

#[test]
fn equals_the_formulas_at_odd_sizes() {
    let mut r = Random::new(12);
    for cell in CELLS {
        for shape in [[1, 1, 1, 1], [3, 1, 4, 5], [4, 2, 3, 16], [2, 3, 9, 17], [3, 9, 2, 37], [0, 2, 3, 4]] {
            for reverse in [&[false][..], &[true], &[false, true]] {
                Case::new(cell, reverse, shape, &mut r).check(&format!("{shape:?} {reverse:?}"));
            }
        }
    }
}

#[test]
fn steps_to_the_same_bits_everywhere() {
    let mut r = Random::new(17);
    for cell in CELLS {
        for shape in [[1, 1, 1, 1], [3, 2, 4, 7], [2, 5, 9, 17], [3, 9, 2, 33]] {
            for batch_first in [false, true] {
                let mut case = Case::new(cell, &[false, true], shape, &mut r);
                case.batch_first = batch_first;
                case.lens = batch_first.then(|| (0..shape[1] as i32).map(|b| b % (shape[0] as i32 + 1)).collect());
                assert_same_everywhere(&format!("{cell:?} {shape:?}"), &|exec, edge| {
                    let states = if matches!(cell, Cell::Lstm { .. }) { 3 } else { 2 };
                    case.run_at(exec, edge)[..states].iter().flat_map(|part| bits(part)).collect()
                });
            }
        }
    }
}

#[test]
fn ends_each_sequence_at_its_length() {
    let mut r = Random::new(13);
    for cell in CELLS {
        for batch_first in [false, true] {
            let mut case = Case::new(cell, &[false, true], [5, 6, 3, 7], &mut r);
            (case.batch_first, case.lens, case.clip) = (batch_first, Some(vec![5, 0, 1, 4, 2, 5]), 0.4);
            case.check("lengths");
        }
    }
}

#[test]
fn writes_only_what_is_asked_for() {
    let mut r = Random::new(14);
    let exec = Exec::new(crate::Isa::detect(), 2);
    let case = Case::new(CELLS[0], &[false], [3, 2, 4, 6], &mut r);
    let (weights, want) = (case.pack(&exec).unwrap(), case.run(&exec));
    let mut h = vec![0.0; 12];
    let out = RecurrentOutputs { h: Some(&mut h), ..RecurrentOutputs::default() };
    recurrent(&exec, &case.params(), &weights, &case.x, out).unwrap();
    assert_eq!(h, want[1]);
    // Without states they start at 0.
    let zeros = Case { states: [vec![0.0; 12], vec![0.0; 12]], ..case };
    let out = RecurrentOutputs { h: Some(&mut h), ..RecurrentOutputs::default() };
    recurrent(&exec, &Recurrent { h: None, c: None, ..zeros.params() }, &weights, &zeros.x, out).unwrap();
    assert_eq!(h, zeros.run(&exec)[1]);
}

#[test]
fn passes_nan_on() {
    let mut r = Random::new(15);
    let exec = Exec::new(crate::Isa::detect(), 1);
    for cell in CELLS {
        let mut case = Case::new(cell, &[false], [2, 1, 3, 5], &mut r);
        case.x[1] = f32::NAN;
        assert!(case.run(&exec)[1].iter().all(|v| v.is_nan()), "{cell:?}");
    }
}

#[test]
fn refuses_slices_lengths_and_weights_that_do_not_fit() {
    let mut r = Random::new(16);
    let exec = Exec::new(crate::Isa::detect(), 1);
    let case = Case::new(CELLS[0], &[false], [3, 2, 4, 6], &mut r);
    let w = case.pack(&exec).unwrap();
    let run = |p: &Recurrent<'_>, x: &[f32], y: usize| {
        let mut y = vec![0.0; y];
        recurrent(&exec, p, &w, x, RecurrentOutputs { y: Some(&mut y), ..RecurrentOutputs::default() })
    };
    let p = case.params();
    assert!(run(&p, &case.x, 36).is_ok());
    assert!(run(&p, &case.x[1..], 36).is_err());
    assert!(run(&p, &case.x, 35).is_err());
    assert!(run(&Recurrent { h: Some(&[0.0]), ..p }, &case.x, 36).is_err());
    assert!(run(&Recurrent { lens: Some(&[4, 0]), ..p }, &case.x, 36).is_err());
    assert!(run(&Recurrent { lens: Some(&[-1, 0]), ..p }, &case.x, 36).is_err());
    assert!(run(&Recurrent { reverse: &[false, true], ..p }, &case.x, 36).is_err());
    let mut short = Case::new(CELLS[0], &[false], [3, 2, 4, 6], &mut r);
    short.weights[1].pop();
    assert!(short.pack(&exec).is_err());
    let scalar = Exec::new(crate::Isa::available().into_iter().min_by_key(|isa| isa.tier()).unwrap(), 1);
    if !w.is_for(&scalar) {
        assert!(recurrent(&scalar, &p, &w, &case.x, RecurrentOutputs::default()).is_err());
    }
}
