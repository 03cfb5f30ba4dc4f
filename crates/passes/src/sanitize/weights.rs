//! Products with constant weights, and how a scale or a shift of their outputs moves into the constants.

use narrowbit_ir::{AttrMap, NodeId, Patch, ValueId};
use narrowbit_tensor::Tensor;

use crate::View;
use crate::pass::{Found, OrNo, unless_skipped, when};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
}

/// A product with a constant weight of a floating-point type.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub id: NodeId,
    pub kind: Kind,
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    /// For MatMul with a bias: the Add, and which of its inputs the bias is.
    pub add: Option<(NodeId, usize)>,
    pub channels: usize,
    /// The last value of the product, with the bias added.
    pub output: ValueId,
}

impl<'a> Product<'a> {
    /// The product that makes `value`, where nobody else reads it.
    pub fn of(view: &View<'a>, value: ValueId) -> Found<Product<'a>> {
        let id = view.maker(value)?;
        if view.is(id, "Add") {
            return Product::with_add(view, id, value);
        }
        let product = Product::at(view, id)?;
        unless_skipped(
            view.is_single_use(value),
            format!("the output of node \"{}\" has other readers", view.node(id).name),
        )?;
        Ok(product)
    }

    /// The product that a node is, whoever reads its output.
    pub fn at(view: &View<'a>, id: NodeId) -> Found<Product<'a>> {
        let kind = match view.node(id).op.name() {
            _ if !view.node(id).op.domain().is_empty() => return Err(crate::Miss::No),
            "Conv" => Kind::Conv,
            "ConvTranspose" => Kind::ConvTranspose,
            "Gemm" => Kind::Gemm,
            "MatMul" => Kind::MatMul,
            _ => return Err(crate::Miss::No),
        };
        let weight = view.graph.const_input(id, 1).or_no()?;
        let bias = match view.node(id).input(2) {
            Some(b) => Some(view.graph.constant(b).or_no()?),
            None => None,
        };
        let channels = channels(view, id, kind, weight)?;
        when(weight.dtype().is_float() && !weight.dtype().is_minifloat())?;
        Ok(Product { id, kind, weight, bias, add: None, channels, output: view.output(id)? })
    }

    fn with_add(view: &View<'a>, add: NodeId, value: ValueId) -> Found<Product<'a>> {
        let at = (0..2).find(|&i| view.graph.const_input(add, i).is_some()).or_no()?;
        let inner = view.input(add, 1 - at)?;
        view.made_by(inner, &["MatMul"])?;
        let product = Product::of(view, inner)?;
        let bias = view.graph.const_input(add, at).or_no()?;
        when(bias.shape() == [product.channels] && view.is_single_use(value))?;
        Ok(Product { bias: Some(bias), add: Some((add, at)), output: value, ..product })
    }

    /// The axis of the output that runs over the channels, for an output of `rank` axes.
    pub fn channel_axis(&self, rank: usize) -> Option<usize> {
        match self.kind {
            Kind::Conv | Kind::ConvTranspose => Some(1),
            Kind::Gemm | Kind::MatMul => rank.checked_sub(1),
        }
    }

    /// Multiplies each output channel by `scale`, then adds `shift`, inside the constants; `replaces` is then the
    /// product's output.
    pub fn absorb(&self, view: &View, scale: Option<&[f64]>, shift: Option<&[f64]>, replaces: ValueId) -> Found<Patch> {
        let mut patch = view.patch();
        let result = self.edit(view, &mut patch, scale, shift)?;
        if replaces != result {
            patch.replace(replaces, result);
        }
        Ok(patch)
    }

    /// The part of [`Product::absorb`] that changes the product; gives what has its results then.
    pub fn edit(&self, view: &View, patch: &mut Patch, scale: Option<&[f64]>, shift: Option<&[f64]>) -> Found<ValueId> {
        if let Some(scale) = scale {
            let w = view.input(self.id, 1)?;
            let new = self.scaled_weight(view, scale)?;
            let c = patch.constant(&view.graph.value(w).name, new);
            patch.set_input(self.id, 1, Some(c));
        }
        let beta = if self.kind == Kind::Gemm { f64::from(view.float(self.id, "beta", 1.0)) } else { 1.0 };
        let needs_bias = shift.is_some() || self.bias.is_some() && scale.is_some();
        let mut result = self.output;
        if needs_bias {
            let bias = self.new_bias(beta, scale, shift)?;
            if beta != 1.0 {
                let attrs = view.node(self.id).op.attrs().with("beta", 1.0f32);
                patch.set_op(self.id, view.make("Gemm", attrs)?);
            }
            let name = match self.bias_value(view) {
                Some(v) => view.graph.value(v).name.clone(),
                None => view.name_for(self.output, "bias"),
            };
            let c = patch.constant(&name, bias);
            match (self.kind, self.add) {
                (Kind::MatMul, Some((add, at))) => patch.set_input(add, at, Some(c)),
                (Kind::MatMul, None) => {
                    let add = view.make("Add", AttrMap::new())?;
                    result = patch.node(&view.name_for(self.output, "add"), add, &[Some(self.output), Some(c)]);
                }
                _ => patch.set_input(self.id, 2, Some(c)),
            }
        }
        Ok(result)
    }

    /// The weight times one number.
    pub fn weight_times(&self, factor: f64) -> Found<Tensor> {
        let scaled = self.weight.to_f32s()?.iter().map(|w| (f64::from(*w) * factor) as f32).collect();
        Ok(Tensor::from_f32s(self.weight.dtype(), self.weight.shape(), scaled)?)
    }

    /// The sum of the weights of each output channel of a Conv or Gemm.
    pub fn channel_sums(&self, view: &View) -> Found<Vec<f64>> {
        let w = self.weight.to_f32s()?;
        let rows = self.kind == Kind::Conv || self.kind == Kind::Gemm && view.int(self.id, "transB", 0) != 0;
        when(rows || self.kind == Kind::Gemm)?;
        let mut sums = vec![0.0; self.channels];
        let row = w.len() / self.channels;
        for (i, w) in w.iter().enumerate() {
            sums[if rows { i / row } else { i % self.channels }] += f64::from(*w);
        }
        Ok(sums)
    }

    fn bias_value(&self, view: &View) -> Option<ValueId> {
        match self.add {
            Some((add, at)) => view.node(add).input(at),
            None => view.node(self.id).input(2),
        }
    }

    fn new_bias(&self, beta: f64, scale: Option<&[f64]>, shift: Option<&[f64]>) -> Found<Tensor> {
        let old = match self.bias {
            Some(b) => per_channel(b, b.rank().max(1), b.rank().max(1) - 1, self.channels)?,
            None => vec![0.0; self.channels],
        };
        let at = |v: Option<&[f64]>, i: usize, default: f64| v.map_or(default, |v| v[i]);
        let new: Vec<f64> =
            old.iter().enumerate().map(|(i, b)| b * beta * at(scale, i, 1.0) + at(shift, i, 0.0)).collect();
        Ok(Tensor::from_f64s(self.weight.dtype(), [self.channels], &new)?)
    }

    fn scaled_weight(&self, view: &View, scale: &[f64]) -> Found<Tensor> {
        let w = self.weight;
        let mut values = w.to_f32s()?.into_owned();
        let times = |v: &mut f32, s: &f64| *v = (f64::from(*v) * s) as f32;
        let rows = self.kind == Kind::Conv || self.kind == Kind::Gemm && view.int(self.id, "transB", 0) != 0;
        if self.kind == Kind::ConvTranspose {
            // Weight [C, M/group, …]: the output channel is the group's first one plus the second index.
            let (per_group, plane) = (w.shape()[1], w.shape()[2..].iter().product::<usize>());
            let inputs = w.shape()[0] / (self.channels / per_group);
            for (i, chunk) in values.chunks_mut(plane).enumerate() {
                let (c, m) = (i / per_group, i % per_group);
                chunk.iter_mut().for_each(|v| times(v, &scale[c / inputs * per_group + m]));
            }
        } else if rows {
            let row = w.len() / self.channels;
            for (row, s) in values.chunks_mut(row).zip(scale) {
                row.iter_mut().for_each(|v| times(v, s));
            }
        } else {
            for row in values.chunks_mut(self.channels) {
                row.iter_mut().zip(scale).for_each(|(v, s)| times(v, s));
            }
        }
        Ok(Tensor::from_f32s(w.dtype(), w.shape(), values)?)
    }
}

fn channels(view: &View, id: NodeId, kind: Kind, w: &Tensor) -> Found<usize> {
    let s = w.shape();
    when(s.len() >= 2 && !w.is_empty())?;
    Ok(match kind {
        Kind::Conv => s[0],
        Kind::ConvTranspose => {
            let group = usize::try_from(view.int(id, "group", 1)).ok().or_no()?;
            when(group > 0 && s[0].is_multiple_of(group))?;
            s[1].checked_mul(group).or_no()?
        }
        Kind::Gemm => {
            when(s.len() == 2)?;
            if view.int(id, "transB", 0) != 0 { s[0] } else { s[1] }
        }
        Kind::MatMul => {
            when(s.len() == 2)?;
            s[1]
        }
    })
}

/// One number per channel of a constant that broadcasts to a tensor of `rank` axes with channels along `axis`.
pub(crate) fn per_channel(t: &Tensor, rank: usize, axis: usize, channels: usize) -> Found<Vec<f64>> {
    when(t.rank() <= rank)?;
    let lead = rank - t.rank();
    let long = t.shape().iter().enumerate().filter(|(_, d)| **d != 1).map(|(i, _)| i + lead).collect::<Vec<_>>();
    let values = match long.as_slice() {
        [] => vec![t.to_f64s()?.first().copied().or_no()?; channels],
        [a] if *a == axis => t.to_f64s()?,
        _ => return Err(crate::Miss::No),
    };
    when(values.len() == channels)?;
    Ok(values)
}
