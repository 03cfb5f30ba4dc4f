//! The pass [`EinsumToMatmul`].

use narrowbit_ir::{AttrMap, Dim, NodeId, Patch, ValueId};
use narrowbit_ops::math::einsum::Einsum;
use narrowbit_tensor::Tensor;

use crate::View;
use crate::pass::{Found, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** writes an Einsum of two operands as MatMul, with Transpose and Reshape around it where its
    /// subscripts ask for them.
    ///
    /// **When it applies:** where some subscript is summed over, each one that is not is in the result, and none stands
    /// twice in one operand; extents that are merged must be known but for one.
    ///
    /// **Numerical effect:** none but the order of additions.
    ///
    /// **Example:** `y = Einsum(q, k) {equation="bhid,bhjd->bhij"}` → `t = Transpose(k) {perm=[0, 1, 3, 2]}`,
    /// `y = MatMul(q, t)`.
    EinsumToMatmul = "einsum-to-matmul", Sanitize, rule
}

/// One side of the product.
struct Side {
    value: ValueId,
    labels: Vec<usize>,
    dims: Vec<Dim>,
}

impl Side {
    /// The extents of some subscripts.
    fn of(&self, labels: &[usize]) -> Vec<Dim> {
        let dim = |l: &usize| self.labels.iter().position(|x| x == l).map(|i| self.dims[i].clone());
        labels.iter().filter_map(dim).collect()
    }
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Einsum"])?;
    when(view.node(id).inputs.len() == 2 && view.dtype(view.input(id, 0)?).or_no()?.is_float())?;
    let einsum = view.node(id).op.downcast::<Einsum>().or_no()?;
    let dims = |i: usize| -> Found<Vec<Dim>> { Ok(view.shape(view.input(id, i)?).or_no()?.to_vec()) };
    let (da, db) = (dims(0)?, dims(1)?);
    let (labels, out) = einsum.subscripts(&[da.len(), db.len()])?;
    let [la, lb] = <[Vec<usize>; 2]>::try_from(labels).ok().or_no()?;
    let a = Side { value: view.input(id, 0)?, labels: la, dims: da };
    let b = Side { value: view.input(id, 1)?, labels: lb, dims: db };
    let in_both = |l: &usize| a.labels.contains(l) && b.labels.contains(l);
    let twice = |s: &Side| (1..s.labels.len()).any(|i| s.labels[..i].contains(&s.labels[i]));
    when(!twice(&a) && !twice(&b))?;
    let batch: Vec<usize> = out.iter().copied().filter(in_both).collect();
    let summed: Vec<usize> = a.labels.iter().copied().filter(|l| in_both(l) && !out.contains(l)).collect();
    when(!summed.is_empty())?;
    let shared: Vec<usize> = batch.iter().chain(&summed).copied().collect();
    let same = a.of(&shared).iter().zip(&b.of(&shared)).all(|(x, y)| x.same(y));
    unless_skipped(same, "a subscript stands for extents of which one may be 1")?;
    // The product whose columns come last in the result needs no Transpose behind it.
    let free = |l: &&usize| !in_both(l);
    let turned = out.iter().find(free).is_some_and(|l| b.labels.contains(l));
    let (a, b) = if turned { (&b, &a) } else { (&a, &b) };
    let own =
        |s: &Side| -> Vec<usize> { out.iter().copied().filter(|l| !in_both(l) && s.labels.contains(l)).collect() };
    let (rows, columns) = (own(a), own(b));
    let all = |s: &Side, own: &[usize]| s.labels.len() == shared.len() + own.len();
    when(all(a, &rows) && all(b, &columns))?;

    let mut patch = view.patch();
    // Without a batch, MatMul takes the rows of `a` as they are.
    let merge_rows = !batch.is_empty() || rows.is_empty();
    let left = if merge_rows { [&batch[..], &rows, &summed] } else { [&rows[..], &[], &summed] };
    let left = arrange(view, &mut patch, a, left, merge_rows)?;
    let right = arrange(view, &mut patch, b, [&batch, &summed, &columns], true)?;
    let y = view.output(id)?;
    let name = &view.node(id).name;
    let mut result = patch.node(name, view.make("MatMul", AttrMap::new())?, &[Some(left), Some(right)]);
    let made: Vec<usize> = batch.iter().chain(&rows).chain(&columns).copied().collect();
    let is_split = columns.len() != 1 || merge_rows && rows.len() != 1;
    if is_split {
        let extents = [a.of(&batch), a.of(&rows), b.of(&columns)].concat();
        let copied = if merge_rows { batch.len() } else { rows.len() };
        result = reshape(view, &mut patch, &format!("{name}.split"), result, &target(&extents, copied)?)?;
    }
    if made != out {
        let perm: Vec<i64> = out.iter().filter_map(|l| made.iter().position(|m| m == l)).map(|i| i as i64).collect();
        let op = view.make("Transpose", AttrMap::new().with("perm", perm))?;
        result = patch.node(&format!("{name}.transpose"), op, &[Some(result)]);
    }
    patch.replace(y, result);
    Ok(patch)
}

/// An operand with its subscripts in the order of three groups, the last two merged to an axis each (the last one alone
/// unless `merge` says so).
fn arrange(view: &View, patch: &mut Patch, side: &Side, groups: [&[usize]; 3], merge: bool) -> Found<ValueId> {
    let order = groups.concat();
    let mut value = side.value;
    let name = view.graph.value(value).name.clone();
    if order != side.labels {
        let at = |l: &usize| side.labels.iter().position(|x| x == l);
        let perm: Vec<i64> = order.iter().filter_map(at).map(|i| i as i64).collect();
        let op = view.make("Transpose", AttrMap::new().with("perm", perm))?;
        value = patch.node(&format!("{name}.transpose"), op, &[Some(value)]);
    }
    let merges = if merge { groups[1].len() != 1 || groups[2].len() != 1 } else { groups[2].len() != 1 };
    if !merges {
        return Ok(value);
    }
    let mut extents = side.of(groups[0]);
    let copied = extents.len();
    if merge {
        extents.push(Dim::product(&side.of(groups[1])));
    }
    extents.push(Dim::product(&side.of(groups[2])));
    reshape(view, patch, &format!("{name}.merge"), value, &target(&extents, copied)?)
}

/// The shape operand of a Reshape that leaves the first `copied` axes as they are.
fn target(dims: &[Dim], copied: usize) -> Found<Vec<i64>> {
    let rest: Vec<i64> = dims[copied..].iter().map(|d| d.as_usize().map_or(-1, |n| n as i64)).collect();
    unless_skipped(rest.iter().filter(|&&d| d == -1).count() <= 1, "more than one extent to merge is not known")?;
    // 0 would copy an axis.
    when(!rest.contains(&0))?;
    Ok(vec![0; copied].into_iter().chain(rest).collect())
}

fn reshape(view: &View, patch: &mut Patch, name: &str, value: ValueId, to: &[i64]) -> Found<ValueId> {
    let shape = patch.constant(&format!("{name}.shape"), Tensor::vector(to.to_vec()));
    Ok(patch.node(name, view.make("Reshape", AttrMap::new())?, &[Some(value), Some(shape)]))
}
