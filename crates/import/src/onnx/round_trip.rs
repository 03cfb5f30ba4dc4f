//! Real models survive reading and writing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use narrowbit_tensor::Tensor;
use narrowbit_testkit::paths;
use prost::Message;

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use super::source::Source;
use super::{ReadOptions, parse_with, tensor, to_bytes};

type Check = Result<(), String>;

/// Reads, writes, compares with the file, reads again, writes again, compares with the first writing.
fn check(path: &Path) -> Check {
    let words = |e: &dyn std::fmt::Display| e.to_string();
    let bytes = Bytes::from(std::fs::read(path).map_err(|e| words(&e))?);
    let options = ReadOptions { opsets: 1..=i64::MAX };
    let model = parse_with(bytes.clone(), path.parent(), &options).map_err(|e| words(&e))?;
    let first = to_bytes(&model).map_err(|e| words(&e))?;
    let again = parse_with(first.clone(), None, &options).map_err(|e| words(&e))?;
    if to_bytes(&again).map_err(|e| words(&e))? != first {
        return Err("the second writing differs from the first".into());
    }
    let original = ModelProto::decode(bytes).map_err(|e| words(&e))?;
    let written = ModelProto::decode(Bytes::from(first)).map_err(|e| words(&e))?;
    models(&original, &written)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, a: T, b: T) -> Check {
    if a == b { Ok(()) } else { Err(format!("{what}: {a:?} became {b:?}").chars().take(400).collect()) }
}

fn models(a: &ModelProto, b: &ModelProto) -> Check {
    same("producer", (&a.producer_name, &a.producer_version), (&b.producer_name, &b.producer_version))?;
    same("metadata", &a.metadata_props, &b.metadata_props)?;
    let opsets = |m: &ModelProto| -> BTreeMap<String, Option<i64>> {
        let pair = |o: &OperatorSetIdProto| (o.domain.clone().unwrap_or_default(), o.version);
        m.opset_import.iter().map(pair).collect()
    };
    same("opsets", opsets(a), opsets(b))?;
    same("functions", a.functions.len(), b.functions.len())?;
    if a.ir_version > b.ir_version {
        return Err("the IR version was lowered".into());
    }
    match (&a.graph, &b.graph) {
        (Some(a), Some(b)) => graphs(a, b),
        _ => Err("the graph is lost".into()),
    }
}

fn graphs(a: &GraphProto, b: &GraphProto) -> Check {
    let constants: BTreeSet<&Option<String>> = a.initializer.iter().map(|t| &t.name).collect();
    let inputs: Vec<_> = a.input.iter().filter(|i| !constants.contains(&i.name)).cloned().collect();
    same("graph name", a.name.clone().unwrap_or_default(), b.name.clone().unwrap_or_default())?;
    same("inputs", &inputs, &b.input)?;
    let names = |g: &GraphProto| g.output.iter().map(|o| o.name.clone()).collect::<Vec<_>>();
    same("outputs", names(a), names(b))?;
    same("initializers", a.initializer.len(), b.initializer.len())?;
    let by_name: BTreeMap<_, _> = b.initializer.iter().map(|t| (&t.name, t)).collect();
    for t in &a.initializer {
        let Some(u) = by_name.get(&t.name) else { return Err(format!("initializer {:?} is lost", t.name)) };
        same("initializer", read(t), read(u))?;
    }
    same("number of nodes", a.node.len(), b.node.len())?;
    a.node
        .iter()
        .zip(&b.node)
        .try_for_each(|(a, b)| nodes(a, b).map_err(|e| format!("node {:?} ({:?}): {e}", a.name, a.op_type)))
}

fn nodes(a: &NodeProto, b: &NodeProto) -> Check {
    same("operator", &a.op_type, &b.op_type)?;
    same("domain", a.domain.clone().unwrap_or_default(), b.domain.clone().unwrap_or_default())?;
    if a.name.as_deref().is_some_and(|n| !n.is_empty()) {
        same("name", &a.name, &b.name)?;
    }
    same("inputs", &a.input, &b.input)?;
    same("outputs", &a.output, &b.output)?;
    let of_a: BTreeMap<_, _> = a.attribute.iter().map(|x| (x.name.as_deref(), x)).collect();
    // Attributes that equal their defaults may be left out.
    b.attribute.iter().try_for_each(|y| match of_a.get(&y.name.as_deref()) {
        Some(x) => attributes(x, y).map_err(|e| format!("attribute {:?}: {e}", y.name)),
        None => Err(format!("attribute {:?} is new", y.name)),
    })
}

fn attributes(a: &AttributeProto, b: &AttributeProto) -> Check {
    same("type", a.r#type, b.r#type)?;
    match ((&a.g, &b.g), (&a.t, &b.t)) {
        ((Some(x), Some(y)), _) => graphs(x, y),
        (_, (Some(x), Some(y))) => same("tensor", read(x), read(y)),
        _ => {
            let plain = |x: &AttributeProto| AttributeProto { doc_string: None, ..x.clone() };
            same("value", plain(a), plain(b))
        }
    }
}

fn read(t: &TensorProto) -> Option<Tensor> {
    tensor::read(&Source::new("test", None), "tensor", t.clone()).ok()
}

fn run(files: Vec<PathBuf>) {
    let wrong: Vec<String> =
        files.iter().filter_map(|f| check(f).err().map(|e| format!("{}: {e}", f.display()))).collect();
    assert!(wrong.is_empty(), "{} of {} models changed:\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

#[test]
fn keeps_the_models_of_the_node_tests() {
    let Some(dir) = paths::node_tests() else { return };
    let cases = narrowbit_testkit::conformance::read_index(&dir).unwrap();
    run(cases.iter().map(|c| dir.join(&c.name).join(&c.model)).collect());
}

#[test]
fn keeps_the_shared_models() {
    let Some(dir) = paths::shared_dir() else { return };
    let mut found = Vec::new();
    for folder in std::fs::read_dir(dir.join("models")).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            found.extend(Some(file.path()).filter(|p| p.extension().is_some_and(|x| x == "onnx")));
        }
    }
    run(found);
}
