use narrowbit_ir::{Attr, Def, Graph, Model, ValueType};
use narrowbit_tensor::DType;

/// The IR version of files that say none and ask for none: opset 13's.
const DEFAULT: i64 = 7;

/// The version of the file format that a model needs: its own, raised where an opset, a type or a feature asks for it.
pub(super) fn ir_version(model: &Model) -> i64 {
    let stated = if model.ir_version > 0 { model.ir_version } else { DEFAULT };
    let opset = model.opsets.get("").or_else(|| model.opsets.get("ai.onnx")).map_or(0, |&v| ir_version_of(v));
    let functions = model.functions.iter().map(|f| {
        let late =
            !f.overload.is_empty() || !f.graph.metadata.is_empty() || f.graph.values().any(|(_, v)| is_typed(&v.ty));
        if late { 10 } else { 8 }
    });
    let needed = functions.chain([opset, of_graph(&model.graph)]).max().unwrap_or(0);
    stated.max(needed)
}

fn is_typed(ty: &ValueType) -> bool {
    *ty != ValueType::Unknown
}

/// The IR version with which an opset was released (the table of ONNX's Versioning page).
pub fn ir_version_of(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        _ => 14,
    }
}

fn of_graph(graph: &Graph) -> i64 {
    let values = graph.values().map(|(_, v)| {
        // Since version 4 an initializer need not be an input too.
        let constant = if matches!(v.def, Def::Const(_)) { 4 } else { 0 };
        constant.max(of_type(&v.ty))
    });
    let metadata = graph.nodes().any(|(_, n)| !n.metadata.is_empty())
        || !graph.metadata.is_empty()
        || graph.notes.values().any(|n| !n.metadata.is_empty());
    let inner = graph.nodes().map(|(_, n)| {
        let bodies = n.op.bodies().into_iter().map(|(_, b)| of_graph(&b.graph)).max().unwrap_or(0);
        let attrs = n.op.attrs();
        bodies.max(attrs.iter().chain(n.extra.iter()).map(|(_, a)| of_attr(a)).max().unwrap_or(0))
    });
    values.chain(inner).chain([if metadata { 10 } else { 0 }]).max().unwrap_or(0)
}

fn of_attr(attr: &Attr) -> i64 {
    match attr {
        Attr::Tensor(t) => of_dtype(t.dtype()),
        Attr::Tensors(t) => t.iter().map(|t| of_dtype(t.dtype())).max().unwrap_or(0),
        Attr::Graph(g) => of_graph(g),
        Attr::Type(t) => of_type(t),
        _ => 0,
    }
}

fn of_type(ty: &ValueType) -> i64 {
    match ty {
        ValueType::Unknown => 0,
        ValueType::Tensor(t) => t.dtype.map_or(0, of_dtype),
        ValueType::Sequence(t) => of_type(t).max(6),
        ValueType::Optional(t) => of_type(t).max(8),
    }
}

fn of_dtype(dtype: DType) -> i64 {
    match dtype {
        DType::F8E4M3Fn | DType::F8E4M3Fnuz | DType::F8E5M2 | DType::F8E5M2Fnuz => 9,
        DType::U4 | DType::I4 => 10,
        DType::F4E2M1 => 11,
        DType::F8E8M0 => 12,
        DType::U2 | DType::I2 => 13,
        DType::Bf16 => 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_tensor::Tensor;

    #[test]
    fn raises_the_version_where_a_type_or_an_opset_needs_it() {
        let mut m = Model { ir_version: 3, ..Model::default() };
        m.opsets.insert(String::new(), 7);
        assert_eq!(ir_version(&m), 3);
        m.graph.add_const("c", Tensor::scalar(1f32));
        assert_eq!(ir_version(&m), 4);
        m.opsets.insert(String::new(), 13);
        assert_eq!(ir_version(&m), 7);
        m.graph.add_const("d", Tensor::from_i64s(DType::I4, [2], &[1, 2]).unwrap());
        assert_eq!(ir_version(&m), 10);
        m.ir_version = 12;
        assert_eq!(ir_version(&m), 12);
    }
}
