//! How a real number becomes a whole one, and what is rounded.

/// What becomes of a number between two whole ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rounding {
    /// To the nearest; halfway to the even one (IEEE 754, ONNX, numpy, PyTorch).
    HalfEven,
    /// To the nearest; halfway towards +∞: `⌊x + 1/2⌋` (Vitis' activations, QuantizeML's shifts).
    HalfUp,
    /// To the nearest; halfway away from zero (C's `round`; Vitis' `std_round`, TensorFlow Lite, MXNet).
    HalfAway,
    /// To the nearest; halfway towards zero (Vitis' `half_down`).
    HalfDown,
}

impl Rounding {
    /// The whole number for `x`; exact for every `f64`.
    pub fn round(self, x: f64) -> f64 {
        let floor = x.floor();
        let up = match (self, x - floor) {
            (_, f) if f < 0.5 => false,
            (_, f) if f > 0.5 => true,
            (Rounding::HalfEven, _) => floor % 2.0 != 0.0,
            (Rounding::HalfUp, _) => true,
            (Rounding::HalfAway, _) => x > 0.0,
            (Rounding::HalfDown, _) => x < 0.0,
        };
        if up { floor + 1.0 } else { floor }
    }
}

/// What a tool rounds to get a weight's code, all in `f32`: the order of the operations decides the
/// last bit, and so which side of a border a value falls on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quotient {
    /// `x / d`, where d is the scale (ONNX, numpy, QuantizeML).
    Divided,
    /// `x · (1/d)`, where d is the scale (PyTorch, whose FBGEMM keeps the inverse).
    Inverse,
    /// `x · n / d`, where n is the greatest code and d the greatest magnitude (Intel Neural Compressor on
    /// TensorFlow).
    Scaled,
    /// `x · ((n + ½)/d)`, with n and d as before (MXNet, whose ranges end at 127.5 and 255.5).
    Factor,
}

impl Quotient {
    /// The number to round for `x`, where `most` is the greatest code.
    pub fn of(self, x: f32, d: f32, most: i32) -> f32 {
        match self {
            Quotient::Divided => x / d,
            Quotient::Inverse => x * (1.0 / d),
            Quotient::Scaled => x * most as f32 / d,
            Quotient::Factor => x * ((most as f32 + 0.5) / d),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_halves_as_each_mode_says() {
        let halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5];
        for (mode, expected) in [
            (Rounding::HalfEven, [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]),
            (Rounding::HalfUp, [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]),
            (Rounding::HalfAway, [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]),
            (Rounding::HalfDown, [-2.0, -1.0, 0.0, 0.0, 1.0, 2.0]),
        ] {
            assert_eq!(halves.map(|x| mode.round(x)), expected, "{mode:?}");
            assert_eq!([-1.2, 0.49999999999999994, 7.0].map(|x| mode.round(x)), [-1.0, 0.0, 7.0], "{mode:?}");
        }
    }
}
