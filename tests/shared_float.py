"""Compares the float outputs of `narrowbit run` with ONNX Runtime's on a few samples of each shared model.

    python shared_float.py BINARY SHARED [SAMPLES]

Exit code 1 when an error exceeds 1e-4 of the output's range.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import cases

MOST = 1e-4


def error(binary, case, samples, scratch):
    """The largest error relative to the range of ONNX Runtime's output."""
    out = Path(scratch) / "out.npz"
    data = ["--data", case.path(case.test), "--samples", samples, *case.preprocess_args()]
    cases.narrowbit(binary, "run", case.model_path, *data, "-o", out)
    saved = np.load(out)
    session = cases.session(case.model_path)
    feeds = case.inputs(cases.input_names(session), 0, samples)
    worst = 0.0
    for info, expected in zip(session.get_outputs(), session.run(None, feeds)):
        ours = saved[info.name]
        if ours.shape != expected.shape:
            raise SystemExit(f"{case.name}: {info.name} is {ours.shape}, ONNX Runtime's {expected.shape}")
        worst = max(worst, float(np.abs(ours - expected).max() / np.ptp(expected)))
    return worst


def main(binary, shared, samples=4):
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases.shared_cases(shared):
            worst = error(binary, case, int(samples), scratch)
            bad += not worst <= MOST
            print(f"{case.name:28} {worst:.1e} of the range{'' if worst <= MOST else '  TOO MUCH'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main(*sys.argv[1:])
