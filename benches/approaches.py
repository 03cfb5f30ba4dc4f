"""Dynamic int8 and int4 weight-only models beside ONNX Runtime's own, in turns: the job and the latency.

    python approaches.py BINARY [MODELS_DIR] [--models vitb16 …] [--approaches dynamic int4] [--threads 2] [--batches 1]
                         [--rounds 3] [--seconds 3]

Each side quantizes the model with its own command (`quantize_dynamic` per channel, MatMulNBits of blocks of 32 with
accuracy level 4; ours with `--approach dynamic`, `--approach weight-only --weights int4 --format matmulnbits`) and runs its
own file. Seconds and memory of the job are of whole processes on our side and of the job alone on theirs, whose imports
do not count. The table has the medians of the rounds' ratios: theirs / ours, above 1 is faster, or less.
"""

import ast
import sys
import tempfile
from pathlib import Path

import numpy as np

import measure

OURS = {
    "dynamic": ["--approach", "dynamic"],
    "int4": ["--approach", "weight-only", "--weights", "int4", "--format", "matmulnbits"],
}
THEIRS = {"dynamic": "dyn", "int4": "rtn4"}


def peer_job(mode, source, target, name):
    """Seconds of ONNX Runtime's job, and the peak memory of its process in MB."""
    script = measure.peers_folder() / "q_ort.py"
    text, _, peak = measure.run([sys.executable, script, mode, source, target, name])
    return ast.literal_eval(text.strip().splitlines()[-1])["job_s"], peak


def job(args, name, approach, folder):
    """Quantizes a model with both sides in turns: medians of theirs / ours for seconds and memory."""
    source = args.models_dir / f"{name}.onnx"
    speed, memory = [], []
    for _ in range(args.rounds):
        command = [args.binary, "quantize", source, *OURS[approach], "--measure=no", "--quiet"]
        _, seconds, peak = measure.run([*command, "-o", folder / "ours.onnx"])
        their_seconds, their_peak = peer_job(THEIRS[approach], source, folder / "theirs.onnx", name)
        speed.append(their_seconds / seconds)
        memory.append(their_peak / peak)
    return [f"{measure.median(speed):.1f}", f"{measure.median(memory):.1f}"]


def latency(args, common, name, folder, threads, batch):
    """Runs each side's file in turns: our median milliseconds, and the median of theirs / ours."""
    feed = common.test_feed(name)
    data = folder / f"{batch}.npz"
    np.savez(data, **{k: np.concatenate([v] * batch) for k, v in feed.items()})
    ratios, ours = [], []
    for _ in range(args.rounds):
        mine = measure.our_latency(args.binary, folder / "ours.onnx", data, threads, args.seconds, batch)
        theirs = measure.engine_latency("ort", folder / "theirs.onnx", data, threads, args.seconds)
        ours.append(mine[0])
        ratios.append(theirs[0] / mine[0])
    return [f"{measure.median(ours):.2f}", f"{measure.median(ratios):.2f}"]


def main():
    parser = measure.arguments("Dynamic and weight-only models beside ONNX Runtime.")
    parser.add_argument("--models", nargs="+", default=["vitb16", "minilm", "dinov2_518"])
    parser.add_argument("--approaches", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="the models must have free batches above 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each measurement")
    args = measure.parse(parser)
    common = measure.peers_common(args.models_dir)
    rows = []
    for name in args.models:
        for approach in args.approaches:
            with tempfile.TemporaryDirectory() as scratch, measure.Load(common) as load:
                folder = Path(scratch)
                made = job(args, name, approach, folder)
                for threads in args.threads:
                    for batch in args.batches:
                        ran = latency(args, common, name, folder, threads, batch)
                        rows.append([name, approach, *made, threads, batch, *ran])
                        print(*rows[-1], file=sys.stderr, flush=True)
            rows[-1].append(f"{load.cores:.2f}")
    header = ["model", "approach", "job: faster", "less memory", "threads", "batch", "ours ms", "faster", "others' cores"]
    print(measure.table(header, [row + [""] * (len(header) - len(row)) for row in rows]))


if __name__ == "__main__":
    main()
