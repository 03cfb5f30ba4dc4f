//! What [`Method::Auto`] stands for.

use narrowbit_ir::Graph;

use super::layout::{Kind, Layout};
use crate::observe::Method;
use crate::scheme::{ActivationScheme, NumberFormat};

impl Layout {
    /// The method that settings ask for, with what [`Method::Auto`] stands for in this network.
    ///
    /// Behind HardSwish, SiLU and the like, and in deep stacks of convolutions at all, a few values are many times greater than
    /// the rest, and steps that hold them erase the rest; cutting them off costs less. In transformers such values are what
    /// attention and normalizations go by, and stay. Other formats than integers of 8 bits have range or steps enough.
    pub fn method(&self, graph: &Graph, method: Method, scheme: &ActivationScheme) -> Method {
        if method != Method::Auto {
            return method;
        }
        let products = self.kinds.iter().filter(|(_, k)| **k == Kind::Product).map(|(&id, _)| graph.node(id).op.name());
        let (mut all, mut convolutions) = (0, 0);
        for name in products {
            all += 1;
            convolutions += usize::from(matches!(name, "Conv" | "ConvTranspose"));
        }
        let eight = matches!(scheme.format, NumberFormat::Int8 | NumberFormat::Uint8);
        if eight && 2 * convolutions > all { Method::Mse } else { Method::Minmax }
    }
}
