//! Sliding windows: the geometry of convolutions and pooling, and a reference convolution.

use narrowbit_ir::{AttrMap, Dim, OpError, check_size};
use narrowbit_tensor::{DType, shape};

use super::product::gemm;

/// How a window is padded where `pads` does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoPad {
    /// By `pads`.
    #[default]
    NotSet,
    /// So that the output has `ceil(input / stride)` elements, the odd one at the end.
    SameUpper,
    /// As `SameUpper`, the odd one at the beginning.
    SameLower,
    /// Not at all.
    Valid,
}

/// The attributes that ONNX's convolutions and pools share, as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WindowAttrs {
    /// Padding by rule instead of by numbers.
    pub auto_pad: AutoPad,
    /// The window's extents; `None` is the weight's.
    pub kernel_shape: Option<Vec<i64>>,
    /// Steps between windows; `None` is 1.
    pub strides: Option<Vec<i64>>,
    /// Steps within the window; `None` is 1.
    pub dilations: Option<Vec<i64>>,
    /// Padding: all beginnings, then all ends; `None` is 0.
    pub pads: Option<Vec<i64>>,
    /// Whether a partial window at the end counts (pools only).
    pub ceil_mode: bool,
}

/// Keeps sums of extents, padding and windows within 64 bits.
const MAX_EXTENT: i64 = 1 << 40;

impl WindowAttrs {
    /// Takes the attributes out of the map.
    ///
    /// # Errors
    /// When one has another kind or a value that is out of range.
    pub fn take(attrs: &mut AttrMap) -> Result<WindowAttrs, OpError> {
        let auto_pad = match attrs.string("auto_pad")?.as_deref() {
            None | Some("" | "NOTSET") => AutoPad::NotSet,
            Some("SAME_UPPER") => AutoPad::SameUpper,
            Some("SAME_LOWER") => AutoPad::SameLower,
            Some("VALID") => AutoPad::Valid,
            Some(other) => {
                let problem = format!("is \"{other}\", expected NOTSET, SAME_UPPER, SAME_LOWER or VALID");
                return Err(OpError::attribute("auto_pad", problem));
            }
        };
        let mut list = |name: &str, least: i64| match attrs.ints(name)? {
            Some(v) if v.iter().any(|&x| !(least..=i64::from(i32::MAX)).contains(&x)) => {
                Err(OpError::attribute(name, format!("is {v:?}, each must be at least {least} and fit 31 bits")))
            }
            v => Ok(v),
        };
        let kernel_shape = list("kernel_shape", 1)?;
        let (strides, dilations) = (list("strides", 1)?, list("dilations", 1)?);
        // Negative padding crops; ONNX Runtime refuses it in Conv and so do we.
        let pads = list("pads", 0)?;
        Ok(WindowAttrs { auto_pad, kernel_shape, strides, dilations, pads, ceil_mode: attrs.flag("ceil_mode")? })
    }

    /// The attributes as they stood in the file.
    pub fn attrs(&self) -> AttrMap {
        let auto_pad = match self.auto_pad {
            AutoPad::NotSet => None,
            AutoPad::SameUpper => Some("SAME_UPPER"),
            AutoPad::SameLower => Some("SAME_LOWER"),
            AutoPad::Valid => Some("VALID"),
        };
        AttrMap::new()
            .with_opt("auto_pad", auto_pad)
            .with_opt("kernel_shape", self.kernel_shape.clone())
            .with_opt("strides", self.strides.clone())
            .with_opt("dilations", self.dilations.clone())
            .with_opt("pads", self.pads.clone())
            .with_unless("ceil_mode", i64::from(self.ceil_mode), 0)
    }

    fn per_axis(&self, name: &str, given: &Option<Vec<i64>>, rank: usize) -> Result<Vec<i64>, OpError> {
        match given {
            None => Ok(vec![1; rank]),
            Some(v) if v.len() == rank => Ok(v.clone()),
            Some(v) => Err(OpError::attribute(name, format!("is {v:?}, but there are {rank} spatial dimensions"))),
        }
    }

