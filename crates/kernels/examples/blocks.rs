//! Speed of products with weights of 4 bits in blocks of 32, beside the float product of the same size.
//!
//! `blocks [threads]`

use std::time::Instant;

use narrowbit_kernels::blocks::{BlockShape, Blocks, Values, blocks_gemm, blocks_gemm_int8};
use narrowbit_kernels::gemm::{Gemm, Lhs, MatrixView, PackedB, Rhs, gemm};
use narrowbit_kernels::panel::{Epilogue, Target};
use narrowbit_kernels::{Exec, Isa, KernelError};

/// Least seconds of a run.
fn time(mut run: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    let start = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < 5 || start.elapsed().as_secs_f64() < 0.3 {
        let t = Instant::now();
        run()?;
        best = best.min(t.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |n| n.parse())?;
    let exec = Exec::new(Isa::from_env()?, threads);
    for size in [768, 3072, 4096] {
        let (k, n) = (size, size);
        let shape = BlockShape { k, n, bits: 4, block: 32, values: Values::Integers };
        let codes = |column: usize, to: &mut [u8]| {
            to.iter_mut().enumerate().for_each(|(i, c)| *c = ((i * 7 + column * 5) % 16) as u8);
        };
        let w = Blocks::pack(&exec, shape, &codes, &|_, to| to.fill(0.01), None)?;
        let floats = PackedB::new(&exec, MatrixView::row_major(&vec![0.01; k * n], n), (k, n), (1, 0))?;
        for m in [1, 2, 4, 8, 16, 17, 32, 197] {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
            let mut y = vec![0f32; m * n];
            let plain = Epilogue::default();
            let exact = time(|| blocks_gemm(&exec, &x, m, &w, &plain, Target::F32(&mut y)))?;
            let int8 = time(|| blocks_gemm_int8(&exec, &x, m, &w, &plain, Target::F32(&mut y)))?;
            let (a, b) = (Lhs::View(MatrixView::row_major(&x, k)), Rhs::Packed(&floats));
            let float = time(|| gemm(&exec, &Gemm::new(m, n, k, a, b), &mut y))?;
            let gigabytes = (k * n / 2) as f64 * 1e-9;
            println!(
                "{m:3} x {size}: exact {:8.1} us ({:4.1} GB/s of codes), int8 {:8.1} us, float {:8.1} us; {:.2} times float",
                exact * 1e6,
                gigabytes / exact,
                int8 * 1e6,
                float * 1e6,
                float / exact
            );
        }
    }
    Ok(())
}
