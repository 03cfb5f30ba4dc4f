//! QLinearConv: convolution of 8-bit integers, requantized to 8 bits.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

use super::conv_integer::centred_weight;
use super::params::{bounds, from_ints, ints, ints8, round_saturate, single_f32, single_int};
use super::product::mac_i32;
use super::window::{Conv, WindowAttrs, infer_conv, move_channels};

/// `acc = conv(x - x_zero_point, w - w_zero_point) + bias` in int32, wrapping;
/// `y = saturate(round_half_even(acc as f32 * (x_scale * w_scale[m] / y_scale)) + y_zero_point)`,
/// the multiplier formed in f32 in this order as ONNX Runtime forms it (ONNX QLinearConv 10).
///
/// Inputs: x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, optional bias
/// (i32). x, w, y are i8 or u8; w_scale and w_zero_point are scalars or have one element per output
/// channel. The `com.microsoft` form may have the channels last in x and y (not in w).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QLinearConv {
    /// Padding, strides and the like.
    pub window: WindowAttrs,
    /// Groups of channels.
    pub group: i64,
    /// Whether x and y are `[n, spatial.., c]` (`com.microsoft` only).
    pub channels_last: bool,
    /// Whether this is the `com.microsoft` operator.
    pub microsoft: bool,
}

/// Makes a QLinearConv of ONNX's own domain.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (window, group) = (WindowAttrs::take(attrs)?, attrs.int_or("group", 1)?);
    Ok(Arc::new(QLinearConv { window, group, channels_last: false, microsoft: false }))
}

/// Makes a QLinearConv of the `com.microsoft` domain.
pub fn build_microsoft(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (window, group) = (WindowAttrs::take(attrs)?, attrs.int_or("group", 1)?);
    Ok(Arc::new(QLinearConv { window, group, channels_last: attrs.flag("channels_last")?, microsoft: true }))
}

/// One multiplier per output channel: `x_scale * w_scale[m] / y_scale`.
pub(crate) fn multipliers(x: f32, w: &[f32], y: f32, channels: usize) -> Result<Vec<f32>, OpError> {
    match w {
        [s] => Ok(vec![x * s / y; channels]),
        _ if w.len() == channels => Ok(w.iter().map(|s| x * s / y).collect()),
        _ => Err(OpError::shape(format!("weight has {channels} output channels but {} scales were given", w.len()))),
    }
}

/// Moves the last extent to the second place.
pub(crate) fn to_front<T: Clone>(shape: &[T]) -> Vec<T> {
    let mut s = shape.to_vec();
    if s.len() > 2 {
        s[1..].rotate_right(1);
    }
    s
}

/// Moves the second extent to the last place.
pub(crate) fn to_back<T: Clone>(shape: &[T]) -> Vec<T> {
    let mut s = shape.to_vec();
    if s.len() > 2 {
        s[1..].rotate_left(1);
    }
    s
}

impl Op for QLinearConv {
    fn name(&self) -> &str {
        "QLinearConv"
    }

    fn domain(&self) -> &str {
        if self.microsoft { "com.microsoft" } else { "" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x: Option<Vec<Dim>> = cx.shape(0).map(|s| if self.channels_last { to_front(s) } else { s.to_vec() });
        let out = infer_conv(x.as_deref(), cx.shape(3), &self.window)?;
        let out = out.map(|s| if self.channels_last { to_back(&s) } else { s });
        Ok(vec![Fact::tensor(cx.dtype(7).or(cx.dtype(0)), out)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, w) = (cx.get(0)?, cx.get(3)?);
        let shape = if self.channels_last { to_front(x.shape()) } else { x.shape().to_vec() };
        let conv = Conv::new(&shape, w.shape(), self.group, &self.window)?;
        let zero = single_int(cx.opt(2), 2)?;
        let mut xs: Vec<i32> = ints8(x, 0)?.into_iter().map(|v| v.wrapping_sub(zero)).collect();
        if self.channels_last {
            xs = move_channels(&xs, conv.n, conv.c, true);
        }
        let acc = conv.run(&xs, &centred_weight(w, cx.opt(5), 3)?, 0, mac_i32)?;
        let out_type = cx.opt(7).map_or(x.dtype(), Tensor::dtype);
        let range = bounds(out_type).ok_or_else(|| OpError::input(7, out_type.name(), "i8 or u8"))?;
        let y_zero = single_int(cx.opt(7), 7)?;
        let scales = cx.get(4)?.to_f32s()?;
        let scale = multipliers(single_f32(cx.get(1)?, 1)?, &scales, single_f32(cx.get(6)?, 6)?, conv.m)?;
        let bias = cx.opt(8).map(ints).transpose()?.unwrap_or_else(|| vec![0; conv.m]);
        if bias.len() != conv.m {
            return Err(OpError::shape(format!("{} biases for {} output channels", bias.len(), conv.m)));
        }
        let p = conv.window.positions();
        let mut y: Vec<i32> = acc
            .chunks(p.max(1))
            .enumerate()
            .flat_map(|(i, line)| {
                let (s, b) = (scale[i % conv.m], bias[i % conv.m]);
                line.iter().map(move |a| round_saturate(a.wrapping_add(b) as f32 * s, y_zero, range))
            })
            .collect();
        let mut out = conv.out();
        if self.channels_last {
            y = move_channels(&y, conv.n, conv.m, false);
            out = to_back(&out);
        }
        Ok(vec![from_ints(out_type, &out, y)?])
    }

    fn attrs(&self) -> AttrMap {
        self.window.attrs().with_unless("group", self.group, 1).with_unless(
            "channels_last",
            i64::from(self.channels_last),
            0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_one_multiplier_per_channel() {
        assert_eq!(multipliers(0.5, &[2.0, 4.0], 2.0, 2).unwrap(), [0.5, 1.0]);
        assert_eq!(multipliers(0.5, &[2.0], 2.0, 3).unwrap(), [0.5; 3]);
        assert!(multipliers(0.5, &[2.0, 4.0], 2.0, 3).is_err());
    }

    #[test]
    fn rotates_shapes_there_and_back() {
        assert_eq!(to_front(&[1, 5, 6, 3]), [1, 3, 5, 6]);
        assert_eq!(to_back(&[1, 3, 5, 6]), [1, 5, 6, 3]);
    }
}
