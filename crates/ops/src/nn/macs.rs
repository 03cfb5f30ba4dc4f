//! Multiply-accumulates of the operators of this group, from concrete shapes.

use narrowbit_ir::Op;

use super::recurrent::DynamicQuantizeLstm;
use super::{Attention, Conv, ConvTranspose, DeformConv, Gru, Lstm, Rnn};

/// Multiply-accumulates of one run of `op` on inputs of these shapes (`None` for absent
/// inputs): those of its matrix products, without bias, activation and normalisation.
/// `None` for operators without such products and for shapes that don't fit together.
pub fn macs(op: &dyn Op, ins: &[Option<&[usize]>]) -> Option<u64> {
    let at = |i: usize| ins.get(i).copied().flatten();
    if let Some(op) = op.downcast::<Conv>() {
        op.macs(at(0)?, at(1)?)
    } else if let Some(op) = op.downcast::<ConvTranspose>() {
        op.macs(at(0)?, at(1)?)
    } else if let Some(op) = op.downcast::<DeformConv>() {
        let s = op.resolve(at(0)?, at(1)?).ok()?;
        product(&[s.batch, s.m, s.window.positions(), s.c / op.group, s.window.taps()])
    } else if let Some(op) = op.downcast::<Attention>() {
        op.macs(at(0)?, at(1)?, at(2)?, at(4))
    } else if op.is::<Rnn>() || op.is::<Gru>() || op.is::<Lstm>() {
        let (&[a, b, _], &[dirs, rows, input], &[_, _, hidden]) = (at(0)?, at(1)?, at(2)?) else { return None };
        product(&[a, b, dirs, rows, input.checked_add(hidden)?])
    } else if op.is::<DynamicQuantizeLstm>() {
        let (&[a, b, _], &[dirs, input, columns], &[_, hidden, _]) = (at(0)?, at(1)?, at(2)?) else { return None };
        product(&[a, b, dirs, columns, input.checked_add(hidden)?])
    } else {
        None
    }
}

fn product(factors: &[usize]) -> Option<u64> {
    factors.iter().try_fold(1u64, |n, &f| n.checked_mul(u64::try_from(f).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::AttrMap;

    #[test]
    fn counts_products_of_each_operator() {
        let conv = super::super::conv::build(13, &mut AttrMap::new().with("group", 2i64)).unwrap();
        assert_eq!(macs(&*conv, &[Some(&[1, 4, 5]), Some(&[6, 2, 3])]), Some(3 * 6 * 2 * 3));
        let attention = super::super::attention::build(23, &mut AttrMap::new()).unwrap();
        let (q, k): ([usize; 4], [usize; 4]) = ([1, 2, 3, 4], [1, 2, 5, 4]);
        assert_eq!(macs(&*attention, &[Some(&q), Some(&k), Some(&k)]), Some(2 * 3 * 5 * 8));
        let lstm = super::super::recurrent::build_lstm(14, &mut AttrMap::new()).unwrap();
        assert_eq!(macs(&*lstm, &[Some(&[7, 2, 3]), Some(&[1, 16, 3]), Some(&[1, 16, 4])]), Some(7 * 2 * 16 * 7));
        let lstm = super::super::recurrent::build_dynamic_lstm(1, &mut AttrMap::new()).unwrap();
        assert_eq!(macs(&*lstm, &[Some(&[7, 2, 3]), Some(&[1, 3, 16]), Some(&[1, 4, 16])]), Some(7 * 2 * 16 * 7));
    }

    #[test]
    fn gives_nothing_for_shapes_that_do_not_fit() {
        let conv = super::super::conv::build(13, &mut AttrMap::new()).unwrap();
        assert_eq!(macs(&*conv, &[Some(&[1, 4, 5]), Some(&[6, 2, 3])]), None);
        assert_eq!(macs(&*conv, &[Some(&[1, 4, 5])]), None);
    }
}
