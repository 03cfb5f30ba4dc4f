use narrowbit_ir::OpError;

use super::AttrMapParts;

/// An activation function of a recurrent cell (ONNX pages of RNN, GRU, LSTM).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + exp(−x))`.
    Sigmoid,
    /// `alpha·x + beta`.
    Affine,
    /// `x` where `x ≥ 0`, else `alpha·x`.
    LeakyRelu,
    /// `x` where `x ≥ alpha`, else 0.
    ThresholdedRelu,
    /// `alpha·tanh(beta·x)`.
    ScaledTanh,
    /// `min(max(alpha·x + beta, 0), 1)`.
    HardSigmoid,
    /// `x` where `x ≥ 0`, else `alpha·(exp(x) − 1)`.
    Elu,
    /// `x / (1 + |x|)`.
    Softsign,
    /// `ln(1 + exp(x))`.
    Softplus,
}

/// A function of [`TABLE`].
type Row = (&'static str, Function, Option<f32>, Option<f32>);

/// Name, function, default alpha, default beta (those of the ONNX operators of the same names).
const TABLE: [Row; 11] = [
    ("Relu", Function::Relu, None, None),
    ("Tanh", Function::Tanh, None, None),
    ("Sigmoid", Function::Sigmoid, None, None),
    ("Affine", Function::Affine, Some(1.0), Some(0.0)),
    ("LeakyRelu", Function::LeakyRelu, Some(0.01), None),
    ("ThresholdedRelu", Function::ThresholdedRelu, Some(1.0), None),
    ("ScaledTanh", Function::ScaledTanh, Some(1.0), Some(1.0)),
    ("HardSigmoid", Function::HardSigmoid, Some(0.2), Some(0.5)),
    ("Elu", Function::Elu, Some(1.0), None),
    ("Softsign", Function::Softsign, None, None),
    ("Softplus", Function::Softplus, None, None),
];

/// An activation function with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// The function.
    pub function: Function,
    /// Its first parameter, where it has one.
    pub alpha: f32,
    /// Its second parameter, where it has one.
    pub beta: f32,
}

impl Activation {
    /// The function's value.
    pub fn apply(&self, x: f64) -> f64 {
        let (a, b) = (f64::from(self.alpha), f64::from(self.beta));
        match self.function {
            Function::Relu => x.max(0.0),
            Function::Tanh => x.tanh(),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Affine => a * x + b,
            Function::LeakyRelu => {
                if x >= 0.0 {
                    x
                } else {
                    a * x
                }
            }
            Function::ThresholdedRelu => {
                if x >= a {
                    x
                } else {
                    0.0
                }
            }
            Function::ScaledTanh => a * (b * x).tanh(),
            Function::HardSigmoid => (a * x + b).clamp(0.0, 1.0),
            Function::Elu => {
                if x >= 0.0 {
                    x
                } else {
                    a * x.exp_m1()
                }
            }
            Function::Softsign => x / (1.0 + x.abs()),
            Function::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }
}

/// The functions of all directions; parameters are consumed in the order of the functions that have them.
pub(super) fn resolve(
    stated: &AttrMapParts,
    defaults: &[Function],
    directions: usize,
) -> Result<Vec<Activation>, OpError> {
    let n = defaults.len() * directions;
    let rows: Vec<&Row> = match &stated.activations {
        None => defaults.iter().cycle().take(n).filter_map(|f| TABLE.iter().find(|r| r.1 == *f)).collect(),
        Some(names) => names.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    // Some writers state the functions of one direction only, or the schema's two for one.
    let rows: Vec<_> = match rows.len() {
        len if len >= n => rows.into_iter().take(n).collect(),
        len if len == defaults.len() => rows.into_iter().cycle().take(n).collect(),
        len => return Err(OpError::attribute("activations", format!("has {len} functions, {n} are needed"))),
    };
    let mut alphas = stated.alpha.iter().flatten().copied();
    let mut betas = stated.beta.iter().flatten().copied();
    let parameter = |default: Option<f32>, given: &mut dyn Iterator<Item = f32>| match default {
        None => 0.0,
        Some(d) => given.next().unwrap_or(d),
    };
    let mut out = Vec::with_capacity(n);
    for (_, function, alpha, beta) in rows {
        let (alpha, beta) = (parameter(*alpha, &mut alphas), parameter(*beta, &mut betas));
        out.push(Activation { function: *function, alpha, beta });
    }
    Ok(out)
}

fn find(name: &str) -> Result<&'static Row, OpError> {
    TABLE.iter().find(|r| r.0.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known: Vec<&str> = TABLE.iter().map(|r| r.0).collect();
        OpError::attribute("activations", format!("has \"{name}\", not one of {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumes_parameters_in_the_order_of_functions_that_have_them() {
        let stated = AttrMapParts {
            activations: Some(["Sigmoid", "hardsigmoid", "LeakyRelu"].map(String::from).to_vec()),
            alpha: Some(vec![0.25]),
            beta: None,
        };
        let acts = resolve(&stated, &[Function::Sigmoid, Function::Tanh, Function::Tanh], 1).unwrap();
        assert_eq!((acts[1].alpha, acts[1].beta, acts[2].alpha), (0.25, 0.5, 0.01));
        assert_eq!(acts[1].apply(1.0), 0.75);
    }

    #[test]
    fn refuses_unknown_functions_and_too_few() {
        let stated = |names: &[&str]| AttrMapParts {
            activations: Some(names.iter().map(|n| n.to_string()).collect()),
            ..AttrMapParts::default()
        };
        assert!(resolve(&stated(&["Sine"]), &[Function::Tanh], 1).is_err());
        assert!(resolve(&stated(&["Tanh"]), &[Function::Sigmoid, Function::Tanh], 1).is_err());
    }
}