    /// The window's extents where the file states them and they have that rank, else `weight`'s.
    pub fn kernel(&self, weight: Option<&[usize]>, rank: usize) -> Result<Vec<i64>, OpError> {
        match (&self.kernel_shape, weight) {
            (Some(k), Some(w)) if k.iter().map(|&x| x as usize).ne(w.iter().copied()) => {
                Err(OpError::attribute("kernel_shape", format!("is {k:?}, but the weight's is {w:?}")))
            }
            (Some(_), _) => self.per_axis("kernel_shape", &self.kernel_shape, rank),
            (None, Some(w)) => Ok(w.iter().map(|&x| x as i64).collect()),
            (None, None) => Err(OpError::attribute("kernel_shape", "is missing")),
        }
    }

    /// The geometry over an input with these spatial extents.
    pub fn resolve(&self, input: &[usize], kernel: &[i64]) -> Result<Window, OpError> {
        let rank = input.len();
        let strides = self.per_axis("strides", &self.strides, rank)?;
        let dilations = self.per_axis("dilations", &self.dilations, rank)?;
        let (mut begin, mut out) = (Vec::new(), Vec::new());
        for i in 0..rank {
            let extent = i64::try_from(input[i])
                .ok()
                .filter(|&n| n < MAX_EXTENT)
                .ok_or_else(|| OpError::shape(format!("a spatial extent of {} is too large", input[i])))?;
            let (b, e) = self.padding(i, rank, extent, kernel[i], strides[i], dilations[i])?;
            let n = self.extent(extent, b + e, b, kernel[i], strides[i], dilations[i]);
            let n = usize::try_from(n).ok().filter(|&n| n > 0 || extent == 0).ok_or_else(|| {
                OpError::shape(format!(
                    "a window of {kernel:?} does not fit into an input of {input:?} with its padding"
                ))
            })?;
            begin.push(b);
            out.push(n);
        }
        Ok(Window { input: input.to_vec(), kernel: kernel.to_vec(), strides, dilations, begin, out })
    }

    fn padding(&self, i: usize, rank: usize, extent: i64, k: i64, s: i64, d: i64) -> Result<(i64, i64), OpError> {
        let span = (k - 1).saturating_mul(d) + 1;
        let same =
            || ((extent.div_euclid(s) + i64::from(extent % s != 0) - 1).saturating_mul(s) + span - extent).max(0);
        Ok(match self.auto_pad {
            AutoPad::Valid => (0, 0),
            AutoPad::SameUpper => (same() / 2, same() - same() / 2),
            AutoPad::SameLower => (same() - same() / 2, same() / 2),
            AutoPad::NotSet => match &self.pads {
                None => (0, 0),
                Some(p) if p.len() == 2 * rank => (p[i], p[i + rank]),
                Some(p) => {
                    return Err(OpError::attribute("pads", format!("is {p:?}, but {} numbers are expected", 2 * rank)));
                }
            },
        })
    }

    fn extent(&self, extent: i64, pads: i64, begin: i64, k: i64, s: i64, d: i64) -> i64 {
        let room = extent + pads - ((k - 1).saturating_mul(d) + 1);
        if room < 0 {
            return 0;
        }
        let up = self.ceil_mode && room % s != 0;
        let n = room / s + 1 + i64::from(up);
        // A window that starts in the padding at the end does not count.
        if up && (n - 1) * s >= extent + begin { n - 1 } else { n }
    }

