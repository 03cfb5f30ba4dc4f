//! Random samples, for models without data.

use narrowbit_tensor::{DType, SplitMix64, Tensor};

use crate::column::{Column, check_range};
use crate::{DataError, InputSpec, Limits, Place};

/// Extents that stand for free dimensions: an image side, a sequence length, channels.
const SIDE: usize = 224;
const SEQUENCE: usize = 32;
const CHANNELS: usize = 3;

/// Samples of one input; each is drawn from its own generator, so that any order gives the same.
pub(crate) struct Random {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    draw: Draw,
    len: usize,
    seed: u64,
    /// Bytes of one read at the most.
    limit: usize,
}

#[derive(Clone, Copy)]
enum Draw {
    Normal,
    Below(u64),
    Constant(i64),
}

impl Random {
    pub(crate) fn new(spec: &InputSpec, len: usize, seed: u64, limits: &Limits) -> Result<Random, DataError> {
        let place = Place::file("random samples").array(&spec.name);
        let shape = concrete(spec);
        let help = "the file's shape asks for it; give real data with --data";
        let count =
            narrowbit_tensor::shape::count(&shape).map_err(|e| DataError::too_large(&place, e.to_string(), help))?;
        // Values are drawn as f64 before they are rounded.
        if count.saturating_mul(8) > limits.read_bytes {
            let what = format!("one sample of shape {shape:?} exceeds the limit of {} bytes", limits.read_bytes);
            return Err(DataError::too_large(&place, what, help));
        }
        let draw = match spec.dtype {
            d if d.is_float() => Draw::Normal,
            DType::Bool => Draw::Constant(1),
            d if d.is_int() => integers(spec, d),
            d => {
                let what = format!("no random values of type {d}");
                return Err(DataError::unsupported(&place, what, "give real data with --data"));
            }
        };
        Ok(Random { name: spec.name.clone(), dtype: spec.dtype, shape, draw, len, seed, limit: limits.read_bytes })
    }

    fn one(&self, index: usize) -> Result<Tensor, DataError> {
        let mut seeds = SplitMix64::new(self.seed);
        // FNV-1a over the name separates inputs whatever their order.
        let name =
            self.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut rng = SplitMix64::new(seeds.next_u64() ^ name ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut shape = vec![1];
        shape.extend(&self.shape);
        let n: usize = self.shape.iter().product();
        let made = match self.draw {
            Draw::Normal => Tensor::from_f64s(self.dtype, shape, &(0..n).map(|_| rng.normal()).collect::<Vec<_>>()),
            Draw::Below(k) => {
                Tensor::from_i64s(self.dtype, shape, &(0..n).map(|_| rng.below(k) as i64).collect::<Vec<_>>())
            }
            Draw::Constant(v) => Tensor::from_i64s(self.dtype, shape, &vec![v; n]),
        };
        made.map_err(|e| DataError::tensor(&self.place(index), e))
    }
}

/// The sample shape with free dimensions replaced.
fn concrete(spec: &InputSpec) -> Vec<usize> {
    let sample = spec.sample();
    let image = sample.len() == 3 && spec.dtype.is_float();
    // Channels come last where the last extent is fixed to few and the first is not.
    let last = image && sample[0].is_none_or(|c| c > 4) && sample[2].is_some_and(|c| c <= 4);
    let channel = if last { 2 } else { 0 };
    let free = |i: usize| match (image, i == channel) {
        (true, true) => CHANNELS,
        (true, false) => SIDE,
        (false, _) => SEQUENCE,
    };
    sample.iter().enumerate().map(|(i, d)| d.unwrap_or_else(|| free(i))).collect()
}

/// Masks are all ones, segment ids zeros; other integers stay below the vocabulary, or are 0 and 1.
fn integers(spec: &InputSpec, dtype: DType) -> Draw {
    let name = spec.name.to_ascii_lowercase();
    let most = dtype.int_range().map_or(1, |(_, high)| high as u64).saturating_add(1);
    match spec.vocabulary {
        _ if name.contains("mask") => Draw::Constant(1),
        _ if name.contains("type_id") || name.contains("segment") => Draw::Constant(0),
        Some(v) => Draw::Below(v.clamp(1, most)),
        None => Draw::Below(2),
    }
}

impl Column for Random {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> Option<&[usize]> {
        Some(&self.shape)
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len)?;
        let sample: usize = self.shape.iter().product();
        if n.saturating_mul(sample).saturating_mul(8) > self.limit {
            let what = format!("{n} samples of shape {:?} exceed the limit of {} bytes", self.shape, self.limit);
            return Err(DataError::too_large(
                &self.place(start),
                what,
                "run fewer at once: --batch, or a file with a smaller batch",
            ));
        }
        let pieces = (start..start + n).map(|i| self.one(i)).collect::<Result<_, _>>()?;
        crate::column::stack(pieces, &self.place(start))
    }

    fn place(&self, index: usize) -> Place {
        Place::file("random samples").array(&self.name).sample(index)
    }
}
