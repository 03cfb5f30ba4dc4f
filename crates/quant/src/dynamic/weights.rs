//! The int8 weights of dynamic products.

use std::collections::BTreeMap;

use narrowbit_ir::{ConstId, Graph};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{Tensor, TensorError};

use super::Job;
use crate::parallel::in_parallel;
use crate::plan::{WeightError, WeightParams, weight_params};
use crate::scheme::WeightScheme;

/// What makes two products share their codes: the constant, and how it is quantized and laid out.
pub(super) type Key = (ConstId, bool, bool, [bool; 4]);

/// The key of a job.
pub(super) fn key(graph: &Graph, job: &Job) -> Option<Key> {
    let id = graph.const_id(graph.node(job.node).input(1)?)?;
    let WeightScheme { format, symmetric, per_channel, reduce_range, .. } = job.scheme;
    let unsigned = !format.is_signed();
    Some((id, job.conv, job.transposed, [unsigned, symmetric, per_channel, reduce_range]))
}

/// A weight as integers.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    /// `[k, n]` for a matrix, the shape of the float weight for a convolution.
    pub codes: Tensor,
    /// One scale, or one per output channel, with zero points.
    pub params: WeightParams,
    /// By column of a matrix: the sum of the codes less their zero point; empty for a convolution.
    pub sums: Vec<i32>,
}

/// The weights of all jobs.
pub(super) fn make(graph: &Graph, jobs: &[Job], exec: &Exec) -> Result<BTreeMap<Key, Weight>, WeightError> {
    let mut distinct: BTreeMap<Key, (&Job, &Tensor)> = BTreeMap::new();
    for job in jobs {
        if let (Some(key), Some(w)) = (key(graph, job), graph.const_input(job.node, 1)) {
            distinct.entry(key).or_insert((job, w));
        }
    }
    let (keys, work): (Vec<Key>, Vec<_>) = distinct.into_iter().unzip();
    let made = in_parallel(exec, &work, |(job, w)| {
        let made = weight(job, w, exec);
        w.release();
        made
    });
    keys.into_iter().zip(made).map(|(key, w)| Ok((key, w?))).collect()
}

fn weight(job: &Job, w: &Tensor, exec: &Exec) -> Result<Weight, WeightError> {
    let channels = if job.conv || job.transposed { 0 } else { w.rank() - 1 };
    let params = weight_params(exec, w, job.scheme, job.scheme.per_channel.then_some(channels));
    let codes = params.tensor(exec, w)?;
    if job.conv {
        return Ok(Weight { codes, params, sums: Vec::new() });
    }
    let codes = if job.transposed { transposed(&codes)? } else { codes };
    let sums = sums(&codes, &params);
    Ok(Weight { codes, params, sums })
}

/// A matrix of bytes with its axes exchanged.
fn transposed(codes: &Tensor) -> Result<Tensor, TensorError> {
    let (rows, columns) = (codes.shape()[0], codes.shape()[1]);
    Tensor::from_bytes(codes.dtype(), [columns, rows], transpose_bytes(codes.bytes(), rows, columns))
}

/// A `rows × columns` matrix of bytes with its axes exchanged, in squares that stay in cache.
pub(crate) fn transpose_bytes(from: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    const SIDE: usize = 64;
    let mut out = vec![0u8; rows * columns];
    for r0 in (0..rows).step_by(SIDE) {
        for c0 in (0..columns).step_by(SIDE) {
            for c in c0..(c0 + SIDE).min(columns) {
                for r in r0..(r0 + SIDE).min(rows) {
                    out[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
    out
}

fn sums(codes: &Tensor, params: &WeightParams) -> Vec<i32> {
    let (rows, columns) = (codes.shape()[0], codes.shape()[1]);
    let signed = codes.dtype().is_signed_int();
    let mut sums = vec![0i32; columns];
    for row in codes.bytes().chunks_exact(columns) {
        match signed {
            true => sums.iter_mut().zip(row).for_each(|(s, &c)| *s += i32::from(c as i8)),
            false => sums.iter_mut().zip(row).for_each(|(s, &c)| *s += i32::from(c)),
        }
    }
    let zero = |j: usize| params.points[if params.points.len() == 1 { 0 } else { j }].zero_point;
    sums.iter().enumerate().map(|(j, s)| s - rows as i32 * zero(j)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::ScalePoint;

    #[test]
    fn exchanges_axes_across_the_edges_of_squares() {
        let (rows, columns) = (70, 131);
        let from: Vec<u8> = (0..rows * columns).map(|i| (i % 251) as u8).collect();
        let to = transpose_bytes(&from, rows, columns);
        for (r, c) in [(0, 0), (69, 130), (64, 64), (3, 100)] {
            assert_eq!(to[c * rows + r], from[r * columns + c]);
        }
    }

    #[test]
    fn sums_columns_without_their_zero_point() {
        let codes = Tensor::new([2, 2], vec![3i8, -1, 4, 5]).unwrap();
        let point = |zero_point| ScalePoint { scale: 1.0, zero_point };
        let p = WeightParams {
            scheme: WeightScheme::default(),
            axis: Some(1),
            points: vec![point(1), point(-2)],
            divisors: vec![1.0; 2],
            rounded: None,
        };
        assert_eq!(sums(&codes, &p), [3 + 4 - 2, -1 + 5 + 4]);
    }
}
