"""Runs the shared models on every instruction set and on 1, 2 and 4 threads, and compares the outputs' bytes.

    python shared_identity.py BINARY [--shared DIR] [--only NAME…] [--forms int8 dynamic float nncf] [--samples 8]
                              [--tiers vnni avx512 avx-vnni avx2 scalar] [--metric]

`int8` is the model quantized with the default settings, `dynamic` with ranges that are found at run time, `nncf` what NNCF
makes of it (where Python has NNCF and the samples are an .npz), `float` the model as it is. Outputs must be the same bytes on
all tiers and any number of threads; `--most` allows other tiers a difference, as a share of the largest output. `--metric`
also holds the metric of the first samples against that of the reference interpreter. Exit code 1 when one of these does not hold.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import cases
from cases import narrowbit

THREADS = [1, 2, 4]
# Flags of `quantize` for each form that we make ourselves.
FORMS = {"int8": [], "dynamic": ["--approach", "dynamic"]}
# Samples that NNCF calibrates with: the bytes do not depend on ranges.
NNCF_SAMPLES = 8


def outputs(binary, case, model, tier, threads, samples, folder):
    """The bytes of all outputs, and the outputs."""
    saved = folder / f"{tier}-{threads}.npz"
    data = ["--data", case.path(case.test), "--samples", samples, *case.preprocess_args()]
    environment = {**os.environ, **({"NARROWBIT_ISA": tier} if tier else {})}
    done = narrowbit(binary, "run", model, *data, "--threads", threads, "-o", saved, check=False, env=environment)
    if done is None:
        return None
    arrays = np.load(saved)
    return {name: arrays[name] for name in arrays.files}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def difference(a, b):
    """The largest difference as a share of the largest output."""
    return max(float(np.abs(a[k].astype(float) - b[k]).max() / max(np.abs(b[k]).max(), 1e-9)) for k in b)


def nncf_file(case, path):
    """NNCF's quantization of the model; false where it can't be made."""
    try:
        import nncf
        import onnx
    except ImportError:
        return False
    if not case.calib.endswith(".npz"):
        return False
    model = onnx.load(case.model_path)
    feeds = case.inputs([i.name for i in model.graph.input], 0, NNCF_SAMPLES, case.calib)
    samples = [{k: v[i : i + 1] for k, v in feeds.items()} for i in range(NNCF_SAMPLES)]
    kind = nncf.ModelType.TRANSFORMER if any(n.op_type == "Softmax" for n in model.graph.node) else None
    onnx.save(nncf.quantize(model, nncf.Dataset(samples), subset_size=NNCF_SAMPLES, model_type=kind), path)
    return True


def model_of(binary, case, form, folder):
    """The file of a form, or what kept it from being made."""
    if form == "float":
        return case.model_path, None
    path = folder / f"{case.name}.{form}.onnx"
    if form == "nncf":
        return (path, None) if nncf_file(case, path) else (None, "skipped: no NNCF, or no .npz to calibrate with")
    flags = [*case.calib_args(), "--no-check", *FORMS[form]]
    if narrowbit(binary, "quantize", case.model_path, *flags, "-o", path, check=False) is not None:
        return path, None
    # Every model has an int8 form; convolutions alone have no dynamic one.
    return None, None if form == "int8" else "skipped: the model has no such form"


def measure(binary, case, form, args, folder):
    wrong, tiers = [], []
    model, skipped = model_of(binary, case, form, folder)
    if model is None:
        return ([], skipped) if skipped else (["quantize failed"], "")
    first = None
    for tier in args.tiers:
        runs = [outputs(binary, case, model, tier, n, args.samples, folder) for n in THREADS]
        if runs[0] is None:
            tiers.append(f"{tier} -")
            continue
        for n, run in zip(THREADS, runs):
            if run is None or not same(run, runs[0]):
                wrong.append(f"{tier}: {n} threads give other bytes than 1")
        first = first or runs[0]
        if same(runs[0], first):
            tiers.append(f"{tier} same bytes")
            continue
        share = difference(runs[0], first)
        tiers.append(f"{tier} {share:.1e}")
        # Not `share > most`: NaN and zeros of another sign are other bytes, too.
        if args.most == 0 or not share <= args.most:
            wrong.append(f"{tier}: differs from the first tier by {share:.1e} of the largest output")
    if args.metric:
        limit = ["--samples", args.samples * 8] if not case.pair else []
        flags = [a for a in case.eval_args() if not case.samples or a not in ("--samples", str(case.samples))]
        scores = [
            narrowbit(binary, "eval", model, *flags, *limit, *more, check=False) for more in ([], ["--interpret"])
        ]
        values = [s and s["scores"][0]["value"] for s in scores]
        tiers.append(f"metric {values[0]} / {values[1]}")
        if None in values or abs(values[0] - values[1]) > 1e-9:
            wrong.append(f"the metric is {values[0]}, the interpreter's {values[1]}")
    return wrong, ", ".join(tiers)


def main():
    parser = argparse.ArgumentParser(description="The same outputs on every instruction set and number of threads.")
    parser.add_argument("binary", type=Path, help="the narrowbit command")
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=os.environ.get("NARROWBIT_SHARED", beside))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only the cases whose name contains one of these")
    parser.add_argument("--forms", nargs="+", choices=[*FORMS, "float", "nncf"], default=["int8"])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tiers", nargs="+", default=["vnni", "avx512", "avx-vnni", "avx2", "scalar"])
    parser.add_argument("--most", type=float, default=0.0)
    parser.add_argument("--metric", action="store_true", help="also hold the metric against the interpreter's")
    args = parser.parse_args()
    failed = False
    for case in cases.shared_cases(args.shared):
        if args.only and not any(part in case.name for part in args.only):
            continue
        for form in args.forms:
            with tempfile.TemporaryDirectory() as folder:
                wrong, text = measure(args.binary, case, form, args, Path(folder))
            print(f"{case.name} {form}: {text}", flush=True)
            for line in wrong:
                print(f"  WRONG {line}", flush=True)
            failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
