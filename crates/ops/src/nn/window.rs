//! Sliding windows: the geometry that convolutions and pools share.

use narrowbit_ir::{AttrMap, Dim, OpError};
use narrowbit_tensor::shape;

/// How pads are chosen (ONNX `auto_pad`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoPad {
    /// As the attribute `pads` says.
    #[default]
    NotSet,
    /// Output extent `ceil(input / stride)`; an odd pad goes to the end.
    SameUpper,
    /// Output extent `ceil(input / stride)`; an odd pad goes to the beginning.
    SameLower,
    /// No pads.
    Valid,
}

impl AutoPad {
    /// ONNX's spelling.
    pub fn name(self) -> &'static str {
        match self {
            AutoPad::NotSet => "NOTSET",
            AutoPad::SameUpper => "SAME_UPPER",
            AutoPad::SameLower => "SAME_LOWER",
            AutoPad::Valid => "VALID",
        }
    }

    /// Takes `auto_pad` out of the attributes.
    ///
    /// # Errors
    /// When it is none of ONNX's four words.
    pub fn take(attrs: &mut AttrMap) -> Result<AutoPad, OpError> {
        match attrs.string("auto_pad")?.as_deref() {
            None | Some("NOTSET" | "") => Ok(AutoPad::NotSet),
            Some("SAME_UPPER") => Ok(AutoPad::SameUpper),
            Some("SAME_LOWER") => Ok(AutoPad::SameLower),
            Some("VALID") => Ok(AutoPad::Valid),
            Some(other) => {
                let problem = format!("is \"{other}\", not NOTSET, SAME_UPPER, SAME_LOWER or VALID");
                Err(OpError::attribute("auto_pad", problem))
            }
        }
    }
}

/// The attributes of a window, as they stand in the file; empty lists are absent attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WindowAttrs {
    /// Kernel extents, in elements; a convolution takes them from its weight where absent.
    pub kernel_shape: Vec<usize>,
    /// Strides; 1 where absent.
    pub strides: Vec<usize>,
    /// Dilations; 1 where absent.
    pub dilations: Vec<usize>,
    /// All beginnings, then all ends, in elements; 0 where absent.
    pub pads: Vec<usize>,
    /// How pads are chosen.
    pub auto_pad: AutoPad,
    /// Whether a last window that hangs over the padded input counts (pools only).
    pub ceil_mode: bool,
}

impl WindowAttrs {
    /// Takes a window's attributes out of the map.
    ///
    /// # Errors
    /// When one has the wrong kind, a wrong length, or entries out of range.
    pub fn take(attrs: &mut AttrMap) -> Result<WindowAttrs, OpError> {
        let w = WindowAttrs {
            kernel_shape: take_extents(attrs, "kernel_shape", 1)?,
            strides: take_extents(attrs, "strides", 1)?,
            dilations: take_extents(attrs, "dilations", 1)?,
            pads: take_extents(attrs, "pads", 0)?,
            auto_pad: AutoPad::take(attrs)?,
            ceil_mode: attrs.flag("ceil_mode")?,
        };
        if !w.kernel_shape.is_empty() {
            w.check_rank(w.kernel_shape.len())?;
        }
        Ok(w)
    }

    /// As [`WindowAttrs::take`], for pools: `kernel_shape` is required.
    ///
    /// # Errors
    /// As [`WindowAttrs::take`].
    pub fn take_pool(attrs: &mut AttrMap) -> Result<WindowAttrs, OpError> {
        let w = WindowAttrs::take(attrs)?;
        if w.kernel_shape.is_empty() {
            return Err(OpError::attribute("kernel_shape", "is missing"));
        }
        Ok(w)
    }

    /// Adds the attributes to a map, as they were taken.
    pub fn put(&self, attrs: AttrMap) -> AttrMap {
        let list = |v: &[usize]| (!v.is_empty()).then(|| to_ints(v));
        let auto_pad = (self.auto_pad != AutoPad::NotSet).then(|| self.auto_pad.name());
        attrs
            .with_opt("kernel_shape", list(&self.kernel_shape))
            .with_opt("strides", list(&self.strides))
            .with_opt("dilations", list(&self.dilations))
            .with_opt("pads", list(&self.pads))
            .with_opt("auto_pad", auto_pad)
            .with_unless("ceil_mode", i64::from(self.ceil_mode), 0)
    }

