//! GFLOP/s of each GEMM kernel at the shapes of ViT-B and ResNet-50, as a share of the
//! measured fused-multiply-add peak of one core.
//!
//! `cargo run --release -p narrowbit-kernels --example peak [threads]`

use std::time::Instant;

use narrowbit_kernels::gemm::{GEMM_KERNELS, Gemm, ImageColumns, Lhs, MatrixView, PackedA, PackedB, Rhs, gemm};
use narrowbit_kernels::{Exec, Isa, Tier};

/// The best of several runs, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut rounds = 0;
    while rounds < 3 || (start.elapsed().as_secs_f64() < 0.3 && rounds < 1000) {
        let t = Instant::now();
        run();
        best = best.min(t.elapsed().as_secs_f64());
        rounds += 1;
    }
    best
}

/// GFLOP/s of independent multiply-adds in registers.
fn peak(tier: Tier) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let flops_per_round = match tier {
        // Only the vectors of x86-64 have a loop here; `narrowbit bench kernels` has the others'.
        tier if tier < Tier::Avx2 => return f64::NAN,
        Tier::Avx2 => 10 * 8 * 2,
        _ => 10 * 16 * 2,
    };
    let seconds = best(|| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller only passes tiers that were detected.
        unsafe {
            match tier {
                Tier::Avx2 => x86::avx2(ROUNDS),
                _ => x86::avx512(ROUNDS),
            }
        }
    });
    (ROUNDS * flops_per_round) as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(rounds: usize) {
        let mut acc = [_mm512_set1_ps(1.0); 10];
        let x = _mm512_set1_ps(std::hint::black_box(0.5));
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(*a, x, x);
            }
        }
        std::hint::black_box(acc);
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(rounds: usize) {
        let mut acc = [_mm256_set1_ps(1.0); 10];
        let x = _mm256_set1_ps(std::hint::black_box(0.5));
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm256_fmadd_ps(*a, x, x);
            }
        }
        std::hint::black_box(acc);
    }
}

fn fill(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect()
}

/// rows, columns, depth of the linear layers of ViT-B (197 tokens) and a square product.
const LINEAR: &[(&str, usize, usize, usize)] = &[
    ("ViT-B qkv", 197, 2304, 768),
    ("ViT-B out", 197, 768, 768),
    ("ViT-B fc1", 197, 3072, 768),
    ("ViT-B fc2", 197, 768, 3072),
    ("MiniLM", 128, 384, 384),
    ("square", 1024, 1024, 1024),
    ("one row", 1, 4096, 1024),
];

/// in channels, out channels, image, window, stride of convolutions of ResNet-50.
const CONV: &[(&str, usize, usize, usize, usize, usize)] = &[
    ("conv1", 3, 64, 224, 7, 2),
    ("1x1 64-64", 64, 64, 56, 1, 1),
    ("3x3 64", 64, 64, 56, 3, 1),
    ("1x1 64-256", 64, 256, 56, 1, 1),
    ("3x3 128 s2", 128, 128, 56, 3, 2),
    ("3x3 128", 128, 128, 28, 3, 1),
    ("3x3 256", 256, 256, 14, 3, 1),
    ("1x1 1024-256", 1024, 256, 14, 1, 1),
    ("3x3 512", 512, 512, 7, 3, 1),
    ("1x1 512-2048", 512, 2048, 7, 1, 1),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |text| text.parse())?;
    let exec = Exec::new(Isa::from_env()?, threads);
    let tier = exec.isa().tier();
    println!("{} thread(s), tier {tier}", exec.threads());
    for kernel in GEMM_KERNELS.iter().filter(|k| k.tier <= tier && k.tier > Tier::Scalar) {
        let peak = peak(kernel.tier) * exec.threads() as f64;
        println!("\n{} (peak {peak:.0} GFLOP/s)", kernel.name);
        let line = |name: &str, flops: f64, seconds: f64| {
            let rate = flops / seconds / 1e9;
            let share = rate / peak * 100.0;
            println!("  {name:14} {:9.1} us {rate:7.1} GFLOP/s {share:5.1} %", seconds * 1e6);
        };
        for &(name, m, n, k) in LINEAR {
            let (a, b) = (fill(m * k), fill(k * n));
            let view = MatrixView::row_major(&b, n);
            let packed = PackedB::with_kernel(&exec, kernel, view, (k, n), (1, 0))?;
            let g = Gemm::new(m, n, k, Lhs::View(MatrixView::row_major(&a, k)), Rhs::Packed(&packed));
            let mut c = vec![0.0; m * n];
            let seconds = best(|| gemm(&exec, &g, &mut c).expect("the shapes fit"));
            line(name, 2.0 * (m * n * k) as f64, seconds);
        }
        for &(name, ic, oc, size, window, stride) in CONV {
            let out = size / stride;
            let image = ImageColumns {
                c: ic,
                h: size,
                w: size,
                kh: window,
                kw: window,
                stride: [stride; 2],
                pad: [window / 2; 2],
                dilation: [1; 2],
                oh: out,
                ow: out,
            };
            let (x, weights) = (fill(ic * size * size), fill(oc * image.rows()));
            let (m, n, k) = (oc, image.columns(), image.rows());
            let view = MatrixView::row_major(&weights, k);
            let packed = PackedA::with_kernel(&exec, kernel, view, (m, k), (1, 0))?;
            let rhs = if window == 1 && stride == 1 {
                Rhs::View(MatrixView::row_major(&x, n))
            } else {
                Rhs::Image(&image, &x)
            };
            let g = Gemm::new(m, n, k, Lhs::Packed(&packed), rhs);
            let mut c = vec![0.0; m * n];
            let seconds = best(|| gemm(&exec, &g, &mut c).expect("the shapes fit"));
            line(name, 2.0 * (m * n * k) as f64, seconds);
        }
    }
    Ok(())
}