    /// The symbolic spatial extents of the output.
    pub fn infer(&self, input: &[Dim], kernel: &[Option<i64>]) -> Result<Vec<Dim>, OpError> {
        let rank = input.len();
        let strides = self.per_axis("strides", &self.strides, rank)?;
        let dilations = self.per_axis("dilations", &self.dilations, rank)?;
        let mut out = Vec::new();
        for i in 0..rank {
            let Some(k) = kernel[i] else {
                out.push(Dim::Unknown);
                continue;
            };
            let same = matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
            out.push(match &input[i] {
                Dim::Known(n) if *n >= 0 => {
                    let one = [usize::try_from(*n).unwrap_or(0)];
                    let attrs = self.axis(i, rank)?;
                    attrs.resolve(&one, &[k])?.out[0].into()
                }
                d if same && strides[i] == 1 => d.clone(),
                d if strides[i] == 1 && !same => {
                    let (b, e) = self.padding(i, rank, 0, k, 1, dilations[i])?;
                    d.add(&Dim::Known(b + e - (k - 1).saturating_mul(dilations[i])))
                }
                _ => Dim::Unknown,
            });
        }
        Ok(out)
    }

    /// The attributes of one axis alone.
    fn axis(&self, i: usize, rank: usize) -> Result<WindowAttrs, OpError> {
        let pads = match &self.pads {
            Some(p) if p.len() != 2 * rank => {
                return Err(OpError::attribute("pads", format!("is {p:?}, but {} numbers are expected", 2 * rank)));
            }
            p => p.as_ref().map(|p| vec![p[i], p[i + rank]]),
        };
        let pick = |v: &Option<Vec<i64>>| v.as_ref().map(|v| vec![v[i]]);
        let (strides, dilations) = (pick(&self.strides), pick(&self.dilations));
        Ok(WindowAttrs { kernel_shape: None, strides, dilations, pads, ..*self })
    }
}

/// A window's geometry over a concrete input.
#[derive(Debug, Clone)]
pub struct Window {
    /// The input's spatial extents.
    pub input: Vec<usize>,
    /// The window's extents.
    pub kernel: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Steps within a window.
    pub dilations: Vec<i64>,
    /// Padding at the beginning of each axis.
    pub begin: Vec<i64>,
    /// The output's spatial extents.
    pub out: Vec<usize>,
}

impl Window {
    /// Number of elements of the window.
    pub fn taps(&self) -> usize {
        self.kernel.iter().fold(1usize, |n, &k| n.saturating_mul(k as usize))
    }

    /// Number of output positions.
    pub fn positions(&self) -> usize {
        self.out.iter().product()
    }

    /// The coordinates of output position `p`'s first element, in the input, padding below 0.
    fn origin(&self, mut p: usize, at: &mut [i64]) {
        for i in (0..self.out.len()).rev() {
            at[i] = (p % self.out[i]) as i64 * self.strides[i] - self.begin[i];
            p /= self.out[i];
        }
    }

    fn tap(&self, mut t: usize) -> Vec<i64> {
        let mut at = vec![0; self.kernel.len()];
        for i in (0..at.len()).rev() {
            at[i] = (t % self.kernel[i] as usize) as i64 * self.dilations[i];
            t /= self.kernel[i] as usize;
        }
        at
    }

    /// For the output positions `from..to`, the input offset that each tap reads; taps in the order
    /// of the kernel, `None` in the padding: `visit(tap, offsets)`.
    pub fn for_each_tap(&self, from: usize, to: usize, mut visit: impl FnMut(usize, &[Option<usize>])) {
        let rank = self.out.len();
        let mut origins = vec![0i64; (to - from) * rank];
        if rank > 0 {
            for (p, at) in (from..to).zip(origins.chunks_exact_mut(rank)) {
                self.origin(p, at);
            }
        }
        let strides = shape::strides(&self.input);
        let mut offsets = vec![Some(0usize); to - from];
        for t in 0..self.taps() {
            let tap = self.tap(t);
            if rank > 0 {
                for (o, at) in offsets.iter_mut().zip(origins.chunks_exact(rank)) {
                    *o = (0..rank).try_fold(0usize, |sum, i| {
                        let x = usize::try_from(at[i] + tap[i]).ok().filter(|&x| x < self.input[i])?;
                        Some(sum + x * strides[i])
                    });
                }
            }
            visit(t, &offsets);
        }
    }
}

