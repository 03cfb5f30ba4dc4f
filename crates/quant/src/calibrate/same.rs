use std::collections::BTreeMap;

use narrowbit_ir::{Graph, ValueId};

/// Operators that give the elements of their first input, in another order or shape at the most.
const ONE_TO_ONE: &[&str] = &["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"];

/// For each value to observe, a value with the same elements; values with the same elements have the same one.
///
/// Looking once is enough, and operators between them can then be part of a fused kernel, or do nothing at all.
/// Chosen is a value that no Transpose makes or reads, if there is one: a kernel may read and write through that.
pub fn representatives(graph: &Graph, values: &[ValueId]) -> BTreeMap<ValueId, ValueId> {
    let mut classes: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for &v in values {
        let chain = chain(graph, v);
        classes.entry(chain.last().copied().unwrap_or(v)).or_default().extend(chain);
    }
    let mut chosen = BTreeMap::new();
    for members in classes.values() {
        let best = members.iter().copied().min_by_key(|&v| (beside_transpose(graph, v), v));
        chosen.extend(members.iter().filter_map(|&v| Some((v, best?))));
    }
    chosen.retain(|v, _| values.contains(v));
    chosen
}

/// The value and those with the same elements that it is made from, up to the first one.
fn chain(graph: &Graph, mut v: ValueId) -> Vec<ValueId> {
    let mut chain = vec![v];
    while let Some((n, 0)) = graph.producer(v) {
        let node = graph.node(n);
        let Some(x) = node.input(0).filter(|_| ONE_TO_ONE.contains(&node.op.name())) else { break };
        chain.push(x);
        v = x;
    }
    chain
}

fn beside_transpose(graph: &Graph, v: ValueId) -> bool {
    let is = |n| graph.node(n).op.name() == "Transpose";
    graph.producer(v).is_some_and(|(n, _)| is(n)) || graph.uses(v).iter().any(|u| is(u.node))
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::{Model, text};
    use narrowbit_ops::Registry;

    use super::*;

    fn chosen(body: &str, values: &[&str]) -> Vec<String> {
        let text = format!("model opset=17 graph \"g\" {{ input %x: f32[2, 6] const %s: i64[2] = [3, 4] {body} }}");
        let model: Model = text::parse_model(&text, &Registry).unwrap();
        let graph = &model.graph;
        let named = |n: &str| graph.value_named(n).unwrap();
        let values: Vec<ValueId> = values.iter().map(|n| named(n)).collect();
        let found = representatives(graph, &values);
        values.iter().map(|v| graph.value(found[v]).name.clone()).collect()
    }

    #[test]
    fn observes_moved_elements_once_and_not_at_a_transpose() {
        let body = "%r = Relu(%x) %t = Transpose(%r) %y = Reshape(%t, %s) output %y";
        assert_eq!(chosen(body, &["r", "t", "y"]), ["y", "y", "y"]);
        let body = "%r = Relu(%x) %q = Reshape(%r, %s) %t = Transpose(%q) output %t";
        assert_eq!(chosen(body, &["t"]), ["r"]);
    }

    #[test]
    fn keeps_values_apart_that_differ() {
        let body = "%r = Relu(%x) %n = Neg(%r) %y = Reshape(%n, %s) output %y";
        assert_eq!(chosen(body, &["r", "y"]), ["r", "n"]);
    }
}
