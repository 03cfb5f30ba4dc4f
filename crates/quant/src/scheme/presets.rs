//! Named schemes: how other tools quantize, as options.

use serde::{Deserialize, Serialize};

use super::{ActivationScheme, Formula, NumberFormat, WeightScheme};
use crate::observe::Method;
use crate::options::{FixedRanges, QuantOptions};

/// A tool whose scales, zero points and codes are to be had, bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Preset {
    /// Intel Neural Compressor on TensorFlow: symmetric, uint8 where nothing is negative.
    Tensorflow,
    /// PyTorch's MinMax observers: asymmetric uint8, symmetric int8 weights of `max/127.5`.
    Pytorch,
    /// Intel Extension for PyTorch: symmetric, uint8 where nothing is negative.
    Ipex,
    /// MXNet: symmetric, uint8 where nothing is negative.
    Mxnet,
    /// ONNX Runtime's `quantize_static` with its defaults: asymmetric int8, one scale per weight.
    Onnxruntime,
    /// Intel Neural Compressor on JAX in fp8: e4m3, softmax fixed to 0 … 1.
    IncJaxFp8,
    /// Intel Neural Compressor on JAX in int8: asymmetric activations, symmetric weights.
    IncJaxInt8,
    /// Vitis AI for a DPU: powers of two.
    VitisDpu,
    /// QuantizeML: fixed point with 8-bit scales.
    Quantizeml,
    /// TensorFlow Lite's converter: asymmetric int8, symmetric weights per channel.
    Tflite,
    /// The formulas of Intel Neural Compressor's guide taken literally. Not for use.
    IncDoc,
}

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 11] = [
        Preset::Tensorflow,
        Preset::Pytorch,
        Preset::Ipex,
        Preset::Mxnet,
        Preset::Onnxruntime,
        Preset::IncJaxFp8,
        Preset::IncJaxInt8,
        Preset::VitisDpu,
        Preset::Quantizeml,
        Preset::Tflite,
        Preset::IncDoc,
    ];

    /// The formula that the preset's name stands for.
    pub fn formula(self) -> Formula {
        match self {
            Preset::Tensorflow => Formula::Tensorflow,
            Preset::Pytorch => Formula::Pytorch,
            Preset::Ipex => Formula::Ipex,
            Preset::Mxnet => Formula::Mxnet,
            Preset::Onnxruntime => Formula::Onnxruntime,
            Preset::IncJaxFp8 | Preset::IncJaxInt8 => Formula::IncJax,
            Preset::VitisDpu => Formula::Vitis,
            Preset::Quantizeml => Formula::Quantizeml,
            Preset::Tflite => Formula::Tflite,
            Preset::IncDoc => Formula::IncDoc,
        }
    }

    /// Samples per run of the tool's own calibration, where what it records depends on their number.
    ///
    /// Source: QuantizeML 0.8.1, `cli.py`: `--batch_size` is 32 (its moving average counts runs).
    pub fn batch(self) -> Option<usize> {
        (self == Preset::Quantizeml).then_some(32)
    }

    /// The options that the preset stands for.
    pub fn options(self) -> QuantOptions {
        let formula = self.formula();
        let activations =
            |format, symmetric| ActivationScheme { format, symmetric, reduce_range: false, bits: None, formula };
        let weights = |format, per_channel| WeightScheme {
            format,
            symmetric: true,
            per_channel,
            reduce_range: false,
            bits: None,
            formula,
        };
        use NumberFormat::{Fp8E4m3, Int8, Uint8};
        let (activations, weights, method) = match self {
            Preset::Tensorflow | Preset::Ipex | Preset::Mxnet => {
                (activations(Int8, true), weights(Int8, self != Preset::Mxnet), Method::Minmax)
            }
            Preset::Pytorch => (activations(Uint8, false), weights(Int8, true), Method::Minmax),
            Preset::Onnxruntime => (activations(Int8, false), weights(Int8, false), Method::Minmax),
            Preset::IncJaxFp8 => (activations(Fp8E4m3, true), weights(Fp8E4m3, false), Method::Minmax),
            Preset::IncJaxInt8 => (activations(Int8, false), weights(Int8, false), Method::Minmax),
            Preset::VitisDpu => (activations(Int8, true), weights(Int8, false), Method::Diffs),
            Preset::Quantizeml => (
                ActivationScheme { bits: Some(8), ..activations(Int8, true) },
                WeightScheme { bits: Some(8), ..weights(Int8, true) },
                Method::MovingPeak,
            ),
            Preset::Tflite => (activations(Int8, false), weights(Int8, true), Method::Minmax),
            Preset::IncDoc => (activations(Int8, false), weights(Int8, true), Method::Minmax),
        };
        let jax = matches!(self, Preset::IncJaxFp8 | Preset::IncJaxInt8);
        let fixed_ranges = if jax { FixedRanges::Softmax } else { FixedRanges::Off };
        // include_cle and include_bias_corr of Vitis' default configuration.
        let vitis = self == Preset::VitisDpu;
        QuantOptions {
            scheme: Some(self),
            activations,
            weights,
            method,
            fixed_ranges,
            // The tools quantize the weights that they are given.
            smooth: false,
            float_outputs: false,
            channel_activations: false,
            equalize: vitis,
            cross_layer_equalization: self == Preset::Quantizeml,
            bias_correction: vitis,
            correct_activations: false,
            ..QuantOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::check_pair;

    #[test]
    fn makes_options_that_are_possible_and_keep_their_name() {
        for preset in Preset::ALL {
            let o = preset.options();
            assert_eq!(check_pair(&o.activations, &o.weights), Ok(()), "{preset:?}");
            let text = serde_json::to_string(&o).unwrap();
            assert_eq!(serde_json::from_str::<QuantOptions>(&text).unwrap(), o, "{text}");
        }
    }

    #[test]
    fn warns_of_what_is_not_for_use() {
        assert!(Preset::IncDoc.options().warnings()[0].contains("half of its codes"));
        assert!(Preset::Pytorch.options().warnings().is_empty());
    }
}
