"""Runs a model in ONNX Runtime beside another program's outputs.

    python ort_outputs.py MODEL FOLDER

FOLDER holds `inputs.npz` (arrays by input name) and `ours.npz` (arrays `t0`, `t1` …: the outputs in the order of the
graph). Checks MODEL with `onnx.checker`, runs it with all optimizations off, with all on, and with all on but exact
products of weights by blocks. Prints one JSON object: the least SQNR of the outputs against ours in each, and the
operators of the optimized graph.
"""

import collections
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import cases

# ONNX Runtime else rounds the activations of such products to 8 bits.
EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}


def exact_session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in EXACT.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path):
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "optimized.onnx"
        cases.session(path, save=saved)
        return dict(collections.Counter(node.op_type for node in onnx.load(saved).graph.node))


def main(path, folder):
    folder = Path(folder)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    saved = np.load(folder / "ours.npz")
    feeds = dict(np.load(folder / "inputs.npz"))
    report = {"operators": operators(path)}
    sessions = {"plain": cases.session(path, optimize=False), "optimized": cases.session(path), "exact": exact_session(path)}
    for name, session in sessions.items():
        theirs = session.run(None, feeds)
        found = [cases.sqnr_db(t, saved[f"t{i}"]) for i, t in enumerate(theirs)]
        report[f"{name}_sqnr_db"] = min(1e9 if f == float("inf") else f for f in found)
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