/// The extents of a grouped convolution of `[n, c, spatial..]` with `[m, c / group, kernel..]`.
#[derive(Debug, Clone)]
pub(crate) struct Conv {
    pub n: usize,
    pub c: usize,
    pub m: usize,
    pub group: usize,
    pub window: Window,
}

/// Output positions that are unfolded at once: bounds the memory of a convolution.
const CHUNK: usize = 2048;

impl Conv {
    /// Checks the shapes against each other.
    pub fn new(x: &[usize], w: &[usize], group: i64, attrs: &WindowAttrs) -> Result<Conv, OpError> {
        if x.len() < 2 || w.len() != x.len() {
            return Err(OpError::shape(format!(
                "an input of shape {x:?} can't be convolved with a weight of shape {w:?}"
            )));
        }
        let (n, c, m) = (x[0], x[1], w[0]);
        let g = usize::try_from(group).ok().filter(|&g| g > 0);
        let Some(group) = g.filter(|&g| c % g == 0 && m % g == 0 && w[1] == c / g) else {
            return Err(OpError::shape(format!("input {x:?}, weight {w:?} and {group} groups do not fit together")));
        };
        let window = attrs.resolve(&x[2..], &attrs.kernel(Some(&w[2..]), x.len() - 2)?)?;
        Ok(Conv { n, c, m, group, window })
    }

    /// The output's shape, channels second.
    pub fn out(&self) -> Vec<usize> {
        [&[self.n, self.m], self.window.out.as_slice()].concat()
    }

    /// The sums of products, `[n, m, positions]`; padding reads `I::default()`.
    pub fn run<I: Copy + Default, A: Copy>(
        &self,
        x: &[I],
        w: &[I],
        zero: A,
        mac: impl Fn(A, I, I) -> A,
    ) -> Result<Vec<A>, OpError> {
        let total = check_size(DType::F64, &self.out())?;
        let (p, taps, plane) =
            (self.window.positions(), self.window.taps(), self.window.input.iter().product::<usize>());
        let (cg, mg) = (self.c / self.group, self.m / self.group);
        let depth = cg.saturating_mul(taps);
        let mut out = vec![zero; total];
        if total == 0 || depth == 0 {
            return Ok(out);
        }
        check_size(DType::F64, &[depth, CHUNK.min(p)])?;
        for from in (0..p).step_by(CHUNK) {
            let to = p.min(from + CHUNK);
            let width = to - from;
            let mut columns = vec![I::default(); depth * width];
            let mut sums = vec![zero; mg * width];
            for image in 0..self.n * self.group {
                // Image and group count together: `image` is n * group + g.
                let planes = &x[image * cg * plane..(image + 1) * cg * plane];
                self.window.for_each_tap(from, to, |t, offsets| {
                    for c in 0..cg {
                        let line = &mut columns[(c * taps + t) * width..][..width];
                        let src = &planes[c * plane..][..plane];
                        for (d, o) in line.iter_mut().zip(offsets) {
                            *d = o.map_or_else(I::default, |o| src[o]);
                        }
                    }
                });
                let g = image % self.group;
                sums.fill(zero);
                gemm(&w[g * mg * depth..(g + 1) * mg * depth], &columns, &mut sums, width, &mac);
                for (j, line) in sums.chunks_exact(width).enumerate() {
                    let at = (image * mg + j) * p + from;
                    out[at..at + width].copy_from_slice(line);
                }
            }
        }
        Ok(out)
    }
}

