"""Compares every quantized tensor of a model with ONNX Runtime's, and looks at what ONNX Runtime makes of the model.

    python ort_agree.py MODEL FOLDER

FOLDER holds what another interpreter has read and made: `inputs.npz` (arrays by input name), `ours.npz` (arrays
`t0`, `t1` …: each int8 or uint8 tensor and each output) and `names.json` (their names in that order). ONNX Runtime
runs MODEL with all optimizations off and every tensor as an output, then with all on. Prints one JSON object, and
writes each of ONNX Runtime's int8 and uint8 tensors to FOLDER as `<i>.bin`, described in `theirs.json`.
"""

import collections
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

import cases

FP8 = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)


def with_all_outputs(path):
    """The model with every tensor that a node makes as an output, but for codes of fp8, which numpy has no type for."""
    model = onnx.load(path)
    known = {o.name for o in model.graph.output}
    fp8 = {t.name for t in model.graph.initializer if t.data_type in FP8}
    known |= {n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and fp8.intersection(n.input[2:])}
    made = [o for node in model.graph.node for o in node.output if o and o not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return model.SerializeToString()


def differences(ours, theirs):
    """How the codes differ over all tensors; the tensor that is worst, and the first that differs at all."""
    total, different, worst, where, first = 0, 0, 0, None, None
    for name in theirs:  # In the order of the graph.
        if name not in ours or ours[name].dtype not in (np.int8, np.uint8):
            continue
        codes = ours[name]
        if codes.shape != theirs[name].shape or codes.dtype != theirs[name].dtype:
            raise SystemExit(f"{name}: {codes.dtype} {codes.shape}, ONNX Runtime has {theirs[name].dtype} {theirs[name].shape}")
        steps = np.abs(codes.astype(int) - theirs[name].astype(int))
        total += steps.size
        wrong = int((steps > 0).sum())
        different += wrong
        if wrong and not first:
            first = f"{name}: {wrong} of {steps.size}"
        if steps.size and steps.max() > worst:
            worst, where = int(steps.max()), name
    return {"values": total, "different": different, "most_steps": worst, "worst_tensor": where, "first": first}


def optimized_graph(path):
    """The graph as ONNX Runtime optimizes it."""
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "optimized.onnx"
        cases.session(path, save=saved)
        return onnx.load(saved).graph


def dequantized_weights(graph):
    """The number of constant matrices that are dequantized at each run."""
    constants = {t.name for t in graph.initializer if len(t.dims) > 1}
    return sum(n.op_type == "DequantizeLinear" and n.input[0] in constants for n in graph.node)


def fp8_product(path):
    """Whether a model holds fp8 numbers and a MatMul."""
    graph = onnx.load(path).graph
    fp8 = any(t.data_type in FP8 for t in graph.initializer)
    return fp8 and any(n.op_type == "MatMul" for n in graph.node)


def main(path, folder):
    folder = Path(folder)
    names = json.loads((folder / "names.json").read_text())
    saved = np.load(folder / "ours.npz")
    ours = {name: saved[f"t{i}"] for i, name in enumerate(names)}
    feeds = dict(np.load(folder / "inputs.npz"))
    plain = cases.session(with_all_outputs(path), optimize=False)
    theirs = dict(zip([o.name for o in plain.get_outputs()], plain.run(None, feeds)))
    report = differences(ours, theirs)
    codes = [n for n, t in theirs.items() if isinstance(t, np.ndarray) and t.dtype in (np.int8, np.uint8)]
    for i, name in enumerate(codes):
        (folder / f"{i}.bin").write_bytes(theirs[name].tobytes())
    described = [{"name": n, "signed": theirs[n].dtype == np.int8, "shape": theirs[n].shape} for n in codes]
    (folder / "theirs.json").write_text(json.dumps(described))
    report["tensors"] = len(codes)
    report["missing"] = [n for n in codes if n not in ours]
    outputs = [o.name for o in onnx.load(path).graph.output]
    report["plain_sqnr_db"] = min(cases.sqnr_db(theirs[n], ours[n]) for n in outputs)
    # Its optimizations take a product of fp8 for one of integers, and then refuse the model: `quantize` says so.
    if not fp8_product(path):
        optimized = cases.session(path)
        fast = dict(zip(outputs, optimized.run(None, feeds)))
        report["optimized_sqnr_db"] = min(cases.sqnr_db(fast[n], ours[n]) for n in outputs)
        graph = optimized_graph(path)
        report["operators"] = dict(collections.Counter(node.op_type for node in graph.node))
        report["dequantized_weights"] = dequantized_weights(graph)
    print(json.dumps({k: (1e9 if v == float("inf") else v) for k, v in report.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
