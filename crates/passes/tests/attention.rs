//! Attention in primitive operators is recognised with its parts, and nothing else is.

use std::error::Error;

use narrowbit_ir::{infer, text};
use narrowbit_ops::Registry;
use narrowbit_passes::attention::{Attention, find_attention};

fn find(body: &str) -> Result<(narrowbit_ir::Graph, Vec<Attention>), Box<dyn Error>> {
    let head = "input %q: f32[n, 2, 5, 4] input %k: f32[n, 2, 4, 5] input %v: f32[n, 2, 5, 4] input %m: f32[n, 1, 1, 5]
        const %c: f32[] = 0.5 const %d: f32[] = 4";
    let graph = text::parse_graph(&format!("graph \"g\" {{ {head} {body} }}"), &Registry, 17)?;
    let facts = infer::infer(&graph, &Default::default(), infer::Options::default())?;
    let found = find_attention(&graph, &facts);
    Ok((graph, found))
}

#[test]
fn finds_scaled_and_masked_attention() -> Result<(), Box<dyn Error>> {
    let (graph, found) = find(
        "%qs = Mul(%c, %q) %s = MatMul(%qs, %k) %t = Div(%s, %d) %u = Add(%m, %t)
         %p = Softmax(%u) %y = MatMul(%p, %v) output %y",
    )?;
    let [a] = found.as_slice() else { return Err(format!("found {found:?}").into()) };
    let name = |v| graph.value(v).name.as_str();
    assert_eq!((name(a.q), name(a.k), name(a.v), a.scale), ("q", "k", "v", 0.125));
    assert_eq!(a.masks.iter().map(|&m| name(m)).collect::<Vec<_>>(), ["m"]);
    assert_eq!(a.nodes.len(), 6);
    Ok(())
}

#[test]
fn leaves_attention_whose_weights_are_read_elsewhere() -> Result<(), Box<dyn Error>> {
    let (_, found) = find("%s = MatMul(%q, %k) %p = Softmax(%s) %y = MatMul(%p, %v) output %y output %p")?;
    assert!(found.is_empty());
    let (_, found) = find("%s = MatMul(%q, %k) %p = Softmax(%s) {axis=1} %y = MatMul(%p, %v) output %y")?;
    assert!(found.is_empty());
    Ok(())
}
