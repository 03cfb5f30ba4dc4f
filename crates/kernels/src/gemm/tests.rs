use super::*;
use crate::error::KernelError;
use crate::exec::Exec;
use crate::isa::Isa;
use crate::testing::{Guarded, Random, assert_close, execs};

/// Sums of up to ~1000 products of magnitude ≤ 1: f32 rounding stays below this.
const TOLERANCE: f32 = 2e-4;

const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (1, 33, 7),
    (2, 16, 5),
    (3, 31, 400),
    (4, 100, 64),
    (5, 1, 17),
    (13, 49, 130),
    (14, 32, 385),
    (15, 65, 20),
    (29, 63, 9),
    (64, 97, 33),
    (7, 20, 0),
    (230, 300, 41),
];

struct Case {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    row_bias: Vec<f32>,
    col_bias: Vec<f32>,
}

fn case((m, n, k): (usize, usize, usize), seed: u64) -> Case {
    let mut r = Random::new(seed);
    Case { a: r.vec(m * k), b: r.vec(k * n), c: r.vec(m * n), row_bias: r.vec(m), col_bias: r.vec(n) }
}

fn views<'a>(case: &'a Case, (m, n, k): (usize, usize, usize), layout: usize) -> (MatrixView<'a>, MatrixView<'a>) {
    let a = if layout & 1 == 0 { MatrixView::row_major(&case.a, k) } else { MatrixView::transposed(&case.a, m) };
    let b = if layout & 2 == 0 { MatrixView::row_major(&case.b, n) } else { MatrixView::transposed(&case.b, k) };
    (a, b)
}

#[test]
fn equals_the_reference_on_every_kernel_layout_and_epilogue() {
    let activations =
        [Activation::None, Activation::Relu, Activation::Clip { lo: -0.5, hi: 0.25 }, Activation::GeluErf];
    for exec in execs() {
        for kernel in GEMM_KERNELS.iter().filter(|k| exec.isa().tier().includes(k.tier)) {
            for (index, &shape) in SHAPES.iter().enumerate() {
                let (m, n, k) = shape;
                let case = case(shape, index as u64);
                let (a, b) = views(&case, shape, index % 4);
                let packed_a = PackedA::with_kernel(&exec, kernel, a, (m, k), (1, 0)).unwrap();
                let packed_b = PackedB::with_kernel(&exec, kernel, b, (k, n), (1, 0)).unwrap();
                let mut g = Gemm::new(m, n, k, Lhs::View(a), Rhs::View(b));
                g.activation = activations[index % 4];
                g.alpha = [1.0, 0.5][index % 2];
                g.beta = [0.0, 1.0, -0.5][index % 3];
                g.bias = [Bias::None, Bias::Row(&case.row_bias), Bias::Column(&case.col_bias)][index % 3];
                g.residual = (index % 2 == 1).then_some(&case.c[..]);
                let mut want = case.c.clone();
                gemm_reference(&g, &mut want);
                let pairs = [
                    (Lhs::Packed(&packed_a), Rhs::View(b)),
                    (Lhs::View(a), Rhs::Packed(&packed_b)),
                    (Lhs::Packed(&packed_a), Rhs::Packed(&packed_b)),
                ];
                for (lhs, rhs) in pairs {
                    let mut got = Guarded::new(&case.c);
                    (g.a, g.b) = (lhs, rhs);
                    gemm(&exec, &g, got.get()).unwrap();
                    assert_close(got.get(), &want, TOLERANCE, &format!("{} {shape:?} {exec:?}", kernel.name));
                }
            }
        }
    }
}