    /// The stride along an axis.
    pub fn stride(&self, axis: usize) -> usize {
        self.strides.get(axis).copied().unwrap_or(1)
    }

    /// The dilation along an axis.
    pub fn dilation(&self, axis: usize) -> usize {
        self.dilations.get(axis).copied().unwrap_or(1)
    }

    /// The explicit pads at the beginning and end of an axis of `rank` spatial axes.
    pub fn pad(&self, axis: usize, rank: usize) -> (usize, usize) {
        let at = |i: usize| self.pads.get(i).copied().unwrap_or(0);
        (at(axis), at(axis + rank))
    }

    /// Checks that the lists fit to this number of spatial axes.
    ///
    /// # Errors
    /// When one has another length.
    pub fn check_rank(&self, rank: usize) -> Result<(), OpError> {
        let lists = [
            ("kernel_shape", &self.kernel_shape, rank),
            ("strides", &self.strides, rank),
            ("dilations", &self.dilations, rank),
            ("pads", &self.pads, 2 * rank),
        ];
        match lists.into_iter().find(|(_, v, n)| !v.is_empty() && v.len() != *n) {
            None => Ok(()),
            Some((name, v, n)) => {
                let problem = format!("has {} entries, {n} are needed for {rank} spatial axes", v.len());
                Err(OpError::attribute(name, problem))
            }
        }
    }

    /// The kernel: the attribute, which must agree with the weight's spatial extents where given.
    ///
    /// # Errors
    /// When they differ.
    pub fn kernel_of(&self, weight: &[usize]) -> Result<Vec<usize>, OpError> {
        if self.kernel_shape.is_empty() || self.kernel_shape == weight {
            return Ok(weight.to_vec());
        }
        let problem = format!("is {:?}, but the weight's spatial extents are {weight:?}", self.kernel_shape);
        Err(OpError::attribute("kernel_shape", problem))
    }

    /// The window over spatial extents `input` with kernel extents `kernel`.
    ///
    /// # Errors
    /// When the ranks differ or the kernel is larger than the padded input.
    pub fn resolve(&self, input: &[usize], kernel: &[usize]) -> Result<Window, OpError> {
        let rank = input.len();
        self.check_rank(rank)?;
        if kernel.len() != rank {
            let message = format!("a kernel of extents {kernel:?} can't slide over spatial extents {input:?}");
            return Err(OpError::shape(message));
        }
        let mut w = Window {
            input: input.to_vec(),
            kernel: kernel.to_vec(),
            strides: (0..rank).map(|a| self.stride(a)).collect(),
            dilations: (0..rank).map(|a| self.dilation(a)).collect(),
            ..Window::default()
        };
        for a in 0..rank {
            let (begin, end, out) = self.resolve_axis(a, rank, input[a], kernel[a])?;
            w.begins.push(begin);
            w.ends.push(end);
            w.output.push(out);
        }
        // Offsets into these are computed without checks.
        for extents in [&w.input, &w.kernel, &w.output] {
            shape::count(extents)?;
        }
        Ok(w)
    }

    /// Pads and output extent along one axis (formulas of the ONNX pages of Conv and MaxPool).
    fn resolve_axis(
        &self,
        axis: usize,
        rank: usize,
        input: usize,
        kernel: usize,
    ) -> Result<(usize, usize, usize), OpError> {
        // 64-bit factors: no product of two can overflow 128 bits.
        let (n, k, s, d) = (input as i128, kernel as i128, self.stride(axis) as i128, self.dilation(axis) as i128);
        let extent = (k - 1) * d + 1;
        let (begin, end, out) = match self.auto_pad {
            AutoPad::SameUpper | AutoPad::SameLower => {
                let out = (n + s - 1) / s;
                let (begin, end) = split_pad((out - 1) * s + extent - n, self.auto_pad == AutoPad::SameUpper);
                (begin, end, out)
            }
            AutoPad::Valid | AutoPad::NotSet => {
                let (begin, end) = if self.auto_pad == AutoPad::Valid { (0, 0) } else { self.pad(axis, rank) };
                let (begin, end) = (begin as i128, end as i128);
                let free = n + begin + end - extent;
                if free < 0 || k == 0 {
                    let message =
                        format!("a kernel extent of {extent} does not fit into a padded extent of {}", n + begin + end);
                    return Err(OpError::shape(format!("{message} (spatial axis {axis})")));
                }
                let mut out = if self.ceil_mode { (free + s - 1) / s + 1 } else { free / s + 1 };
                // A window that starts in the padding at the end is none.
                if self.ceil_mode && (out - 1) * s >= n + begin {
                    out -= 1;
                }
                (begin, end, out)
            }
        };
        let small = |x: i128| usize::try_from(x).ok().filter(|&x| x <= isize::MAX as usize);
        match (small(begin), small(end), small(out)) {
            (Some(b), Some(e), Some(o)) => Ok((b, e, o)),
            _ => Err(OpError::shape(format!("the padded extent of spatial axis {axis} is too large"))),
        }
    }

