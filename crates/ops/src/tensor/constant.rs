//! Constant: a tensor that stands in the node.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::Tensor;

/// A constant tensor of any type. Source: ONNX Constant.
#[derive(Debug, Clone)]
pub struct Constant {
    /// The value.
    pub value: Tensor,
    /// The attribute that holds it in the file, for instance `value` or `value_ints`.
    pub form: Form,
}

/// The attribute that holds the value of a [`Constant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `value`: a tensor.
    Value,
    /// `value_float`: a scalar of f32.
    Float,
    /// `value_floats`: a vector of f32.
    Floats,
    /// `value_int`: a scalar of i64.
    Int,
    /// `value_ints`: a vector of i64.
    Ints,
    /// `value_string`: a scalar string.
    String,
    /// `value_strings`: a vector of strings.
    Strings,
}

/// Makes a Constant from the one attribute that it has.
///
/// # Errors
/// When there is none, it has another kind, or the tensor is sparse.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let (form, value) = if let Some(t) = attrs.tensor("value")? {
        (Form::Value, t)
    } else if let Some(x) = attrs.float("value_float")? {
        (Form::Float, Tensor::scalar(x))
    } else if let Some(x) = attrs.floats("value_floats")? {
        (Form::Floats, Tensor::vector(x))
    } else if let Some(x) = attrs.int("value_int")? {
        (Form::Int, Tensor::scalar(x))
    } else if let Some(x) = attrs.ints("value_ints")? {
        (Form::Ints, Tensor::vector(x))
    } else if let Some(x) = attrs.string("value_string")? {
        (Form::String, Tensor::from_strings([], vec![x])?)
    } else if let Some(x) = attrs.strings("value_strings")? {
        (Form::Strings, Tensor::from_strings([x.len()], x)?)
    } else if attrs.get("sparse_value").is_some() {
        return Err(OpError::Unsupported("a Constant with a sparse tensor; store it as a dense one".into()));
    } else {
        return Err(OpError::attribute("value", "is missing"));
    };
    Ok(Arc::new(Constant { value, form }))
}

impl Op for Constant {
    fn name(&self) -> &str {
        "Constant"
    }

    fn infer(&self, _: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::constant(self.value.clone())])
    }

    fn eval(&self, _: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Ok(vec![self.value.clone()])
    }

    fn attrs(&self) -> AttrMap {
        let v = &self.value;
        let floats = || v.slice::<f32>().map(|x| x.into_owned()).unwrap_or_default();
        let ints = || v.to_i64s().unwrap_or_default();
        let strings = || v.strings().map(<[String]>::to_vec).unwrap_or_default();
        let map = AttrMap::new();
        match self.form {
            Form::Value => map.with("value", v.clone()),
            Form::Float => map.with_opt("value_float", floats().first().copied()),
            Form::Floats => map.with("value_floats", floats()),
            Form::Int => map.with_opt("value_int", ints().first().copied()),
            Form::Ints => map.with("value_ints", ints()),
            Form::String => map.with_opt("value_string", strings().into_iter().next()),
            Form::Strings => map.with("value_strings", strings()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_the_attribute_that_it_was_made_of() {
        let maps = [
            AttrMap::new().with("value", Tensor::scalar(1i8)),
            AttrMap::new().with("value_float", 1.5f32),
            AttrMap::new().with("value_floats", vec![1.5f32]),
            AttrMap::new().with("value_int", 3i64),
            AttrMap::new().with("value_ints", vec![3i64, 4]),
            AttrMap::new().with("value_string", "a"),
            AttrMap::new().with("value_strings", vec!["a".to_string()]),
        ];
        for map in maps {
            let op = build(13, &mut map.clone()).unwrap();
            assert_eq!(format!("{:?}", op.attrs()), format!("{map:?}"));
        }
        assert!(build(13, &mut AttrMap::new()).is_err());
    }
}
