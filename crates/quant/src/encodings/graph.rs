//! The encodings that a quantized graph holds, under the names that its tensors had.

use narrowbit_ir::{Graph, Node, NodeId, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::{Encoding, Encodings, EncodingsError, Given, Part, qlinear};
use crate::scheme::{NumberFormat, ScalePoint, vitis};

impl Encodings {
    /// Takes scales and zero points from the QuantizeLinear and DequantizeLinear of a graph, and from QLinear operators: of
    /// activations under the name of the value that is quantized, of weights under that of the constant, both without the
    /// ending `_quantized`. Biases (int32)
    /// follow from the others, and are left out; scales that are no constants or stand for blocks are ignored with a reason.
    ///
    /// # Errors
    /// When there are none.
    pub fn of_graph(graph: &Graph) -> Result<Encodings, EncodingsError> {
        let mut found = Encodings::default();
        for (id, node) in graph.nodes() {
            let entry = match node.op.name() {
                "QuantizeLinear" => {
                    node.input(0).filter(|&v| graph.constant(v).is_none()).map(|v| activation(graph, id, v))
                }
                "DequantizeLinear" => {
                    let codes = node.input(0).map(|v| table(graph, v).unwrap_or(v));
                    codes.and_then(|v| Some(weight(graph, id, v, graph.constant(v)?)))
                }
                _ => None,
            };
            found.bias_positions.extend(bias_position(graph, id, node));
            for entry in entry.into_iter().chain(qlinear::entries(graph, id)) {
                match entry {
                    (name, Ok(Some(e))) => drop(found.tensors.entry(name).or_insert(e)),
                    (name, Err(why)) => found.ignored.push(format!("{name}: {why}")),
                    _ => {}
                }
            }
        }
        if found.tensors.is_empty() { Err(EncodingsError::Nothing) } else { Ok(found) }
    }
}

impl Encodings {
    /// The name under which [`Encodings::of_graph`] has what a QuantizeLinear or DequantizeLinear reads or makes; `None` for
    /// other nodes, and for biases.
    pub fn name_of(graph: &Graph, id: NodeId) -> Option<String> {
        let node = graph.node(id);
        let v = node.input(0)?;
        if node.op.name() == "QuantizeLinear" {
            return Some(activation(graph, id, v).0);
        }
        let codes = table(graph, v).unwrap_or(v);
        if let Some(constant) = graph.constant(codes) {
            return Some(weight(graph, id, codes, constant).0).filter(|_| constant.dtype() != DType::I32);
        }
        let (maker, _) = graph.producer(v)?;
        match graph.node(maker).op.name() {
            "QuantizeLinear" => Encodings::name_of(graph, maker),
            _ => qlinear::codes(graph, maker).map(|_| qlinear::plain_name(graph, v)),
        }
    }
}

/// The name and the position of a bias of 8 bits, where its scales are one power of two: that of the product.
fn bias_position(graph: &Graph, id: NodeId, node: &Node) -> Option<(String, i32)> {
    let v = node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?;
    let codes = graph.constant(v).filter(|t| t.dtype() == DType::I32)?;
    let scales = graph.const_input(id, 1)?.to_f32s().ok()?;
    let &first = scales.first()?;
    let product = vitis::position_of(first);
    if scales.iter().any(|s| *s != first) || vitis::scale_of(product) != first {
        return None;
    }
    let codes: Vec<i32> = codes.to_i64s().ok()?.into_iter().map(|c| c as i32).collect();
    Some((weight_name(graph, v), vitis::bias_position(&codes, product)?))
}

/// The table whose rows a Gather picks.
pub(super) fn table(graph: &Graph, rows: ValueId) -> Option<ValueId> {
    let gather = graph.node(graph.producer(rows)?.0);
    gather.input(0).filter(|&v| gather.op.name() == "Gather" && graph.constant(v).is_some())
}

pub(super) type Entry = (String, Result<Option<Encoding>, String>);

fn activation(graph: &Graph, id: NodeId, v: ValueId) -> Entry {
    let (v, bounds) = unlimited(graph, v);
    let part = if graph.producer(v).is_some() { Part::Output } else { Part::Input };
    let entry = points(graph, id, None, part).map(|e| {
        let bits = bounds.and_then(|b| bits_between(b, &e));
        Some(Encoding { bits: bits.or(e.bits), ..e })
    });
    (original_name(graph, id, v), entry)
}

/// The value before what limits it to fewer codes than the type has, and the bounds of its first channel: a Clip, or a Min
/// by channel and perhaps a Max behind it; before the Abs that fp8 has behind a Relu, too.
fn unlimited(graph: &Graph, v: ValueId) -> (ValueId, Option<[Option<f32>; 2]>) {
    let limit = |v: ValueId, op: &str| {
        let (n, _) = graph.producer(v)?;
        let node = graph.node(n);
        let ours = node.op.name() == op && graph.value(v).name.ends_with(&format!("_{op}"));
        let bound = |i: usize| graph.const_input(n, i)?.to_f32s().ok()?.first().copied();
        Some((node.input(0).filter(|_| ours)?, [bound(1), bound(2)]))
    };
    if let Some((x, bounds)) = limit(v, "Clip") {
        return (x, Some(bounds));
    }
    if let Some((x, _)) = limit(v, "Abs") {
        return (x, None);
    }
    let (below, low) = limit(v, "Max").map_or((v, None), |(x, [low, _])| (x, low));
    match limit(below, "Min") {
        Some((x, [high, _])) => (x, Some([low, high])),
        None => (v, None),
    }
}

/// Integer nodes hand on what DequantizeLinear makes under the value's own name.
fn original_name(graph: &Graph, quantize: NodeId, v: ValueId) -> String {
    let name = graph.value(v).name.clone();
    let Some(short) = name.strip_suffix("_float") else { return name };
    let codes = graph.node(quantize).output(0);
    if codes.is_some_and(|c| graph.value(c).name == format!("{short}_quantized")) {
        return short.to_owned();
    }
    let made = codes.and_then(|c| graph.uses(c).first().and_then(|u| graph.node(u.node).output(0)));
    if made.is_some_and(|m| graph.value(m).name == short) { short.to_owned() } else { name }
}

/// The bits of the codes between two bounds, of which the lower one may be that of the type; none where the type has as few.
fn bits_between([low, high]: [Option<f32>; 2], e: &Encoding) -> Option<u8> {
    let (Given::Point(p), format) = (*e.values.first()?, e.format?) else { return None };
    let code = |bound: f32| (f64::from(bound) / f64::from(p.scale)).round();
    let least = low.map_or_else(|| f64::from(format.type_range().0 - p.zero_point), code);
    let codes = code(high?) - least;
    (2..=16).find(|&b| codes < f64::from(1u32 << b)).filter(|&b| usize::from(b) < format.dtype().bits())
}

fn weight_name(graph: &Graph, v: ValueId) -> String {
    let name = &graph.value(v).name;
    name.strip_suffix("_quantized").unwrap_or(name).to_owned()
}

fn weight(graph: &Graph, id: NodeId, v: ValueId, codes: &Tensor) -> Entry {
    let name = weight_name(graph, v);
    if codes.dtype() == DType::I32 {
        return (name, Ok(None));
    }
    (name, points(graph, id, Some(codes), Part::Param).map(Some))
}

fn points(graph: &Graph, id: NodeId, codes: Option<&Tensor>, part: Part) -> Result<Encoding, String> {
    let mut attrs = graph.node(id).op.attrs();
    if attrs.int_or("block_size", 0).is_ok_and(|b| b != 0) {
        return Err("scales of blocks have no place in such a file".into());
    }
    let scales = graph.const_input(id, 1).ok_or("its scale is found at run time")?;
    of_constants((scales, graph.const_input(id, 2)), attrs.int_or("axis", 1).unwrap_or(1), codes, part)
}

/// What constant scales and zero points say of a tensor; `along` is the axis that several of them go along, `codes` those of
/// a constant.
pub(super) fn of_constants(
    (scales, zeros): (&Tensor, Option<&Tensor>),
    along: i64,
    codes: Option<&Tensor>,
    part: Part,
) -> Result<Encoding, String> {
    let dtype = codes.or(zeros).map_or(DType::U8, Tensor::dtype);
    let format = NumberFormat::of_dtype(dtype).ok_or_else(|| format!("codes of {dtype} are not ours"))?;
    let list = scales.to_f32s().map_err(|e| e.to_string())?;
    let zero_points: Vec<i32> = match zeros {
        Some(z) if !format.is_float() => z.to_f32s().map_err(|e| e.to_string())?.iter().map(|&z| z as i32).collect(),
        _ => vec![0; list.len()],
    };
    if zero_points.len() != list.len() || list.is_empty() {
        return Err(format!("{} scales and {} zero points", list.len(), zero_points.len()));
    }
    let value = |(&scale, &zero_point): (&f32, &i32)| Given::Point(ScalePoint { scale, zero_point });
    let values: Vec<Given> = list.iter().zip(&zero_points).map(value).collect();
    let axis = match scales.rank() {
        0 => None,
        _ if values.len() == 1 && codes.is_none() => None,
        _ => Some(along),
    };
    Ok(Encoding { axis, ..Encoding::new(Some(part), (format, None), values) })
}
