//! What a model wants for its inputs, and which of their axes holds the samples.

use narrowbit_tensor::DType;

/// What a model wants for one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// The input's name.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The shape, the batch axis included; `None` for a dimension that is free.
    pub shape: Vec<Option<usize>>,
    /// Where the samples are.
    pub batch: BatchAxis,
    /// For integer inputs the number of values that are allowed (rows of an embedding), if
    /// known; only [`crate::Dataset::random`] uses it.
    pub vocabulary: Option<u64>,
}

/// The axis of an input along which the samples of a run lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchAxis {
    /// The first one, unless other inputs or the data show that there is none: see [`crate::Dataset::bind`].
    Assumed,
    /// This one.
    At(usize),
    /// None: the input is the same for all samples of a run.
    Absent,
}

impl InputSpec {
    /// An input of a name, an element type and a shape whose first dimension is, by all appearances, the batch.
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<Option<usize>>>) -> InputSpec {
        InputSpec { name: name.into(), dtype, shape: shape.into(), batch: BatchAxis::Assumed, vocabulary: None }
    }

    /// The batch axis; `None` for an input without one.
    pub fn batch_axis(&self) -> Option<usize> {
        match self.batch {
            BatchAxis::Assumed => Some(0),
            BatchAxis::At(axis) => Some(axis),
            BatchAxis::Absent => None,
        }
        .filter(|&axis| axis < self.shape.len())
    }

    /// The number of samples that the file fixes for a run, if it does.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.shape[self.batch_axis()?]
    }

    /// The shape of one sample: all dimensions but the batch.
    pub(crate) fn sample(&self) -> Vec<Option<usize>> {
        let mut shape = self.shape.clone();
        if let Some(axis) = self.batch_axis() {
            shape.remove(axis);
        }
        shape
    }

    /// The shape as the file has it, for a person.
    pub fn shape_text(&self) -> String {
        let dims: Vec<String> = self.shape.iter().map(|d| d.map_or("any".into(), |d| d.to_string())).collect();
        format!("{}[{}]", self.dtype, dims.join(", "))
    }
}

/// The ways to read the shapes of a model's inputs, the likeliest first; each says for each input where its samples are.
///
/// What is known stays. Where a batch axis is free somewhere, an input whose first extent is a number has most likely none;
/// where all are numbers, inputs that begin with the same one share it, and the first of them that fits the data is taken;
/// at last, none has one.
pub(crate) fn readings(specs: &[InputSpec]) -> Vec<Vec<InputSpec>> {
    let assumed = |s: &&InputSpec| s.batch == BatchAxis::Assumed && !s.shape.is_empty();
    let known = |s: &&InputSpec| matches!(s.batch, BatchAxis::At(_)) && s.batch_axis().is_some();
    let first = |s: &InputSpec| s.shape[0];
    let open = specs.iter().any(|s| (assumed(&s) || known(&s)) && s.fixed_batch().is_none());
    let stated = specs.iter().filter(known).find_map(InputSpec::fixed_batch);
    let mut sizes: Vec<Option<usize>> = Vec::new();
    let mut extents: Vec<Option<usize>> = specs.iter().filter(assumed).map(first).filter(Option::is_some).collect();
    if let Some(n) = stated {
        extents.retain(|&e| e == Some(n));
        sizes.push(Some(n));
    }
    if open {
        sizes.insert(0, None);
        // One sample of several is no batch that others leave open.
        extents.retain(|&e| e != Some(1));
    }
    for e in extents {
        if !sizes.contains(&e) {
            sizes.push(e);
        }
    }
    if !open && !sizes.contains(&None) {
        sizes.push(None);
    }
    let read = |size: Option<usize>| {
        let at = |s: &InputSpec| match s.batch {
            BatchAxis::Assumed if s.shape.is_empty() => BatchAxis::Absent,
            BatchAxis::Assumed if first(s).is_none() || first(s) == size => BatchAxis::At(0),
            BatchAxis::Assumed => BatchAxis::Absent,
            other => other,
        };
        specs.iter().map(|s| InputSpec { batch: at(s), ..s.clone() }).collect()
    };
    sizes.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Option<usize> = None;

    fn spec(dims: &[Option<usize>]) -> InputSpec {
        InputSpec::new("x", DType::F32, dims)
    }

    /// The axes of each reading, −1 for none.
    fn axes(specs: &[InputSpec]) -> Vec<Vec<i64>> {
        let axis = |s: &InputSpec| s.batch_axis().map_or(-1, |a| a as i64);
        readings(specs).iter().map(|r| r.iter().map(axis).collect()).collect()
    }

    #[test]
    fn takes_a_fixed_extent_for_no_batch_where_another_is_free() {
        assert_eq!(axes(&[spec(&[N, Some(3)]), spec(&[Some(1), Some(3)])]), [[0, -1]]);
        // The data may say otherwise.
        assert_eq!(axes(&[spec(&[N, Some(3)]), spec(&[Some(6), Some(3)])]), [[0, -1], [0, 0]]);
        assert_eq!(axes(&[spec(&[N, Some(3)])]), [[0]]);
        assert_eq!(axes(&[spec(&[N]), spec(&[])]), [[0, -1]]);
    }

    #[test]
    fn tries_fixed_extents_in_their_order_and_no_batch_last() {
        let (a, b) = (spec(&[Some(4), Some(3)]), spec(&[Some(6), Some(3)]));
        assert_eq!(axes(&[a.clone(), b, a.clone()]), [[0, -1, 0], [-1, 0, -1], [-1, -1, -1]]);
        assert_eq!(axes(std::slice::from_ref(&a)), [[0], [-1]]);
        assert_eq!(axes(&[spec(&[])]), [[-1]]);
    }

    #[test]
    fn keeps_what_is_known() {
        let sequence = InputSpec { batch: BatchAxis::At(1), ..spec(&[Some(7), Some(4), Some(5)]) };
        let (state, other) = (spec(&[Some(4), Some(5)]), spec(&[Some(7), Some(5)]));
        assert_eq!(axes(&[state.clone(), sequence.clone(), other]), [[0, 1, -1], [-1, 1, -1]]);
        assert_eq!((sequence.fixed_batch(), sequence.sample()), (Some(4), vec![Some(7), Some(5)]));
        let free = InputSpec { batch: BatchAxis::At(1), ..spec(&[Some(7), N, Some(5)]) };
        assert_eq!(axes(&[free, state]), [[1, -1], [1, 0]]);
        let none = InputSpec { batch: BatchAxis::Absent, ..spec(&[Some(4), Some(5)]) };
        assert_eq!((axes(std::slice::from_ref(&none)), none.fixed_batch()), (vec![vec![-1]], None));
    }
}
