"""Runs a model in the runtimes that `quantize --target` knows, beside another program's outputs.

    python target_run.py MODEL FOLDER

FOLDER holds `inputs.npz` (arrays by input name) and `ours.npz` (arrays `t0`, `t1` …: the outputs in the order of the
graph). Prints one JSON object: for each runtime that is installed, with what it does by default, either the least SQNR
of its outputs against ours (`sqnr_db`), or why it does not run the model (`error`).
"""

import json
import sys
from pathlib import Path

import numpy as np

import cases


def onnxruntime(path, feeds):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def openvino(path, feeds):
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
    found = compiled(feeds)
    return [np.array(found[output]) for output in compiled.outputs]


def run(how, path, feeds, ours):
    try:
        theirs = how(path, feeds)
    except ImportError:
        return None
    except Exception as e:  # Whatever a runtime says: it is reported.
        return {"error": str(e).strip().splitlines()[-1][:300]}
    found = [cases.sqnr_db(t.astype(np.float32), o.astype(np.float32)) for t, o in zip(theirs, ours)]
    least = min(found)
    return {"sqnr_db": -1e9 if not least == least else min(1e9, least)}


def main(path, folder):
    folder = Path(folder)
    feeds = dict(np.load(folder / "inputs.npz"))
    saved = np.load(folder / "ours.npz")
    ours = [saved[f"t{i}"] for i in range(len(saved.files))]
    report = {how.__name__: run(how, path, feeds, ours) for how in (onnxruntime, openvino)}
    print(json.dumps({name: found for name, found in report.items() if found is not None}))


if __name__ == "__main__":
    main(*sys.argv[1:])