    /// The output extents over symbolic extents.
    ///
    /// # Errors
    /// As [`WindowAttrs::resolve`], as far as the extents are known.
    pub fn infer(&self, input: &[Dim], kernel: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let rank = input.len();
        self.check_rank(rank)?;
        if kernel.len() != rank {
            let message = format!("a kernel of {} axes can't slide over {rank} spatial axes", kernel.len());
            return Err(OpError::shape(message));
        }
        (0..rank).map(|a| self.infer_axis(a, rank, &input[a], &kernel[a])).collect()
    }

    fn infer_axis(&self, axis: usize, rank: usize, input: &Dim, kernel: &Dim) -> Result<Dim, OpError> {
        if let (Some(n), Some(k)) = (input.as_usize(), kernel.as_usize()) {
            return Ok(self.resolve_axis(axis, rank, n, k)?.2.into());
        }
        let stride = Dim::from(self.stride(axis));
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            return Ok(input.add(&stride.sub(&Dim::Known(1))).div(&stride));
        }
        if self.ceil_mode && self.stride(axis) != 1 {
            return Ok(Dim::Unknown);
        }
        let (begin, end) = if self.auto_pad == AutoPad::Valid { (0, 0) } else { self.pad(axis, rank) };
        let taken = kernel.sub(&Dim::Known(1)).mul(&Dim::from(self.dilation(axis)));
        let grown = match (Dim::from(begin).add(&Dim::from(end)).sub(&taken), stride == Dim::Known(1)) {
            (Dim::Known(c), true) => return Ok(shift(input, c)),
            (Dim::Known(c), false) => shift(input, c.saturating_sub(1)),
            _ => return Ok(Dim::Unknown),
        };
        Ok(grown.div(&stride).add(&Dim::Known(1)))
    }
}

/// An extent plus a number of either sign.
pub(super) fn shift(d: &Dim, by: i64) -> Dim {
    if by < 0 { d.sub(&Dim::Known(by.saturating_neg())) } else { d.add(&Dim::Known(by)) }
}

/// Splits a total pad between beginning and end; nothing is padded where it is negative.
pub(super) fn split_pad(total: i128, upper: bool) -> (i128, i128) {
    let total = total.max(0);
    let (less, more) = (total / 2, total - total / 2);
    if upper { (less, more) } else { (more, less) }
}

fn take_extents(attrs: &mut AttrMap, name: &str, least: i64) -> Result<Vec<usize>, OpError> {
    let list = attrs.ints(name)?.unwrap_or_default();
    let problem = || OpError::attribute(name, format!("is {list:?}, entries must be at least {least}"));
    list.iter().map(|&x| usize::try_from(x).ok().filter(|_| x >= least).ok_or_else(problem)).collect()
}

/// Extents as an attribute.
pub(super) fn to_ints(v: &[usize]) -> Vec<i64> {
    v.iter().map(|&x| x as i64).collect()
}

/// A window with everything resolved: what a kernel needs to know. All lists have one
/// entry per spatial axis, in elements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// Input extents.
    pub input: Vec<usize>,
    /// Kernel extents.
    pub kernel: Vec<usize>,
    /// Strides.
    pub strides: Vec<usize>,
    /// Dilations.
    pub dilations: Vec<usize>,
    /// Pads at the beginnings.
    pub begins: Vec<usize>,
    /// Pads at the ends.
    pub ends: Vec<usize>,
    /// Output extents.
    pub output: Vec<usize>,
}

