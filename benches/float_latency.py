"""Latency of float models beside a peer, in turns: peer, ours, peer, ours …

    python float_latency.py BINARY [MODELS_DIR] [--models vitb16 resnet50 …] [--threads 2 1] [--rounds 5] [--seconds 3]
                            [--peer ort|openvino] [--float f32|bf16]

MODELS_DIR defaults to $NARROWBIT_BENCH/models. Each round gives a median of each side; the table shows the
medians over the rounds and the median of the rounds' ratios (ours / peer; below 1 is faster). The peer is ONNX Runtime in
fp32, or OpenVINO at its own choice of precision, which is bfloat16 where the processor multiplies it: `--peer openvino
--float bf16` holds like against like.
"""

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
            theirs = measure.engine_latency(args.peer, path, data, threads, args.seconds)
            mine = measure.our_latency(args.binary, path, data, threads, args.seconds, float_type=args.float)
            rounds.append((theirs, mine))
    ratio = measure.median([mine[0] / theirs[0] for theirs, mine in rounds])
    column = lambda side, field: measure.median([r[side][field] for r in rounds])
    print(f"{model}, {threads} threads: {ratio:.2f}", file=sys.stderr, flush=True)
    times = [f"{column(side, 0):.2f} ({column(side, 1):.2f})" for side in (1, 0)]
    memory = [f"{column(side, 2):.0f}" for side in (1, 0)]
    return [model, threads, *times, f"{ratio:.2f}", *memory, f"{load.cores:.2f}"]


def main():
    parser = measure.arguments("Float latency beside a peer.")
    all_models = ["vitb16", "resnet50", "mobilenetv2", "minilm", "unet512", "dinov2_518"]
    parser.add_argument("--models", nargs="+", default=all_models)
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each measurement")
    parser.add_argument("--peer", choices=["ort", "openvino"], default="ort")
    parser.add_argument("--float", choices=["f32", "bf16"], default="f32", help="how we multiply floats")
    args = measure.parse(parser)
    common = measure.peers_common(args.models_dir)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            data = Path(scratch) / f"{model}.npz"
            np.savez(data, **common.test_feed(model))
            rows += [compare(args, common, model, threads, data) for threads in args.threads]
    peer = args.peer
    header = ["model", "threads", "ours ms (min)", f"{peer} ms (min)", f"ours/{peer}", "ours MB", f"{peer} MB"]
    header.append("others' cores")
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
