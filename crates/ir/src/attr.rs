use std::collections::BTreeMap;

use bytes::Bytes;
use narrowbit_tensor::Tensor;

use crate::{Graph, OpError, ValueType};

/// The value of an operator's attribute (ONNX `AttributeProto`).
#[derive(Debug, Clone)]
pub enum Attr {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A byte string, usually UTF-8.
    Str(Bytes),
    /// A tensor.
    Tensor(Tensor),
    /// A subgraph as it stands in the file; operators with bodies keep a [`crate::Body`] instead.
    Graph(Box<Graph>),
    /// Floats.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Byte strings.
    Strs(Vec<Bytes>),
    /// Tensors.
    Tensors(Vec<Tensor>),
    /// A type (Optional).
    Type(ValueType),
    /// A reference to an attribute of the enclosing function.
    Ref {
        /// That attribute's name.
        name: String,
        /// The type that it has, as a code of ONNX's `AttributeProto.AttributeType`.
        kind: i32,
    },
    /// Anything else, as the encoded `AttributeProto`, so that it survives a round trip.
    Raw(Bytes),
}

macro_rules! from {
    ($($t:ty => $v:ident),*) => { $(impl From<$t> for Attr { fn from(x: $t) -> Attr { Attr::$v(x.into()) } })* };
}
from! { f32 => Float, i64 => Int, String => Str, Tensor => Tensor, Vec<f32> => Floats, Vec<i64> => Ints, ValueType => Type }

impl From<&str> for Attr {
    fn from(x: &str) -> Attr {
        Attr::Str(Bytes::copy_from_slice(x.as_bytes()))
    }
}

impl From<bool> for Attr {
    fn from(x: bool) -> Attr {
        Attr::Int(x.into())
    }
}

impl From<&[i64]> for Attr {
    fn from(x: &[i64]) -> Attr {
        Attr::Ints(x.to_vec())
    }
}

impl From<Vec<String>> for Attr {
    fn from(x: Vec<String>) -> Attr {
        Attr::Strs(x.into_iter().map(Bytes::from).collect())
    }
}

/// Named attributes in alphabetical order.
///
/// Operator constructors *take* what they know; what is left over is unknown to
/// narrowbit and is kept with the node.
#[derive(Debug, Clone, Default)]
pub struct AttrMap(BTreeMap<String, Attr>);

macro_rules! take {
    ($(#[$doc:meta])* $name:ident -> $out:ty, $what:literal, $pat:pat => $get:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// When the attribute has another kind.
        pub fn $name(&mut self, name: &str) -> Result<Option<$out>, OpError> {
            match self.0.remove(name) {
                None => Ok(None),
                Some($pat) => Ok(Some($get)),
                Some(_) => Err(OpError::attribute(name, concat!("is not ", $what))),
            }
        }
    };
}

impl AttrMap {
    /// No attributes.
    pub fn new() -> AttrMap {
        AttrMap::default()
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Attr>) {
        self.0.insert(name.into(), value.into());
    }

    /// Sets an attribute, for chains.
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> AttrMap {
        self.set(name, value);
        self
    }

    /// Sets an attribute where there is a value, for chains.
    pub fn with_opt(self, name: &str, value: Option<impl Into<Attr>>) -> AttrMap {
        match value {
            Some(v) => self.with(name, v),
            None => self,
        }
    }

    /// Sets an attribute unless it equals its default, for chains.
    pub fn with_unless<T: Into<Attr> + PartialEq>(self, name: &str, value: T, default: T) -> AttrMap {
        if value == default { self } else { self.with(name, value) }
    }

    /// An attribute.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.get(name)
    }

    /// All attributes in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes an attribute of any kind out of the map.
    pub fn take(&mut self, name: &str) -> Option<Attr> {
        self.0.remove(name)
    }

    take!(
        /// Takes an integer.
        int -> i64, "an integer", Attr::Int(x) => x);
    take!(
        /// Takes a float.
        float -> f32, "a float", Attr::Float(x) => x);
    take!(
        /// Takes a list of integers.
        ints -> Vec<i64>, "a list of integers", Attr::Ints(x) => x);
    take!(
        /// Takes a list of floats.
        floats -> Vec<f32>, "a list of floats", Attr::Floats(x) => x);
    take!(
        /// Takes a tensor.
        tensor -> Tensor, "a tensor", Attr::Tensor(x) => x);
    take!(
        /// Takes a subgraph.
        graph -> Graph, "a graph", Attr::Graph(x) => *x);
    take!(
        /// Takes a type.
        value_type -> ValueType, "a type", Attr::Type(x) => x);

    /// Takes an integer, or the default where it is absent.
    ///
    /// # Errors
    /// When the attribute has another kind.
    pub fn int_or(&mut self, name: &str, default: i64) -> Result<i64, OpError> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// Takes an integer as a flag: absent or 0 is false.
    ///
    /// # Errors
    /// When the attribute has another kind.
    pub fn flag(&mut self, name: &str) -> Result<bool, OpError> {
        Ok(self.int_or(name, 0)? != 0)
    }

    /// Takes a float, or the default where it is absent.
    ///
    /// # Errors
    /// When the attribute has another kind.
    pub fn float_or(&mut self, name: &str, default: f32) -> Result<f32, OpError> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// Takes a string.
    ///
    /// # Errors
    /// When the attribute has another kind or is not UTF-8.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, OpError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Attr::Str(b)) => match String::from_utf8(b.to_vec()) {
                Ok(s) => Ok(Some(s)),
                Err(_) => Err(OpError::attribute(name, "is not UTF-8")),
            },
            Some(_) => Err(OpError::attribute(name, "is not a string")),
        }
    }

    /// Takes a list of strings.
    ///
    /// # Errors
    /// When the attribute has another kind or is not UTF-8.
    pub fn strings(&mut self, name: &str) -> Result<Option<Vec<String>>, OpError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Attr::Strs(v)) => v
                .into_iter()
                .map(|b| String::from_utf8(b.to_vec()))
                .collect::<Result<_, _>>()
                .map(Some)
                .map_err(|_| OpError::attribute(name, "is not UTF-8")),
            // An empty list carries no kind in some writers.
            Some(Attr::Ints(v)) if v.is_empty() => Ok(Some(Vec::new())),
            Some(_) => Err(OpError::attribute(name, "is not a list of strings")),
        }
    }
}

impl FromIterator<(String, Attr)> for AttrMap {
    fn from_iter<I: IntoIterator<Item = (String, Attr)>>(iter: I) -> AttrMap {
        AttrMap(iter.into_iter().collect())
    }
}

impl IntoIterator for AttrMap {
    type Item = (String, Attr);
    type IntoIter = std::collections::btree_map::IntoIter<String, Attr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
