//! Arithmetic, logic, reductions, matrix products, Fourier transforms, casts.

pub mod activation;
pub mod argmax;
pub mod arithmetic;
pub(crate) mod axes;
pub mod bitwise;
pub(crate) mod broadcast;
pub mod cast;
pub mod classify;
pub mod clip;
pub mod compare;
pub mod cumulate;
pub mod det;
pub mod dft;
pub mod einsum;
pub(crate) mod fft;
pub mod gelu;
pub mod gemm;
pub mod logic;
pub mod matmul;
pub mod modulo;
pub(crate) mod num;
pub mod pow;
pub mod prelu;
pub(crate) mod product;
pub mod random;
pub mod reduce;
pub mod relu;
pub mod softmax;
pub mod unary;
pub mod variadic;

use activation::{Activation, Kind as A};
use argmax::ArgExtreme;
use arithmetic::Arithmetic;
use bitwise::Bitwise;
use compare::Compare;
use cumulate::Cumulate;
use logic::Logic;
use reduce::{Kind as R, Reduce};
use softmax::{Kind as S, Softmax};
use unary::Unary;
use variadic::Variadic;

crate::registry::operators! {
    "Abs" => |o, a| Unary::Abs.build(o, a),
    "Acos" => |o, a| Unary::Acos.build(o, a),
    "Acosh" => |o, a| Unary::Acosh.build(o, a),
    "Add" => |o, a| Arithmetic::Add.build(o, a),
    "And" => |o, a| Logic::And.build(o, a),
    "ArgMax" => |o, a| ArgExtreme::build(false, o, a),
    "ArgMin" => |o, a| ArgExtreme::build(true, o, a),
    "Asin" => |o, a| Unary::Asin.build(o, a),
    "Asinh" => |o, a| Unary::Asinh.build(o, a),
    "Atan" => |o, a| Unary::Atan.build(o, a),
    "Atanh" => |o, a| Unary::Atanh.build(o, a),
    "Bernoulli" => random::build_bernoulli,
    "BitShift" => bitwise::build_shift,
    "BitwiseAnd" => |o, a| Bitwise::And.build(o, a),
    "BitwiseNot" => bitwise::build_not,
    "BitwiseOr" => |o, a| Bitwise::Or.build(o, a),
    "BitwiseXor" => |o, a| Bitwise::Xor.build(o, a),
    "Cast" => cast::build,
    "CastLike" => cast::build_like,
    "Ceil" => |o, a| Unary::Ceil.build(o, a),
    "Celu" => |o, a| Activation::build(A::Celu, o, a),
    "Clip" => clip::build,
    "Cos" => |o, a| Unary::Cos.build(o, a),
    "Cosh" => |o, a| Unary::Cosh.build(o, a),
    "CumProd" => |o, a| Cumulate::build(true, o, a),
    "CumSum" => |o, a| Cumulate::build(false, o, a),
    "DFT" => dft::build,
    "Det" => det::build,
    "Div" => |o, a| Arithmetic::Div.build(o, a),
    "Einsum" => einsum::build,
    "Elu" => |o, a| Activation::build(A::Elu, o, a),
    "Equal" => |o, a| Compare::Equal.build(o, a),
    "Erf" => |o, a| Unary::Erf.build(o, a),
    "Exp" => |o, a| Unary::Exp.build(o, a),
    "Floor" => |o, a| Unary::Floor.build(o, a),
    "Gelu" => gelu::build,
    "Gemm" => gemm::build,
    "Greater" => |o, a| Compare::Greater.build(o, a),
    "GreaterOrEqual" => |o, a| Compare::GreaterOrEqual.build(o, a),
    "HardSigmoid" => |o, a| Activation::build(A::HardSigmoid, o, a),
    "HardSwish" => |o, a| Unary::HardSwish.build(o, a),
    "Hardmax" => |o, a| Softmax::build(S::Hardmax, o, a),
    "IsInf" => classify::build_inf,
    "IsNaN" => classify::build_nan,
    "LeakyRelu" => |o, a| Activation::build(A::LeakyRelu, o, a),
    "Less" => |o, a| Compare::Less.build(o, a),
    "LessOrEqual" => |o, a| Compare::LessOrEqual.build(o, a),
    "Log" => |o, a| Unary::Log.build(o, a),
    "LogSoftmax" => |o, a| Softmax::build(S::LogSoftmax, o, a),
    "MatMul" => matmul::build,
    "Max" => |o, a| Variadic::Max.build(o, a),
    "Mean" => |o, a| Variadic::Mean.build(o, a),
    "Min" => |o, a| Variadic::Min.build(o, a),
    "Mish" => |o, a| Unary::Mish.build(o, a),
    "Mod" => modulo::build,
    "Mul" => |o, a| Arithmetic::Mul.build(o, a),
    "Neg" => |o, a| Unary::Neg.build(o, a),
    "Not" => logic::build_not,
    "Or" => |o, a| Logic::Or.build(o, a),
    "PRelu" => prelu::build,
    "Pow" => pow::build,
    "RandomNormal" => |_, a| random::build_normal(false, a),
    "RandomNormalLike" => |_, a| random::build_normal(true, a),
    "RandomUniform" => |_, a| random::build_uniform(false, a),
    "RandomUniformLike" => |_, a| random::build_uniform(true, a),
    "Reciprocal" => |o, a| Unary::Reciprocal.build(o, a),
    "ReduceL1" => |o, a| Reduce::build(R::L1, o, a),
    "ReduceL2" => |o, a| Reduce::build(R::L2, o, a),
    "ReduceLogSum" => |o, a| Reduce::build(R::LogSum, o, a),
    "ReduceLogSumExp" => |o, a| Reduce::build(R::LogSumExp, o, a),
    "ReduceMax" => |o, a| Reduce::build(R::Max, o, a),
    "ReduceMean" => |o, a| Reduce::build(R::Mean, o, a),
    "ReduceMin" => |o, a| Reduce::build(R::Min, o, a),
    "ReduceProd" => |o, a| Reduce::build(R::Prod, o, a),
    "ReduceSum" => |o, a| Reduce::build(R::Sum, o, a),
    "ReduceSumSquare" => |o, a| Reduce::build(R::SumSquare, o, a),
    "Relu" => relu::build,
    "Round" => |o, a| Unary::Round.build(o, a),
    "STFT" => dft::build_short_time,
    "Selu" => |o, a| Activation::build(A::Selu, o, a),
    "Shrink" => |o, a| Activation::build(A::Shrink, o, a),
    "Sigmoid" => |o, a| Unary::Sigmoid.build(o, a),
    "Sign" => |o, a| Unary::Sign.build(o, a),
    "Sin" => |o, a| Unary::Sin.build(o, a),
    "Sinh" => |o, a| Unary::Sinh.build(o, a),
    "Softmax" => |o, a| Softmax::build(S::Softmax, o, a),
    "Softplus" => |o, a| Unary::Softplus.build(o, a),
    "Softsign" => |o, a| Unary::Softsign.build(o, a),
    "Sqrt" => |o, a| Unary::Sqrt.build(o, a),
    "Sub" => |o, a| Arithmetic::Sub.build(o, a),
    "Sum" => |o, a| Variadic::Sum.build(o, a),
    "Swish" => |o, a| Activation::build(A::Swish, o, a),
    "Tan" => |o, a| Unary::Tan.build(o, a),
    "Tanh" => |o, a| Unary::Tanh.build(o, a),
    "ThresholdedRelu" => |o, a| Activation::build(A::ThresholdedRelu, o, a),
    "Xor" => |o, a| Logic::Xor.build(o, a),
}