/// The symbolic shape of a convolution's output, channels second.
pub(crate) fn infer_conv(
    x: Option<&[Dim]>,
    w: Option<&[Dim]>,
    attrs: &WindowAttrs,
) -> Result<Option<Vec<Dim>>, OpError> {
    let Some(x) = x else { return Ok(None) };
    if x.len() < 2 || w.is_some_and(|w| w.len() != x.len()) {
        let shapes = (crate::support::show(x), crate::support::show(w.unwrap_or_default()));
        return Err(OpError::shape(format!(
            "an input of shape {} can't be convolved with a weight of shape {}",
            shapes.0, shapes.1
        )));
    }
    let rank = x.len() - 2;
    let kernel: Vec<Option<i64>> = match (&attrs.kernel_shape, w) {
        (Some(k), _) if k.len() == rank => k.iter().map(|&k| Some(k)).collect(),
        (Some(k), _) => {
            let problem = format!("is {k:?}, but there are {rank} spatial dimensions");
            return Err(OpError::attribute("kernel_shape", problem));
        }
        (None, Some(w)) => w[2..].iter().map(|d| d.as_known().filter(|&k| k > 0 && k <= i64::from(i32::MAX))).collect(),
        (None, None) => vec![None; rank],
    };
    let mut out = vec![x[0].clone(), w.map_or(Dim::Unknown, |w| w[0].clone())];
    out.extend(attrs.infer(&x[2..], &kernel)?);
    Ok(Some(out))
}

/// Moves the channels of `[n, spatial.., c]` to the second place, or back.
pub(crate) fn move_channels<T: Copy>(x: &[T], n: usize, c: usize, to_front: bool) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    if x.is_empty() {
        return out;
    }
    let plane = x.len() / (n * c);
    for image in x.chunks_exact(plane * c) {
        let (rows, columns) = if to_front { (c, plane) } else { (plane, c) };
        for r in 0..rows {
            out.extend((0..columns).map(|i| image[i * rows + r]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::product::mac_i32;
    use super::*;

    #[test]
    fn convolves_padded_groups() {
        let attrs = WindowAttrs { pads: Some(vec![1, 1]), ..WindowAttrs::default() };
        let conv = Conv::new(&[1, 2, 3], &[2, 1, 3], 2, &attrs).unwrap();
        assert_eq!(conv.out(), [1, 2, 3]);
        let y = conv.run(&[1, 2, 3, 4, 5, 6], &[1, 1, 1, 0, 1, 0], 0, mac_i32).unwrap();
        assert_eq!(y, [3, 6, 5, 4, 5, 6]);
    }

    #[test]
    fn pads_same_at_the_end_or_the_beginning() {
        let same = |auto_pad| WindowAttrs { auto_pad, strides: Some(vec![2]), ..WindowAttrs::default() };
        let upper = same(AutoPad::SameUpper).resolve(&[4], &[3]).unwrap();
        assert_eq!((upper.out.as_slice(), upper.begin.as_slice()), ([2].as_slice(), [0].as_slice()));
        assert_eq!(same(AutoPad::SameLower).resolve(&[4], &[3]).unwrap().begin, [1]);
    }

    #[test]
    fn refuses_windows_larger_than_the_input() {
        assert!(WindowAttrs::default().resolve(&[2], &[3]).is_err());
        assert!(WindowAttrs::take(&mut AttrMap::new().with("strides", vec![0i64])).is_err());
        assert!(Conv::new(&[1, 3, 4], &[2, 2, 1], 1, &WindowAttrs::default()).is_err());
    }

    #[test]
    fn infers_symbolic_extents_of_unit_strides() {
        let attrs = WindowAttrs { pads: Some(vec![1, 1]), ..WindowAttrs::default() };
        assert_eq!(attrs.infer(&[Dim::sym("w")], &[Some(3)]).unwrap(), [Dim::sym("w")]);
    }

    #[test]
    fn moves_channels_there_and_back() {
        let x = [1, 10, 2, 20, 3, 30];
        let front = move_channels(&x, 1, 2, true);
        assert_eq!(front, [1, 2, 3, 10, 20, 30]);
        assert_eq!(move_channels(&front, 1, 2, false), x);
    }
}
