//! Bernoulli, RandomNormal, RandomUniform and their forms shaped like an input.

use std::sync::Arc;

use narrowbit_ir::{Attr, AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, SplitMix64, Tensor};

use super::cast::{Rules, cast};

/// How random numbers are distributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// The normal distribution.
    Normal {
        /// Its mean.
        mean: f32,
        /// Its standard deviation.
        scale: f32,
    },
    /// Evenly within `[low, high)`.
    Uniform {
        /// The least value.
        low: f32,
        /// The bound above all values.
        high: f32,
    },
    /// 1 with the probability that the input's element gives, else 0.
    Bernoulli,
}

/// Random numbers that depend only on the seed and the number of elements.
///
/// ONNX lets an absent seed be chosen freely; here it is 0, so that runs can be repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Random {
    /// The distribution.
    pub distribution: Distribution,
    /// The output's element type; that of the input (`f32` without one) where absent.
    pub dtype: Option<DType>,
    /// The output's shape; that of the input where absent.
    pub shape: Option<Vec<i64>>,
    /// The seed, of which every bit counts.
    pub seed: Option<f32>,
}

/// Makes a Bernoulli from its attributes.
///
/// # Errors
/// When an attribute is wrong.
pub fn build_bernoulli(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    make(Distribution::Bernoulli, false, attrs)
}

/// Makes a RandomNormal, or RandomNormalLike where `like`.
///
/// # Errors
/// When an attribute is missing or wrong.
pub fn build_normal(like: bool, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (mean, scale) = (attrs.float_or("mean", 0.0)?, attrs.float_or("scale", 1.0)?);
    make(Distribution::Normal { mean, scale }, !like, attrs)
}

/// Makes a RandomUniform, or RandomUniformLike where `like`.
///
/// # Errors
/// When an attribute is missing or wrong.
pub fn build_uniform(like: bool, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (low, high) = (attrs.float_or("low", 0.0)?, attrs.float_or("high", 1.0)?);
    make(Distribution::Uniform { low, high }, !like, attrs)
}

fn make(distribution: Distribution, shaped: bool, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let dtype = match attrs.int("dtype")? {
        None => None,
        Some(code) => Some(
            DType::from_onnx(code).ok_or_else(|| OpError::attribute("dtype", format!("is {code}, no element type")))?,
        ),
    };
    let shape = if shaped {
        let shape = attrs.ints("shape")?.ok_or_else(|| OpError::attribute("shape", "is missing"))?;
        if shape.iter().any(|&d| d < 0) {
            return Err(OpError::attribute("shape", format!("{shape:?} has a negative extent")));
        }
        Some(shape)
    } else {
        None
    };
    Ok(Arc::new(Random { distribution, dtype, shape, seed: attrs.float("seed")? }))
}

impl Random {
    fn draw(&self, n: usize) -> Vec<f64> {
        let mut g = SplitMix64::new(u64::from(self.seed.unwrap_or(0.0).to_bits()));
        match self.distribution {
            Distribution::Normal { mean, scale } => {
                (0..n).map(|_| f64::from(mean) + f64::from(scale) * g.normal()).collect()
            }
            Distribution::Uniform { low, high } => {
                let (low, high) = (f64::from(low), f64::from(high));
                (0..n).map(|_| low + (high - low) * g.uniform()).collect()
            }
            Distribution::Bernoulli => (0..n).map(|_| g.uniform()).collect(),
        }
    }
}

impl Op for Random {
    fn name(&self) -> &str {
        match (self.distribution, &self.shape) {
            (Distribution::Bernoulli, _) => "Bernoulli",
            (Distribution::Normal { .. }, Some(_)) => "RandomNormal",
            (Distribution::Normal { .. }, None) => "RandomNormalLike",
            (Distribution::Uniform { .. }, Some(_)) => "RandomUniform",
            (Distribution::Uniform { .. }, None) => "RandomUniformLike",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![match &self.shape {
            Some(s) => {
                let dims = s.iter().map(|&d| Dim::Known(d)).collect();
                Fact::tensor(Some(self.dtype.unwrap_or(DType::F32)), Some(dims))
            }
            None => Fact::tensor(self.dtype.or(cx.get(0)?.dtype()), cx.shape(0).map(<[_]>::to_vec)),
        }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (shape, default) = match &self.shape {
            Some(s) => (s.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect(), DType::F32),
            None => (cx.get(0)?.shape().to_vec(), cx.get(0)?.dtype()),
        };
        let mut values = self.draw(check_size(DType::F64, &shape)?);
        if self.distribution == Distribution::Bernoulli {
            let p = cx.get(0)?.to_f64s()?;
            values.iter_mut().zip(p).for_each(|(v, p)| *v = f64::from(u8::from(*v < p)));
        }
        let y = Tensor::new(shape, values)?;
        Ok(vec![cast(&y, self.dtype.unwrap_or(default), Rules::default())?])
    }

    fn attrs(&self) -> AttrMap {
        let attrs = match self.distribution {
            Distribution::Bernoulli => AttrMap::new(),
            Distribution::Normal { mean, scale } => {
                AttrMap::new().with_unless("mean", mean, 0.0).with_unless("scale", scale, 1.0)
            }
            Distribution::Uniform { low, high } => {
                AttrMap::new().with_unless("low", low, 0.0).with_unless("high", high, 1.0)
            }
        };
        attrs
            .with_opt("dtype", self.dtype.map(|d| Attr::Int(d.to_onnx().into())))
            .with_opt("shape", self.shape.clone())
            .with_opt("seed", self.seed)
    }

    fn is_deterministic(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(distribution: Distribution, seed: f32) -> Random {
        Random { distribution, dtype: None, shape: Some(vec![4096]), seed: Some(seed) }
    }

    #[test]
    fn repeats_itself_for_a_seed_and_differs_between_seeds() {
        let run =
            |seed| random(Distribution::Uniform { low: -1.0, high: 3.0 }, seed).eval(&EvalCx::new(&[], 1)).unwrap();
        assert_eq!(run(1.0), run(1.0));
        assert_ne!(run(1.0), run(2.0));
        let y = run(1.0)[0].to_f64s().unwrap();
        assert!(y.iter().all(|v| (-1.0..3.0).contains(v)));
        // Six standard errors of the mean of 4096 draws: 6 * (4 / √12) / 64.
        assert!((y.iter().sum::<f64>() / 4096.0 - 1.0).abs() < 0.11);
    }

    #[test]
    fn draws_normal_numbers_with_the_moments_asked_for() {
        let y = random(Distribution::Normal { mean: 2.0, scale: 0.5 }, 7.0).draw(4096);
        let mean = y.iter().sum::<f64>() / 4096.0;
        let variance = y.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 4096.0;
        // Six standard errors: 6 * 0.5 / 64, and 6 * 0.25 * √(2 / 4096).
        assert!((mean - 2.0).abs() < 0.047 && (variance - 0.25).abs() < 0.034);
    }

    #[test]
    fn refuses_bad_shapes() {
        assert!(build_uniform(false, &mut AttrMap::new()).is_err());
        assert!(build_uniform(false, &mut AttrMap::new().with("shape", vec![-1i64])).is_err());
        let huge = Random { shape: Some(vec![i64::MAX, 4]), ..random(Distribution::Bernoulli, 0.0) };
        assert!(huge.eval(&EvalCx::new(&[], 1)).is_err());
    }
}
