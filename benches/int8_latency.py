"""Latency of quantized models beside the peers' quantized models, in turns.

    python int8_latency.py BINARY [MODELS_DIR] [--models vitb16 …] [--threads 2 1] [--rounds 5] [--seconds 3]
                           [--quantized DIR] [--peers ort ort-dynamic openvino openvino-float]

MODELS_DIR defaults to $NARROWBIT_BENCH/models. DIR (default: `quantized` beside MODELS_DIR) receives the quantized models
that are not there yet: ours, which ONNX Runtime runs too (`ort`: the same work on both sides), ONNX Runtime's dynamic
ones and NNCF's. `openvino-float` runs the float model at OpenVINO's own choice of precision (bf16 where the processor
has it). The table has the median of the rounds' ratios (ours / peer; below 1 is faster), the last column that to the
fastest peer of each round.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import measure

TRANSFORMERS = {"vitb16", "minilm", "dinov2_518"}
# Engine, and the file that it runs: {q} is DIR, {m} MODELS_DIR.
PEERS = {
    "ort": ("ort", "{q}/{name}.narrowbit.onnx"),
    "ort-dynamic": ("ort", "{q}/{name}.dynamic.onnx"),
    "openvino": ("openvino", "{q}/{name}.nncf.xml"),
    "openvino-float": ("openvino", "{m}/{name}.onnx"),
}


def make(args, common, name):
    """Quantizes a model with each side's defaults where the result is not there yet. Speed does not depend on ranges,
    so four samples do."""
    source = args.models_dir / f"{name}.onnx"
    ours = args.quantized / f"{name}.narrowbit.onnx"
    if not ours.exists():
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch) / "samples.npz"
            measure.save_samples(measure.CalibrationFeeds(common, name, 4), data)
            measure.run([args.binary, "quantize", source, "--data", data, "-o", ours, "--measure=no", "--quiet"])
    scripts = measure.peers_folder()
    dynamic = args.quantized / f"{name}.dynamic.onnx"
    if "ort-dynamic" in args.peers and not dynamic.exists():
        measure.run([sys.executable, scripts / "q_ort.py", "dyn", source, dynamic, name])
    nncf = args.quantized / f"{name}.nncf.xml"
    if "openvino" in args.peers and not nncf.exists():
        mode = "int8tr" if name in TRANSFORMERS else "int8"
        measure.run([sys.executable, scripts / "q_nncf.py", mode, source, nncf, name, "--n", 4])


def compare(args, common, name, threads, data):
    """One row of the table."""
    ours = args.quantized / f"{name}.narrowbit.onnx"
    rounds = []
    with measure.Load(common) as load:
        for _ in range(args.rounds):
            mine = measure.our_latency(args.binary, ours, data, threads, args.seconds)
            theirs = []
            for peer in args.peers:
                engine, path = PEERS[peer]
                path = path.format(q=args.quantized, m=args.models_dir, name=name)
                theirs.append(measure.engine_latency(engine, path, data, threads, args.seconds))
            rounds.append((mine, theirs))
    ratios = [measure.median([mine[0] / theirs[i][0] for mine, theirs in rounds]) for i in range(len(args.peers))]
    best = measure.median([mine[0] / min(t[0] for t in theirs) for mine, theirs in rounds])
    print(f"{name}, {threads} threads: {best:.2f}", file=sys.stderr, flush=True)
    time = f"{measure.median([r[0][0] for r in rounds]):.2f} ({min(r[0][1] for r in rounds):.2f})"
    memory = f"{measure.median([r[0][2] for r in rounds]):.0f}"
    return [name, threads, time, memory, *(f"{r:.2f}" for r in ratios), f"{best:.2f}", f"{load.cores:.2f}"]


def main():
    parser = measure.arguments("int8 latency beside the peers.")
    all_models = ["vitb16", "dinov2_518", "resnet50", "minilm", "unet512", "mobilenetv2"]
    parser.add_argument("--models", nargs="+", default=all_models)
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each measurement")
    measure.quantized_folder(parser)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    args = measure.parse(parser)
    common = measure.peers_common(args.models_dir)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            make(args, common, name)
            data = Path(scratch) / f"{name}.npz"
            np.savez(data, **common.test_feed(name))
            rows += [compare(args, common, name, threads, data) for threads in args.threads]
    header = ["model", "threads", "ours ms (min)", "ours MB", *(f"/ {p}" for p in args.peers), "/ best", "others' cores"]
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
