"""What the random cases of `ms_cases.py` are made of: a case, random tensors, and the files that are written."""

import argparse
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

MS = "com.microsoft"
F32, F16, I8, U8, I32 = np.float32, np.float16, np.int8, np.uint8, np.int32
CASES = {}


def case(function):
    """Registers a function that is called with a random generator and yields (suffix, Case)."""
    CASES[function.__name__] = function
    return function


class Case:
    """One node, its inputs (arrays, or None where left out) and how to compare its outputs."""

    def __init__(self, op, inputs, outputs=1, domain=MS, opset=21, exact=None, rtol=1e-4, atol=1e-5, cast=None, const=(), **attrs):
        self.op, self.inputs, self.domain, self.opset, self.attrs = op, inputs, domain, opset, attrs
        self.outputs = [f"y{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        self.rtol, self.atol, self.exact, self.cast, self.const = rtol, atol, exact, cast, const

    def model(self, types=None):
        """The model; `types` are those of the outputs, None before they are known."""
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(self.inputs)]
        while names and not names[-1]:
            names.pop()
        made = [f"{o}_raw" if self.cast and o else o for o in self.outputs]
        nodes = [helper.make_node(self.op, names, made, domain=self.domain, **self.attrs)]
        shown = [o for o in self.outputs if o]
        if self.cast:
            nodes += [helper.make_node("Cast", [f"{o}_raw"], [o], to=self.cast) for o in shown]
        given = [(n, x) for n, x in zip(names, self.inputs) if n]
        constant = [numpy_helper.from_array(x, n) for n, x in given if self.is_const(n, x)]
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in given
            if not self.is_const(n, x)
        ]
        if types:
            outputs = [helper.make_tensor_value_info(o, helper.np_dtype_to_tensor_dtype(t.dtype), t.shape) for o, t in zip(shown, types)]
        else:
            outputs = [onnx.ValueInfoProto(name=o) for o in shown]
        graph = helper.make_graph(nodes, "case", inputs, outputs, constant)
        imports = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid(MS, 1)] if self.domain == MS else [])
        return helper.make_model(graph, opset_imports=imports, ir_version=13 if self.opset > 24 else 10)

    def is_const(self, name, x):
        """Types that numpy does not have can't be fed to a session: they are constants."""
        return int(name[1:]) in self.const or x.dtype.type.__module__ == ml_dtypes.__name__

    def feeds(self):
        return {f"x{i}": x for i, x in enumerate(self.inputs) if x is not None and not self.is_const(f"x{i}", x)}


def ints(r, shape, dtype, lo=None, hi=None):
    info = np.iinfo(dtype)
    return r.integers(info.min if lo is None else lo, (info.max if hi is None else hi) + 1, shape).astype(dtype)


def floats(r, *shape, scale=1.0, dtype=F32):
    return (r.standard_normal(shape) * scale).astype(dtype)


def scalar(x, dtype=F32):
    return np.array(x, dtype)


def scale_of(r):
    return scalar(r.uniform(0.005, 0.05))


def zero(r, dtype):
    return scalar(ints(r, (), dtype), dtype)


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def write(name, c, out):
    """Writes a case and returns its entry in the index."""
    if "opset_attr" in c.attrs:
        c.attrs["opset"] = c.attrs.pop("opset_attr")
    outputs = run(c.model(), c.feeds())
    model = c.model(outputs)
    data = out / name / "data_set_0"
    data.mkdir(parents=True)
    (out / name / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))

    def save(prefix, values, infos):
        entries = []
        for j, (value, info) in enumerate(zip(values, infos)):
            (data / f"{prefix}_{j}.pb").write_bytes(numpy_helper.from_array(np.asarray(value), info.name).SerializeToString())
            entries.append({"name": info.name, "kind": "tensor", "file": f"data_set_0/{prefix}_{j}.pb"})
        return entries

    exact = c.exact or all(np.asarray(o).dtype.kind in "iub" for o in outputs)
    feeds = c.feeds()
    return {
        "name": name,
        "op_types": [f"{c.domain}.{c.op}" if c.domain else c.op],
        "opset_imports": {o.domain: o.version for o in model.opset_import},
        "rtol": 0 if exact else c.rtol,
        "atol": 0 if exact else c.atol,
        "model": "model.onnx",
        "data_sets": [
            {
                "inputs": save("input", [feeds[i.name] for i in model.graph.input], model.graph.input),
                "outputs": save("output", outputs, model.graph.output),
            }
        ],
    }


def export(out):
    """Writes all cases under `out`; returns the index and what ONNX Runtime could not run."""
    out.parent.mkdir(parents=True, exist_ok=True)
    index, refused = [], []
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh = Path(scratch) / out.name
        fresh.mkdir()
        for family, function in sorted(CASES.items()):
            for suffix, c in function(np.random.default_rng(zlib.crc32(family.encode()))):
                name = f"ort_{family}_{suffix}"
                try:
                    index.append(write(name, c, fresh))
                except Exception as e:  # ONNX Runtime has no kernel for every type that the operators allow.
                    shutil.rmtree(fresh / name, ignore_errors=True)
                    refused.append((name, str(e).splitlines()[0][:150]))
        (fresh / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return index, refused


def main():
    parser = argparse.ArgumentParser(description="Export cases with ONNX Runtime's outputs.")
    parser.add_argument("out", type=Path, help="folder to (re)place")
    index, refused = export(parser.parse_args().out.resolve())
    for name, why in refused:
        print(f"refused by ONNX Runtime: {name}: {why}", file=sys.stderr)
    print(f"{len(index)} cases of onnxruntime {onnxruntime.__version__}, {len(refused)} refused", file=sys.stderr)
