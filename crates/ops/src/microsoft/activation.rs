//! The activations that ONNX Runtime fuses into Conv and Gemm.

use narrowbit_ir::OpError;

use super::gelu::gelu;

/// An activation by name with its parameters, in the order alpha, beta, gamma.
#[derive(Debug, Clone, PartialEq)]
pub struct Fused {
    /// The ONNX operator name; empty for none.
    pub name: String,
    /// The parameters that the file gives.
    pub params: Vec<f32>,
}

impl Fused {
    /// The activation, if it is known.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when the name is unknown.
    pub fn new(name: String, params: Vec<f32>) -> Result<Fused, OpError> {
        let fused = Fused { name, params };
        match fused.function() {
            Some(_) => Ok(fused),
            None => {
                Err(OpError::attribute("activation", format!("is \"{}\", which narrowbit does not know", fused.name)))
            }
        }
    }

    fn function(&self) -> Option<Box<dyn Fn(f64) -> f64>> {
        let param = |i: usize, default: f64| self.params.get(i).map_or(default, |&p| f64::from(p));
        Some(match self.name.as_str() {
            "" => Box::new(|x| x),
            "Relu" => Box::new(|x: f64| if x < 0.0 { 0.0 } else { x }),
            "Tanh" => Box::new(f64::tanh),
            "Sigmoid" => Box::new(|x: f64| 1.0 / (1.0 + (-x).exp())),
            "Gelu" => Box::new(gelu),
            "Softplus" => Box::new(|x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p()),
            "Softsign" => Box::new(|x: f64| x / (1.0 + x.abs())),
            "LeakyRelu" => {
                let a = param(0, 0.01);
                Box::new(move |x| if x < 0.0 { a * x } else { x })
            }
            "Elu" => {
                let a = param(0, 1.0);
                Box::new(move |x: f64| if x < 0.0 { a * x.exp_m1() } else { x })
            }
            "ThresholdedRelu" => {
                let a = param(0, 1.0);
                Box::new(move |x| if x > a { x } else { 0.0 })
            }
            "Clip" => {
                let (lo, hi) = (param(0, f64::NEG_INFINITY), param(1, f64::INFINITY));
                Box::new(move |x: f64| x.max(lo).min(hi))
            }
            "HardSigmoid" => {
                let (a, b) = (param(0, f64::from(0.2f32)), param(1, 0.5));
                Box::new(move |x: f64| (a * x + b).clamp(0.0, 1.0))
            }
            "Selu" => {
                let (a, g) = (param(0, f64::from(1.673_263_2f32)), param(1, f64::from(1.050_701f32)));
                Box::new(move |x: f64| g * if x < 0.0 { a * x.exp_m1() } else { x })
            }
            _ => return None,
        })
    }

    /// Applies the activation to sums, rounded to f32 as the unfused operator leaves them.
    pub fn apply(&self, sums: &mut [f64]) {
        if let Some(f) = self.function() {
            sums.iter_mut().for_each(|v| *v = f(*v));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applies_parameters_in_order() {
        let mut x = vec![-2.0, 0.5, 9.0];
        Fused::new("Clip".into(), vec![-1.0, 6.0]).unwrap().apply(&mut x);
        assert_eq!(x, [-1.0, 0.5, 6.0]);
        let mut x = vec![-2.0];
        Fused::new("LeakyRelu".into(), vec![0.5]).unwrap().apply(&mut x);
        assert_eq!(x, [-1.0]);
    }

    #[test]
    fn refuses_unknown_names() {
        assert!(Fused::new("Softmax".into(), vec![]).is_err());
    }
}