#[test]
fn packs_views_at_any_stride_without_reading_beyond() {
    for exec in execs() {
        for (index, &shape) in SHAPES.iter().enumerate() {
            let (m, n, k) = shape;
            let case = case(shape, 77 + index as u64);
            for layout in 0..4 {
                let (mut ga, mut gb) = (Guarded::new(&case.a), Guarded::new(&case.b));
                let (a, b) = views(&case, shape, layout);
                let mut want = case.c.clone();
                gemm_reference(&Gemm::new(m, n, k, Lhs::View(a), Rhs::View(b)), &mut want);
                let a = MatrixView { data: ga.get(), ..a };
                let b = MatrixView { data: gb.get(), ..b };
                let mut got = case.c.clone();
                gemm(&exec, &Gemm::new(m, n, k, Lhs::View(a), Rhs::View(b)), &mut got).unwrap();
                assert_close(&got, &want, TOLERANCE, &format!("{shape:?} layout {layout} {exec:?}"));
            }
        }
        // Steps other than 1 in both directions.
        let mut r = Random::new(5);
        let (a, b) = (r.vec(3 * 7 * 10), r.vec(2 * 10 * 40));
        let a = MatrixView { data: &a, row_stride: 30, col_stride: 3 };
        let b = MatrixView { data: &b, row_stride: 2, col_stride: 20 };
        let g = Gemm::new(7, 40, 10, Lhs::View(a), Rhs::View(b));
        let (mut got, mut want) = (vec![0.0; 280], vec![0.0; 280]);
        gemm(&exec, &g, &mut got).unwrap();
        gemm_reference(&g, &mut want);
        assert_close(&got, &want, TOLERANCE, "steps");
    }
}

#[test]
fn runs_batches_with_broadcast_and_interleaved_results() {
    // C as attention writes it: [batch 2, rows 5, heads 3, columns 17].
    let (m, n, k) = (5, 17, 9);
    let mut r = Random::new(9);
    let (a, b) = (r.vec(6 * m * k), r.vec(3 * k * n));
    let batch = [
        BatchDim { len: 2, a: 3 * m * k, b: 0, c: m * 3 * n, bias: 0 },
        BatchDim { len: 3, a: m * k, b: k * n, c: n, bias: 0 },
    ];
    for exec in execs() {
        let mut g =
            Gemm::new(m, n, k, Lhs::View(MatrixView::row_major(&a, k)), Rhs::View(MatrixView::row_major(&b, n)));
        g.ldc = 3 * n;
        g.batch = &batch;
        let mut got = vec![0.0; 6 * m * n];
        gemm(&exec, &g, &mut got).unwrap();
        for index in 0..6 {
            let (image, head) = (index / 3, index % 3);
            let a = MatrixView::row_major(&a[index * m * k..], k);
            let b = MatrixView::row_major(&b[head * k * n..], n);
            let mut want = vec![0.0; m * n];
            gemm_reference(&Gemm::new(m, n, k, Lhs::View(a), Rhs::View(b)), &mut want);
            for row in 0..m {
                let at = ((image * m + row) * 3 + head) * n;
                assert_close(&got[at..at + n], &want[row * n..][..n], TOLERANCE, "batch");
            }
        }
    }
}

#[test]
fn gives_the_same_bits_for_any_thread_count() {
    let shape = (120, 500, 900);
    let case = case(shape, 3);
    let (a, b) = views(&case, shape, 0);
    let run = |threads| {
        let mut c = case.c.clone();
        let exec = Exec::new(Isa::detect(), threads);
        gemm(&exec, &Gemm::new(120, 500, 900, Lhs::View(a), Rhs::View(b)), &mut c).unwrap();
        c
    };
    let one = run(1);
    assert!([2, 3, 4].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn refuses_short_operands_and_overlapping_results() {
    let exec = Exec::new(Isa::detect(), 1);
    let data = vec![0.0; 11];
    let view = MatrixView::row_major(&data, 4);
    let g = Gemm::new(3, 2, 4, Lhs::View(view), Rhs::View(view));
    assert!(matches!(gemm(&exec, &g, &mut [0.0; 6]), Err(KernelError::Length { what: "a", .. })));
    let g = Gemm::new(2, 2, 2, Lhs::View(view), Rhs::View(view));
    assert!(matches!(gemm(&exec, &g, &mut [0.0; 3]), Err(KernelError::Length { what: "c", .. })));
    let batch = [BatchDim { len: 2, a: 0, b: 0, c: 3, bias: 0 }];
    let g = Gemm { batch: &batch, ..g };
    assert!(matches!(gemm(&exec, &g, &mut [0.0; 9]), Err(KernelError::Invalid { .. })));
    let huge = MatrixView { data: &data, row_stride: usize::MAX, col_stride: 1 };
    let g = Gemm::new(3, 2, 4, Lhs::View(huge), Rhs::View(view));
    assert!(matches!(gemm(&exec, &g, &mut [0.0; 6]), Err(KernelError::Overflow { .. })));
}
