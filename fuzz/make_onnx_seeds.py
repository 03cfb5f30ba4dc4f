"""Writes the seeds of the `onnx` fuzz target: small models that use each part of the format.

    python make_onnx_seeds.py corpus/onnx
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = TensorProto.FLOAT


def value(name, shape=("n", 2), dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(graph, opset=17, **kwargs):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **kwargs)


def plain():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first", doc_string="doc"),
        helper.make_node("Concat", ["a", "w"], ["y"], axis=0, unknown=[1.0, 2.0]),
    ]
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    return model(helper.make_graph(nodes, "plain", [value("x")], [value("y")], [weight]))


def tensors():
    typed = [
        helper.make_tensor("f", F, [2], [1.0, 2.0]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("b", TensorProto.BOOL, [3], [1, 0, 1]),
        helper.make_tensor("i4", TensorProto.INT4, [3], [1, -2, 3]),
        helper.make_tensor("l", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"bc"]),
    ]
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}_out"]) for t in typed]
    nodes.append(helper.make_node("Constant", [], ["c"], value=typed[0]))
    outputs = [value(f"{t.name}_out", t.dims, t.data_type) for t in typed] + [value("c", [2])]
    return model(helper.make_graph(nodes, "tensors", [], outputs, typed))


def branches():
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [value("t")])
    inner = helper.make_graph([helper.make_node("Add", ["x", "k"], ["i"])], "inner", [], [value("i")])
    nested = helper.make_node("If", ["cond"], ["e"], then_branch=inner, else_branch=inner)
    other = helper.make_graph([nested], "else", [], [value("e")])
    node = helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=other)
    k = helper.make_tensor("k", F, [1], [1.0])
    inputs = [value("x"), value("cond", [], TensorProto.BOOL)]
    return model(helper.make_graph([node], "branches", inputs, [value("y")], [k]))


def functions():
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    ref = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    node.attribute.append(ref)
    body = [node, helper.make_node("Relu", ["b"], ["c"])]
    f = helper.make_function("local", "F", ["a"], ["c"], body, [helper.make_opsetid("", 17)], ["slope"])
    calls = [
        helper.make_node("F", ["x"], ["m"], domain="local", slope=0.5),
        helper.make_node("F", ["m"], ["y"], domain="local", slope=0.1),
    ]
    return model(helper.make_graph(calls, "functions", [value("x")], [value("y")]), functions=[f])


def sparse():
    values = helper.make_tensor("s", F, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [1, 4])
    tensor = helper.make_sparse_tensor(values, indices, [3, 2])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "s"], ["y"])], "sparse", [value("x")], [value("y")], sparse_initializer=[tensor]
    )
    helper.set_model_props(made := model(graph), {"key": "value"})
    return made


def zero_beside_huge():
    huge = [0, 1 << 40, 1 << 40]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Expand", ["one", "shape"], ["e"]),
        helper.make_node("Concat", ["r", "e"], ["c"], axis=1),
        helper.make_node("ReduceSum", ["c"], ["y"]),
    ]
    constants = [
        helper.make_tensor("one", F, [1, 1, 1], [1.0]),
        helper.make_tensor("shape", TensorProto.INT64, [3], huge),
    ]
    return model(helper.make_graph(nodes, "zero_beside_huge", [value("x", huge)], [value("y", None)], constants))


def bad_zero_beside_huge():
    tensor = helper.make_tensor("w", F, [0], [])
    tensor.dims[:] = [0, 1 << 40, 1 << 40]
    graph = helper.make_graph([helper.make_node("Relu", ["w"], ["y"])], "bad", [], [value("y", None)], [tensor])
    return model(graph)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for make in (plain, tensors, branches, functions, sparse, zero_beside_huge, bad_zero_beside_huge):
        (out / f"{make.__name__}.onnx").write_bytes(make().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
