//! Matrix products with broadcast batches, for integers and floats alike.

use narrowbit_ir::{Dim, OpError, check_size};
use narrowbit_tensor::{DType, shape};

/// The extents of a product `[batch.., m, k] · [batch.., k, n]` with numpy's rules.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    /// Rows of each result.
    pub m: usize,
    /// Length of the sums.
    pub k: usize,
    /// Columns of each result.
    pub n: usize,
    /// The shape of the result.
    pub out: Vec<usize>,
    /// Offsets of the matrices of both operands, one pair per result.
    pub pairs: Vec<(usize, usize)>,
}

impl Product {
    /// The product of tensors of shapes `a` and `b`; vectors are taken as a row and a column.
    pub fn new(a: &[usize], b: &[usize], out_type: DType) -> Result<Product, OpError> {
        let clash = || OpError::shape(format!("shapes {a:?} and {b:?} can't be multiplied"));
        if a.is_empty() || b.is_empty() {
            return Err(clash());
        }
        let row = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
        let column = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
        let (batch_a, ma) = row.split_at(row.len() - 2);
        let (batch_b, mb) = column.split_at(column.len() - 2);
        let (m, k, n) = (ma[0], ma[1], mb[1]);
        if k != mb[0] {
            return Err(clash());
        }
        let batch = shape::broadcast(batch_a, batch_b)?;
        let mut out = batch.clone();
        out.extend((a.len() > 1).then_some(m));
        out.extend((b.len() > 1).then_some(n));
        check_size(out_type, &out)?;
        // A broadcast batch of empty matrices could still ask for any number of pairs.
        check_size(DType::Complex128, &batch)?;
        let (sa, sb) = (shape::broadcast_strides(batch_a, &batch), shape::broadcast_strides(batch_b, &batch));
        let (size_a, size_b) = (m.saturating_mul(k), k.saturating_mul(n));
        let pairs = shape::offsets(&batch, &sa)
            .zip(shape::offsets(&batch, &sb))
            .map(|(x, y)| (x.saturating_mul(size_a), y.saturating_mul(size_b)))
            .collect();
        Ok(Product { m, k, n, out, pairs })
    }

    /// The sums of products, each started at `zero` and extended by `mac(sum, a, b)` in the order of `k`.
    pub fn run<I: Copy, A: Copy>(&self, a: &[I], b: &[I], zero: A, mac: impl Fn(A, I, I) -> A) -> Vec<A> {
        let mut out = vec![zero; self.pairs.len() * self.m * self.n];
        let size = self.m * self.n;
        if size == 0 || self.k == 0 {
            return out;
        }
        for (c, &(x, y)) in out.chunks_exact_mut(size).zip(&self.pairs) {
            gemm(&a[x..x + self.m * self.k], &b[y..y + self.k * self.n], c, self.n, &mac);
        }
        out
    }
}

/// `c[i, j] = mac over k of a[i, k], b[k, j]`; row-major, `n` columns, `c` already started.
pub(crate) fn gemm<I: Copy, A: Copy>(a: &[I], b: &[I], c: &mut [A], n: usize, mac: &impl Fn(A, I, I) -> A) {
    let k = b.len() / n.max(1);
    if k == 0 || n == 0 {
        return;
    }
    for (row, out) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        for (&x, line) in row.iter().zip(b.chunks_exact(n)) {
            for (acc, &y) in out.iter_mut().zip(line) {
                *acc = mac(*acc, x, y);
            }
        }
    }
}

/// Adds a product of integers, wrapping as int32 accumulators do.
#[inline]
pub(crate) fn mac_i32(acc: i32, a: i32, b: i32) -> i32 {
    acc.wrapping_add(a.wrapping_mul(b))
}

/// Adds a product of floats; f64 sums make the result the f32 nearest to the true one.
#[inline]
pub(crate) fn mac_f64(acc: f64, a: f32, b: f32) -> f64 {
    acc + f64::from(a) * f64::from(b)
}

/// The symbolic shape of a product, where both ranks are known.
pub(crate) fn infer_product(a: Option<&[Dim]>, b: Option<&[Dim]>) -> Result<Option<Vec<Dim>>, OpError> {
    let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
    let clash = || {
        let show = crate::support::show;
        OpError::shape(format!("shapes {} and {} can't be multiplied", show(a), show(b)))
    };
    let (Some(ka), Some(_)) = (a.last(), b.last()) else { return Err(clash()) };
    let kb = if b.len() == 1 { &b[0] } else { &b[b.len() - 2] };
    if matches!((ka, kb), (Dim::Known(x), Dim::Known(y)) if x != y) {
        return Err(clash());
    }
    let batch = |s: &[Dim]| s[..s.len().saturating_sub(2)].to_vec();
    let mut out = Dim::broadcast_shapes(&batch(a), &batch(b)).ok_or_else(clash)?;
    out.extend((a.len() > 1).then(|| a[a.len() - 2].clone()));
    out.extend((b.len() > 1).then(|| b[b.len() - 1].clone()));
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_broadcast_batches() {
        let p = Product::new(&[2, 1, 2], &[2, 2], DType::I32).unwrap();
        assert_eq!(p.out, [2, 1, 2]);
        assert_eq!(p.run(&[1, 2, 3, 4], &[1, 0, 0, 1], 0, mac_i32), [1, 2, 3, 4]);
        let dot = Product::new(&[2], &[2], DType::I32).unwrap();
        assert_eq!((dot.out.len(), dot.run(&[1, 2], &[3, 4], 0, mac_i32)), (0, vec![11]));
    }

    #[test]
    fn wraps_accumulators() {
        let p = Product::new(&[1, 2], &[2, 1], DType::I32).unwrap();
        assert_eq!(p.run(&[i32::MAX, 1], &[1, 1], 0, mac_i32), [i32::MIN]);
    }

    #[test]
    fn refuses_shapes_that_clash() {
        assert!(Product::new(&[2, 3], &[2, 3], DType::I32).is_err());
        assert!(Product::new(&[], &[2], DType::I32).is_err());
        assert!(Product::new(&[1 << 40, 1], &[1, 1 << 40], DType::I32).is_err());
    }
}
