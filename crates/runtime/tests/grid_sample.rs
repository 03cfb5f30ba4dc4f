//! GridSample in all modes: on a kernel of its own, with the interpreter's results.

mod support;

use narrowbit_tensor::Tensor;

use support::{Random, check, graph, samples, session};

/// A grid that reaches beyond the image on all sides, with places that are no numbers.
fn grid(shape: &[usize]) -> Tensor {
    let mut random = Random(11);
    let len: usize = shape.iter().product();
    let value = |i: usize, r: &mut Random| match i % 97 {
        13 => f32::NAN,
        14 => f32::INFINITY,
        15 => 1.0,
        16 => -1.0,
        _ => 1.7 * r.unit(),
    };
    Tensor::new(shape, (0..len).map(|i| value(i, &mut random)).collect::<Vec<f32>>()).expect("the length fits")
}

#[test]
fn samples_grids_in_all_modes_as_the_operator() {
    let cases: [(&[usize], &[usize], &[&str]); 5] = [
        (&[2, 19, 7, 9], &[2, 5, 6, 2], &["linear", "nearest", "cubic"]),
        (&[1, 64, 8, 5], &[1, 13, 11, 2], &["linear", "cubic"]),
        (&[1, 1, 6, 1], &[1, 4, 9, 2], &["linear", "nearest", "cubic"]),
        (&[2, 3, 11], &[2, 8, 1], &["linear", "nearest"]),
        (&[1, 5, 4, 5, 6], &[1, 3, 4, 5, 3], &["linear", "nearest"]),
    ];
    for (x, g, modes) in cases {
        for mode in modes {
            for padding in ["zeros", "border", "reflection"] {
                for align in [0, 1] {
                    let body = format!(
                        "%y = GridSample(%x, %g) {{mode=\"{mode}\", padding_mode=\"{padding}\", align_corners={align}}}"
                    );
                    let graph = graph(&format!("input %x: f32{x:?}\ninput %g: f32{g:?}"), &body, "output %y");
                    let inputs = [samples(&graph).remove(0), grid(g)];
                    // Weights are rounded to 32 bits, and up to sixteen products are added up in 32 bits.
                    check(&graph, &inputs, "grid_sample_f32", 2e-6, &format!("{x:?} {g:?} {body}"));
                }
            }
        }
    }
}

#[test]
fn refuses_a_grid_that_does_not_fit() {
    let graph = graph("input %x: f32[1, 2, 4, 4]\ninput %g: f32[1, 3, 3, 3]", "%y = GridSample(%x, %g)", "output %y");
    let inputs = samples(&graph);
    let error = session(&graph, 1).run(&inputs).expect_err("three coordinates for two axes").to_string();
    assert!(error.contains("grid"), "{error}");
}
