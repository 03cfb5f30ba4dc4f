//! Which operators half precision is enough for.

/// Operators that are written in half precision: products, whose runtimes sum in float32; functions of one element whose
/// results stay in range; and movement. Their ONNX definitions take float16, and bfloat16 from opset 22 on at the latest.
pub(super) const HALF: &[&str] = &[
    "Abs",
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Erf",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Sub",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Operators that need float32: their sums run over many elements in the tensor's own type (normalisations, reductions,
/// softmax), or their results leave the range of float16 (powers, exponentials, inverses of small numbers).
pub(super) const SENSITIVE: &[&str] = &[
    "Attention",
    "BatchNormalization",
    "CumSum",
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "RMSNormalization",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Sum",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_each_operator_once_in_order() {
        for list in [HALF, SENSITIVE] {
            assert!(list.windows(2).all(|w| w[0] < w[1]));
        }
        assert!(HALF.iter().all(|n| !SENSITIVE.contains(n)));
        let known = |n: &&str| narrowbit_ops::entries().any(|e| e.name == *n);
        assert!(HALF.iter().chain(SENSITIVE).all(known));
    }
}
