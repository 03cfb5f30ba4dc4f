//! Queries, keys and values as attention reads them: through the operators that only put them in another order, or repeat
//! heads that several queries share.

use narrowbit_ir::{Node, NodeId, ValueId};

use super::Finder;

/// A value read through a Transpose.
#[derive(Debug, Clone)]
pub struct Operand {
    /// The value in memory.
    pub value: ValueId,
    /// The axes of the Transpose, if there is one.
    pub perm: Option<Vec<usize>>,
}

/// Which operand of an attention a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Queries,
    /// Transposed keys: columns of queries and keys are their last axis but one.
    Keys,
    Values,
}

impl Part {
    /// Whether a Transpose leaves an axis contiguous that kernels read in a row; `ints` have one for either axis of keys.
    fn reads(self, perm: &[usize], ints: bool) -> bool {
        let rank = perm.len();
        let contiguous = perm.iter().position(|&axis| axis + 1 == rank);
        match self {
            Part::Queries | Part::Values => contiguous == rank.checked_sub(1),
            Part::Keys => contiguous == rank.checked_sub(2) || ints && contiguous == rank.checked_sub(1),
        }
    }
}

impl<'a> Finder<'a> {
    /// The integers behind `v`, read through a Transpose that serves nobody else.
    pub(super) fn moved_codes(&self, v: ValueId, codes: ValueId, part: Part, nodes: &mut Vec<NodeId>) -> Operand {
        let rank = self.facts.shape(v).map_or(0, <[_]>::len);
        let through = || {
            let (dequantize, _) = self.previous(v)?;
            let (id, node) = self.previous(codes).filter(|n| n.1.op.name() == "Transpose")?;
            let axes = perm(node, rank).filter(|p| part.reads(p, true))?;
            Some((dequantize, id, node.input(0)?, axes))
        };
        let Some((dequantize, id, value, axes)) = through() else { return Operand { value: codes, perm: None } };
        nodes.extend([dequantize, id]);
        Operand { value, perm: Some(axes) }
    }

    /// Looks through a Transpose and, for factors of the scores, through a product with a scalar.
    pub(super) fn operand(
        &self,
        mut v: ValueId,
        part: Part,
        mut scale: Option<&mut f32>,
        nodes: &mut Vec<NodeId>,
    ) -> Operand {
        let rank = self.facts.shape(v).map_or(0, <[_]>::len);
        let mut found = None;
        while let Some((id, node)) = self.previous(v) {
            let Some(x) = node.input(0) else { break };
            let factor = node.input(1).and_then(|f| self.scalar(f));
            match (node.op.name(), &mut scale, factor) {
                ("Transpose", _, _) if found.is_none() => match perm(node, rank).filter(|p| part.reads(p, false)) {
                    Some(p) => found = Some(p),
                    None => break,
                },
                ("Mul", Some(s), Some(f)) => **s *= f,
                ("Div", Some(s), Some(f)) => **s /= f,
                _ => break,
            }
            nodes.push(id);
            v = x;
        }
        Operand { value: v, perm: found }
    }

    /// Keys and values before each of their heads is repeated for the queries that share it (`Unsqueeze → Expand → Reshape`).
    /// What repeats them stays in the graph for who else reads it, and is dropped where nobody does.
    pub(super) fn before_repeats(&self, [k, v]: [Operand; 2], queries: ValueId) -> [Operand; 2] {
        let heads = |o: &Operand| self.extents(o.value).and_then(|d| d.get(1).copied());
        match (self.unrepeated(&k), self.unrepeated(&v)) {
            (Some(a), Some(b)) if heads(&a) == heads(&b) && self.extents(queries).is_some_and(|d| d.len() == 4) => {
                [a, b]
            }
            _ => [k, v],
        }
    }

    /// An operand of four axes whose heads are repeated, as what is repeated.
    fn unrepeated(&self, o: &Operand) -> Option<Operand> {
        let outer = o.perm.clone().unwrap_or_else(|| (0..4).collect());
        // Heads are repeated along the second axis.
        let joined = self.extents(o.value).filter(|d| d.len() == 4 && outer.len() == 4 && outer[..2] == [0, 1])?;
        let expand = self.graph.node(self.graph.producer(self.reshaped(o.value))?.0);
        let x = expand.input(0).filter(|_| matches!(expand.op.name(), "Expand" | "Tile"))?;
        let (from, to) = (self.extents(x)?, self.extents(expand.output(0)?)?);
        let &[batch, heads, 1, rows, columns] = from.as_slice() else { return None };
        let repeats = to.get(2).copied()?;
        let same = to == [batch, heads, repeats, rows, columns] && joined == [batch, heads * repeats, rows, columns];
        let dense = self.alias(x).filter(|&v| same && self.extents(v) == Some(vec![batch, heads, rows, columns]))?;
        let (value, inner) = self.behind_transpose(dense).unwrap_or_else(|| (dense, (0..4).collect()));
        Some(Operand { value, perm: Some(outer.iter().map(|&axis| inner[axis]).collect()) })
    }

    /// A value of four axes before the Transpose that makes it and leaves its rows as they are.
    fn behind_transpose(&self, v: ValueId) -> Option<(ValueId, Vec<usize>)> {
        let node = self.graph.node(self.graph.producer(v)?.0);
        let axes = perm(node, 4).filter(|p| node.op.name() == "Transpose" && p[3] == 3)?;
        Some((node.input(0)?, axes))
    }

    /// A value before all that only gives it another shape.
    fn reshaped(&self, mut v: ValueId) -> ValueId {
        while let Some(x) = self.alias(v) {
            v = x;
        }
        v
    }

    /// What a Reshape or its like gives another shape.
    fn alias(&self, v: ValueId) -> Option<ValueId> {
        let node = self.graph.node(self.graph.producer(v)?.0);
        node.input(0).filter(|_| crate::ops::is_alias(node))
    }

    /// The known extents of a value.
    pub(super) fn extents(&self, v: ValueId) -> Option<Vec<usize>> {
        self.facts.shape(v)?.iter().map(|d| d.as_usize()).collect()
    }

    /// The Transpose that alone reads a value and leaves its rows contiguous, and what it makes.
    pub(super) fn transpose(&self, v: ValueId, rank: usize) -> Option<(NodeId, Vec<usize>, ValueId)> {
        let (id, node, _) = self.next(v).filter(|n| n.1.op.name() == "Transpose")?;
        let axes = perm(node, rank).filter(|p| p.last() == Some(&(rank - 1)))?;
        Some((id, axes, node.output(0)?))
    }
}

/// The axes of a Transpose of the given rank.
fn perm(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let axes = match node.op.attrs().ints("perm").ok()? {
        Some(p) => p,
        None => (0..rank as i64).rev().collect(),
    };
    let axes: Option<Vec<usize>> = axes.into_iter().map(|a| usize::try_from(a).ok().filter(|&a| a < rank)).collect();
    axes.filter(|a| a.len() == rank)
}
