use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use narrowbit_ir::{AttrMap, Op, OpError, OpSource};

/// Makes an operator at an opset version, taking the attributes that it knows.
pub type Build = fn(i64, &mut AttrMap) -> Result<Arc<dyn Op>, OpError>;

/// One operator of the registry.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The domain; empty for ONNX's own.
    pub domain: &'static str,
    /// The ONNX operator name.
    pub name: &'static str,
    /// The constructor.
    pub build: Build,
}

/// A group's list: `operators! { "Relu" => relu::build, … }`, with the domain in front for others than ONNX's.
macro_rules! operators {
    ($($name:literal => $build:expr),* $(,)?) => { crate::registry::operators! { domain "": $($name => $build),* } };
    (domain $domain:literal: $($name:literal => $build:expr),* $(,)?) => {
        /// The operators of this group.
        pub(crate) const OPERATORS: &[crate::registry::Entry] =
            &[$(crate::registry::Entry { domain: $domain, name: $name, build: $build }),*];
    };
}
pub(crate) use operators;

/// Every operator that narrowbit knows, group by group.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    use crate::{control, math, microsoft, nn, quant, tensor};
    let groups = [
        math::OPERATORS,
        tensor::OPERATORS,
        nn::OPERATORS,
        quant::OPERATORS,
        control::OPERATORS,
        microsoft::OPERATORS,
        microsoft::onnx_domain::OPERATORS,
    ];
    groups.into_iter().flatten()
}

/// The operators of [`entries`] as an [`OpSource`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Registry;

impl Registry {
    /// Whether there is an operator of that domain and name.
    pub fn knows(domain: &str, name: &str) -> bool {
        find(domain, name).is_some()
    }

    /// Makes an operator of ONNX's own domain from attributes that narrowbit wrote itself.
    ///
    /// # Errors
    /// When there is no such operator or an attribute is wrong.
    pub fn make(name: &str, opset: i64, mut attrs: AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Registry
            .build("", name, opset, &mut attrs)
            .unwrap_or_else(|| Err(OpError::Unsupported(format!("operator {name}"))))
    }
}

impl OpSource for Registry {
    fn build(&self, domain: &str, name: &str, opset: i64, attrs: &mut AttrMap) -> Option<Result<Arc<dyn Op>, OpError>> {
        find(domain, name).map(|e| (e.build)(opset, attrs))
    }
}

fn find(domain: &str, name: &str) -> Option<&'static Entry> {
    static INDEX: LazyLock<BTreeMap<(&str, &str), &Entry>> =
        LazyLock::new(|| entries().map(|e| ((e.domain, e.name), e)).collect());
    let domain = if domain == "ai.onnx" { "" } else { domain };
    INDEX.get(&(domain, name)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_each_operator_once() {
        let mut seen = BTreeMap::new();
        for e in entries() {
            assert!(seen.insert((e.domain, e.name), ()).is_none(), "{}.{} is listed twice", e.domain, e.name);
        }
        assert!(Registry::knows("ai.onnx", "Relu"));
        assert!(!Registry::knows("", "NoSuchOperator"));
    }
}
