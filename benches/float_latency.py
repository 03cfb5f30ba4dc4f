"""Latency of float models beside ONNX Runtime fp32, in turns: peer, ours, peer, ours …

    python float_latency.py BINARY [MODELS_DIR] [--models vitb16 resnet50 …] [--threads 2 1] [--rounds 5] [--seconds 3]

MODELS_DIR defaults to $NARROWBIT_BENCH/models. Each round gives a median of each side; the table shows the
medians over the rounds and the median of the rounds' ratios (ours / ONNX Runtime; below 1 is faster).
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import measure

def compare(args, common, model, threads, data):
    """One row of the table."""
    path = args.models_dir / f"{model}.onnx"
    rounds = []
    with measure.Load(common) as load:
        for _ in range(args.rounds):
            theirs = measure.engine_latency("ort", path, data, threads, args.seconds)
            rounds.append((theirs, measure.our_latency(args.binary, path, data, threads, args.seconds)))
    ratio = measure.median([mine[0] / theirs[0] for theirs, mine in rounds])
    column = lambda side, field: measure.median([r[side][field] for r in rounds])
    print(f"{model}, {threads} threads: {ratio:.2f}", file=sys.stderr, flush=True)
    times = [f"{column(side, 0):.2f} ({column(side, 1):.2f})" for side in (1, 0)]
    memory = [f"{column(side, 2):.0f}" for side in (1, 0)]
    return [model, threads, *times, f"{ratio:.2f}", *memory, f"{load.cores:.2f}"]


def main():
    parser = argparse.ArgumentParser(description="Float latency beside ONNX Runtime fp32.")
    parser.add_argument("binary", type=Path, help="the narrowbit command (a release build)")
    default = Path(os.environ.get("NARROWBIT_BENCH", "bench-work")) / "models"
    parser.add_argument("models_dir", type=Path, nargs="?", default=default)
    all_models = ["vitb16", "resnet50", "mobilenetv2", "minilm", "unet512", "dinov2_518"]
    parser.add_argument("--models", nargs="+", default=all_models)
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each measurement")
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    common = measure.peers_common(args.models_dir)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            data = Path(scratch) / f"{model}.npz"
            np.savez(data, **common.test_feed(model))
            rows += [compare(args, common, model, threads, data) for threads in args.threads]
    header = ["model", "threads", "ours ms (min)", "ORT ms (min)", "ours/ORT", "ours MB", "ORT MB", "others' cores"]
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
