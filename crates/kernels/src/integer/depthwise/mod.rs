//! Depthwise convolution of NHWC images: each channel alone, vectors over the channels.

#[cfg(target_arch = "x86_64")]
mod direct;
mod finish;
mod floats;
mod ints;
#[cfg(target_arch = "x86_64")]
mod packed;
#[cfg(target_arch = "x86_64")]
mod vectors;

use crate::buffer::Buffer;
use crate::conv::Conv2dParams;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::panel::{Epilogue, Rows, Target};

const NAME: &str = "depthwise nhwc";
/// Channels of a block.
const BLOCK: usize = 64;
/// Channels to which the arrays of weights are padded: the lanes of the widest vectors.
const LANES: usize = 16;

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for i8 {}
    impl Sealed for f32 {}
}

/// Weights of a depthwise convolution: u8 or i8 (for integer images), or f32.
pub trait DepthwiseElement: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The value, which f32 holds exactly.
    #[doc(hidden)]
    fn float(self) -> f32;
    /// Whether the type is an integer.
    #[doc(hidden)]
    const INTEGER: bool;
}

macro_rules! element {
    ($($type:ty: $integer:literal),*) => {$(
        impl DepthwiseElement for $type {
            fn float(self) -> f32 {
                f32::from(self)
            }
            const INTEGER: bool = $integer;
        }
    )*};
}
element!(u8: true, i8: true, f32: false);

/// Packed weights of a depthwise convolution.
#[derive(Clone, Debug)]
pub struct DepthwiseWeights {
    shape: [usize; 3],
    form: Form,
    data: Buffer,
    /// The same in the order of `direct`, where that multiplies them.
    #[cfg(target_arch = "x86_64")]
    direct: Option<packed::Packed>,
    sums: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `[tap][channel]`.
    Floats,
    /// Words of four taps of a column, for each row of a group of output rows.
    Words { plan: ints::Plan, bytes: bool },
}

impl DepthwiseWeights {
    /// The sum of each channel's integer weights, less their zero points.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let direct = self.direct.as_ref().map_or(0, |direct| direct.len());
        #[cfg(not(target_arch = "x86_64"))]
        let direct = 0;
        4 * (self.data.len() + direct)
    }
}

fn check(p: &Conv2dParams) -> Result<[usize; 2]> {
    let out = p.output()?;
    require(NAME, p.groups == p.c && p.oc == p.c, "groups and output channels must equal the input channels")?;
    Ok(out)
}

/// Packs weights `[c, 1, kh, kw]` (ONNX `Conv` with as many groups as channels) for
/// [`depthwise_nhwc`]. `zeros` are the weights' zero points, one per channel, or none.
///
/// # Errors
/// The parameters are not those of a depthwise convolution or a slice has another length.
pub fn depthwise_nhwc_pack<T: DepthwiseElement>(
    exec: &Exec,
    p: &Conv2dParams,
    w: &[T],
    zeros: &[i32],
) -> Result<DepthwiseWeights> {
    check(p)?;
    let window = product(NAME, &[p.kh, p.kw])?;
    exact(NAME, "weights", w.len(), product(NAME, &[p.c, window])?)?;
    require(NAME, T::INTEGER || zeros.is_empty(), "floats have no weight zero points")?;
    if !zeros.is_empty() {
        exact(NAME, "weight zero points", zeros.len(), p.c)?;
        require(NAME, zeros.iter().all(|z| (-128..=255).contains(z)), "a weight zero point is not that of 8 bits")?;
    }
    let padded = p.c.next_multiple_of(LANES);
    let shape = [p.c, p.kh, p.kw];
    if !T::INTEGER {
        let mut data = Buffer::lasting(product(NAME, &[window, padded])?);
        for (t, row) in data.chunks_exact_mut(padded.max(1)).enumerate() {
            for (c, value) in row[..p.c].iter_mut().enumerate() {
                *value = w[c * window + t].float();
            }
        }
        return Ok(DepthwiseWeights {
            shape,
            form: Form::Floats,
            data,
            #[cfg(target_arch = "x86_64")]
            direct: None,
            sums: Vec::new(),
        });
    }
    let at = |c: usize, t: usize| w[c * window + t].float() as i32 - zeros.get(c).copied().unwrap_or(0);
    let narrow = (0..p.c).all(|c| (0..window).all(|t| i8::try_from(at(c, t)).is_ok()));
    let sums = (0..p.c).map(|c| (0..window).fold(0i32, |sum, t| sum.wrapping_add(at(c, t)))).collect();
    let bytes = narrow && ints::multiplies_bytes(exec.isa());
    let plan = ints::Plan::new(p);
    let data = plan.pack(p, padded, bytes, &at)?;
    Ok(DepthwiseWeights {
        shape,
        form: Form::Words { plan, bytes },
        data,
        #[cfg(target_arch = "x86_64")]
        direct: match packed::Set::of(exec.isa()) {
            Some(set) if narrow && direct::takes(p) => Some(packed::pack(set, p, &at)?),
            _ => None,
        },
        sums,
    })
}

/// `y = epilogue(conv(x, w))` for NHWC `x` and `y`, each channel with its own window;
/// `pad` is the element that padding holds (the zero point of integers; ignored for
/// floats, which may be bfloat16, as may results of floats). As with the panel kernels, i8 images count with 128 added: the epilogue's
/// offsets are the bias less `(zero point + 128) · column sum` for them, and less
/// `zero point · column sum` for u8.
///
/// # Errors
/// The parameters are invalid, the weights were packed for others or for another tier, or
/// a slice has another length.
pub fn depthwise_nhwc(
    exec: &Exec,
    p: &Conv2dParams,
    x: Rows<'_>,
    pad: i32,
    weights: &DepthwiseWeights,
    epilogue: &Epilogue<'_>,
    mut y: Target<'_>,
) -> Result {
    let [oh, ow] = check(p)?;
    exact(NAME, "x", x.len(), product(NAME, &[p.n, p.h, p.w, p.c])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[p.n, oh, ow, p.c])?)?;
    require(NAME, weights.shape == [p.c, p.kh, p.kw], "the weights were packed for another shape")?;
    epilogue.check(NAME, x.ints(), p.c, y.len())?;
    require(NAME, epilogue.weight_zeros.is_empty(), "weight zero points are given when the weights are packed")?;
    require(NAME, epilogue.rows.is_none(), "the format of the image is part of offsets and scales")?;
    y.require_no_sums(NAME)?;
    y.require_type(NAME, x.ints())?;
    let out = y.shared();
    match weights.form {
        Form::Floats => {
            require(NAME, !x.ints(), "image and weights have different types")?;
            let half = matches!(x, Rows::Bf16(_));
            floats::run(exec, p, [oh, ow], (x.ptr(), half), &weights.data, epilogue, out);
        }
        Form::Words { plan, bytes } => {
            require(NAME, x.ints(), "image and weights have different types")?;
            require(NAME, plan == ints::Plan::new(p), "the weights were packed for other strides or dilations")?;
            let tier = !bytes || ints::multiplies_bytes(exec.isa());
            require(NAME, tier, "the weights were packed for another instruction set")?;
            let image = ints::Image::new(p, [oh, ow], &x, pad)?;
            #[cfg(target_arch = "x86_64")]
            if let (Some(set), Some(weights)) = (packed::Set::of(exec.isa()), &weights.direct)
                && direct::takes(p)
                && direct::finishes(epilogue, &out)
            {
                direct::run(exec, set, &image, weights, epilogue, out);
                return Ok(());
            }
            ints::run(exec, &image, (plan, bytes), &weights.data, epilogue, out);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
