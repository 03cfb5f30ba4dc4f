"""Quantizes a float model with ONNX Runtime and the TensorQuantOverrides of a file.

    python ort_overrides.py MODEL OVERRIDES.json

Feeds one random sample: every scale is in the file. Prints one JSON object: how many tensors the file is about, and those
whose scale or zero point in ONNX Runtime's model differs from the file, in which none should be.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime import quantization as q

import cases


class OneSample(q.CalibrationDataReader):
    def __init__(self, path):
        rng = np.random.default_rng(0)
        inputs = cases.session(path).get_inputs()
        shape = lambda i: [d if isinstance(d, int) else 1 for d in i.shape]
        self.samples = [{i.name: rng.uniform(0, 1, shape(i)).astype(np.float32) for i in inputs}]

    def get_next(self):
        return self.samples.pop() if self.samples else None


def main(model, overrides):
    given = json.loads(Path(overrides).read_text())
    typed = {
        name: [{**entry, "quant_type": q.QuantType.from_string(entry["quant_type"])} for entry in entries]
        for name, entries in given.items()
    }
    for entries in typed.values():
        for entry in entries:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(entry["quant_type"].tensor_type)
            entry["scale"], entry["zero_point"] = np.array(entry["scale"], np.float32), np.array(entry["zero_point"], dtype)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.onnx"
        options = {"TensorQuantOverrides": typed}
        q.quantize_static(model, str(out), OneSample(model), activation_type=q.QuantType.QUInt8, extra_options=options)
        graph = onnx.load(out).graph
    constants = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    different, found = [], 0
    for name, entries in given.items():
        scale, zero = constants.get(f"{name}_scale"), constants.get(f"{name}_zero_point")
        if scale is None:
            continue
        found += 1
        expected = np.array([e["scale"] for e in entries], np.float32)
        zeros = np.array([e["zero_point"] for e in entries])
        if not (np.array_equal(np.ravel(scale), expected) and np.array_equal(np.ravel(zero).astype(int), zeros)):
            different.append(name)
    print(json.dumps({"tensors": len(given), "found": found, "different": different}))


if __name__ == "__main__":
    main(*sys.argv[1:])