/// The part of a window along one axis that lies in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first input index.
    pub first: usize,
    /// The kernel index that meets it.
    pub kernel: usize,
    /// How many kernel indices lie in the input.
    pub len: usize,
    /// How many kernel indices lie in the padded input (pads included, overhang of `ceil_mode` not).
    pub padded: usize,
}

/// A run of taps along the last axis: equally spaced input elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The input offset within its plane.
    pub offset: usize,
    /// The kernel offset.
    pub kernel: usize,
    /// The number of taps; [`Window::step`] apart in the input, adjacent in the kernel.
    pub len: usize,
}

impl Window {
    /// The number of output positions.
    pub fn positions(&self) -> usize {
        self.output.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// The number of kernel elements.
    pub fn taps(&self) -> usize {
        self.kernel.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// The number of spatial axes.
    pub fn rank(&self) -> usize {
        self.input.len()
    }

    /// The distance in the input of adjacent kernel elements along the last axis.
    pub fn step(&self) -> usize {
        self.dilations.last().copied().unwrap_or(1)
    }

    /// The part of output position `o`'s window that lies in the input, along `axis`.
    pub fn span(&self, axis: usize, o: usize) -> Span {
        let (n, k, d) = (self.input[axis], self.kernel[axis], self.dilations[axis]);
        // Kernel index j meets the padded input at start + j·d. Positions are below the
        // output extent, so that start is inside the padded input: no product overflows.
        let start = o.saturating_mul(self.strides[axis]);
        let below = |limit: usize| if limit > start { (limit - start).div_ceil(d).min(k) } else { 0 };
        let (from, to) = (below(self.begins[axis]), below(n.saturating_add(self.begins[axis])));
        let padded = below(n.saturating_add(self.begins[axis]).saturating_add(self.ends[axis]));
        let first = (start + from.saturating_mul(d)).saturating_sub(self.begins[axis]);
        Span { first, kernel: from, len: to.saturating_sub(from), padded }
    }

    /// Calls `f` with each output position, the spans of its window, and their runs of taps,
    /// in row-major order.
    pub(super) fn walk(&self, mut f: impl FnMut(usize, &[Span], &[Run])) {
        let rank = self.rank();
        let mut spans: Vec<Span> = (0..rank).map(|a| self.span(a, 0)).collect();
        let mut at = vec![0; rank];
        let mut runs = Vec::new();
        let mut index = vec![0; rank];
        for position in 0..self.positions() {
            self.runs(&spans, &mut index, &mut runs);
            f(position, &spans, &runs);
            for a in (0..rank).rev() {
                at[a] = if at[a] + 1 < self.output[a] { at[a] + 1 } else { 0 };
                spans[a] = self.span(a, at[a]);
                if at[a] != 0 {
                    break;
                }
            }
        }
    }

    /// The runs of taps of a window; `index` is scratch of the rank.
    fn runs(&self, spans: &[Span], index: &mut [usize], runs: &mut Vec<Run>) {
        runs.clear();
        if spans.iter().any(|s| s.len == 0) {
            return;
        }
        let Some((last, outer)) = spans.split_last() else {
            runs.push(Run { offset: 0, kernel: 0, len: 1 });
            return;
        };
        index.fill(0);
        for _ in 0..outer.iter().map(|s| s.len).product() {
            let (mut offset, mut kernel) = (0, 0);
            for (a, s) in outer.iter().enumerate() {
                offset = offset * self.input[a] + s.first + index[a] * self.dilations[a];
                kernel = kernel * self.kernel[a] + s.kernel + index[a];
            }
            let a = outer.len();
            runs.push(Run {
                offset: offset * self.input[a] + last.first,
                kernel: kernel * self.kernel[a] + last.kernel,
                len: last.len,
            });
            for a in (0..outer.len()).rev() {
                index[a] += 1;
                if index[a] < outer[a].len {
                    break;
                }
                index[a] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pads: &[usize], strides: &[usize], auto_pad: AutoPad, ceil_mode: bool) -> WindowAttrs {
        WindowAttrs { pads: pads.to_vec(), strides: strides.to_vec(), auto_pad, ceil_mode, ..WindowAttrs::default() }
    }

    #[test]
    fn resolves_pads_and_extents_for_each_auto_pad() {
        let w = attrs(&[1, 0], &[2], AutoPad::NotSet, false).resolve(&[7], &[3]).unwrap();
        assert_eq!((w.begins[0], w.ends[0], w.output[0]), (1, 0, 3));
        let w = attrs(&[], &[2], AutoPad::SameUpper, false).resolve(&[6], &[3]).unwrap();
        assert_eq!((w.begins[0], w.ends[0], w.output[0]), (0, 1, 3));
        let w = attrs(&[], &[2], AutoPad::SameLower, false).resolve(&[6], &[3]).unwrap();
        assert_eq!((w.begins[0], w.ends[0], w.output[0]), (1, 0, 3));
        let w = attrs(&[], &[2], AutoPad::Valid, false).resolve(&[6], &[3]).unwrap();
        assert_eq!((w.begins[0], w.ends[0], w.output[0]), (0, 0, 2));
    }

    #[test]
    fn drops_a_last_window_that_starts_in_the_padding() {
        assert_eq!(attrs(&[], &[2], AutoPad::NotSet, true).resolve(&[4], &[3]).unwrap().output, [2]);
        assert_eq!(attrs(&[], &[2], AutoPad::NotSet, true).resolve(&[2], &[1]).unwrap().output, [1]);
        assert_eq!(attrs(&[1, 1], &[3], AutoPad::NotSet, true).resolve(&[5], &[3]).unwrap().output, [2]);
    }

    #[test]
    fn infers_symbolic_extents() {
        let (h, k) = ([Dim::sym("h")], [Dim::Known(3)]);
        let same = attrs(&[1, 1], &[1], AutoPad::NotSet, false).infer(&h, &k).unwrap();
        assert_eq!(same, [Dim::sym("h")]);
        let half = attrs(&[1, 1], &[2], AutoPad::NotSet, false).infer(&h, &k).unwrap();
        assert_eq!(half[0].to_string(), "(h - 1)/2 + 1");
        let wide = attrs(&[2, 2], &[1], AutoPad::NotSet, false).infer(&h, &k).unwrap();
        assert_eq!(wide[0].to_string(), "h + 2");
    }

    #[test]
    fn refuses_kernels_larger_than_the_input_and_hostile_extents() {
        assert!(attrs(&[], &[], AutoPad::NotSet, false).resolve(&[2], &[3]).is_err());
        assert!(attrs(&[], &[1, 1], AutoPad::NotSet, false).resolve(&[5], &[3]).is_err());
        let huge = usize::MAX / 2;
        assert!(attrs(&[huge, huge], &[], AutoPad::NotSet, false).resolve(&[huge], &[huge]).is_err());
        let mut bad = AttrMap::new().with("strides", vec![0i64]);
        assert!(WindowAttrs::take(&mut bad).is_err());
        let mut bad = AttrMap::new().with("auto_pad", "SAME");
        assert!(WindowAttrs::take(&mut bad).is_err());
        let mut bad = AttrMap::new().with("kernel_shape", vec![2i64]).with("pads", vec![1i64]);
        assert!(WindowAttrs::take(&mut bad).is_err());
    }

    #[test]
    fn walks_taps_of_padded_and_dilated_windows() {
        let mut a = attrs(&[1, 1, 1, 1], &[], AutoPad::NotSet, false);
        a.dilations = vec![1, 2];
        let w = a.resolve(&[2, 4], &[2, 2]).unwrap();
        assert_eq!(w.output, [3, 4]);
        let mut taps = Vec::new();
        w.walk(|p, _, runs| {
            if p < 2 {
                taps.push(runs.to_vec());
            }
        });
        // Position (0, 0): row −1 is padding; row 0 meets columns −1 and 1.
        assert_eq!(taps[0], [Run { offset: 1, kernel: 3, len: 1 }]);
        assert_eq!(taps[1], [Run { offset: 0, kernel: 2, len: 2 }]);
    }

    #[test]
    fn counts_padding_but_not_overhang() {
        let w = attrs(&[1, 1], &[2], AutoPad::NotSet, true).resolve(&[4], &[3]).unwrap();
        assert_eq!(w.output, [3]);
        assert_eq!(w.span(0, 0), Span { first: 0, kernel: 1, len: 2, padded: 3 });
        assert_eq!(w.span(0, 2), Span { first: 3, kernel: 0, len: 1, padded: 2 });
    }
}
