"""The table of PyTorch's dynamic quantization tutorials: latency by batch of a float32, an int8 and a float16 model, torch
beside ours in the same run, and the files' sizes.

    python batch_table.py BINARY [MODELS_DIR] [--model dinov2_518] [--batches 1 2 4 8] [--threads 2] [--runs 3] [--seconds 3]

torch: the same network with the same weights, `quantize_dynamic` of its Linear layers to qint8 and to float16. Ours: the
float model with a free batch, `--approach dynamic` and `--approach float16`. The two take turns, batch by batch. Sizes are of
files: ONNX models, and what `torch.save` makes of the state dict. The last column of the first table is theirs / ours, above 1 is faster.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import measure

FORMATS = {"float32": None, "int8": ["--approach", "dynamic"], "float16": ["--approach", "float16"]}

# Reads a batch a line, answers with its milliseconds. Arguments: model, format, threads, runs.
TORCH = """
import json, io, os, sys, time, warnings; warnings.filterwarnings("ignore")
import numpy as np, torch, common, nets
name, form, threads, runs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads); torch.set_grad_enabled(False)
model = nets.build(name)
types = {"int8": torch.qint8, "float16": torch.float16}
if form in types:
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=types[form])
file = io.BytesIO(); torch.save(model.state_dict(), file)
feed = [torch.from_numpy(v) for v in common.test_feed(name).values()]
print(json.dumps(len(file.getvalue()) / 1e6), flush=True); del file
for line in sys.stdin:
    x, times = [torch.cat([v] * int(line)) for v in feed], []
    model(*x)
    for _ in range(runs):
        t = time.perf_counter(); model(*x); times.append((time.perf_counter() - t) * 1e3)
    print(json.dumps(float(np.median(times))), flush=True)
"""


class Torch:
    """A process that keeps a model of torch."""

    def __init__(self, name, form, threads, runs):
        folder = str(measure.peers_folder())
        env = {**os.environ, **measure.HUGE_PAGES, "PYTHONPATH": folder}
        command = [sys.executable, "-c", TORCH, name, form, str(threads), str(runs)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.megabytes = self.answer()

    def answer(self):
        line = self.child.stdout.readline()
        if not line:
            sys.exit("torch: the process ended; its errors are above")
        return json.loads(line)

    def milliseconds(self, batch):
        self.child.stdin.write(f"{batch}\n")
        self.child.stdin.flush()
        return self.answer()

    def end(self):
        self.child.stdin.close()
        self.child.wait()


def ours(args, folder):
    """Our three models."""
    source = args.models_dir / f"{args.model}_dyn.onnx"
    if not source.exists():
        sys.exit(f"{source}: there is no model with a free batch; see mkmodels.py")
    files = {}
    for form, flags in FORMATS.items():
        files[form] = source
        if flags:
            files[form] = folder / f"{form}.onnx"
            measure.run([args.binary, "quantize", source, *flags, "--measure=no", "--quiet", "-o", files[form]])
    return files


def main():
    parser = measure.arguments("Latency by batch and size on disk beside torch's dynamic quantization.")
    parser.add_argument("--model", default="dinov2_518")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="runs of torch behind one that does not count")
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each of our measurements")
    args = measure.parse(parser)
    common = measure.peers_common(args.models_dir)
    speed, sizes = [], []
    with tempfile.TemporaryDirectory() as scratch, measure.Load(common) as load:
        files = ours(args, Path(scratch))
        feed = common.test_feed(args.model)
        for form in args.formats:
            torch = Torch(args.model, form, args.threads, args.runs)
            sizes.append([form, f"{torch.megabytes:.1f}", f"{files[form].stat().st_size / 1e6:.1f}"])
            for batch in args.batches:
                data = Path(scratch) / "data.npz"
                np.savez(data, **{k: np.concatenate([v] * batch) for k, v in feed.items()})
                theirs = torch.milliseconds(batch)
                mine = measure.our_latency(args.binary, files[form], data, args.threads, args.seconds, batch)[0]
                speed.append([form, batch, f"{theirs:.0f}", f"{mine:.0f}", f"{theirs / mine:.2f}"])
                print(*speed[-1], file=sys.stderr, flush=True)
            torch.end()
    print(f"{args.model} on {args.threads} threads; others' cores {load.cores:.2f} (those of torch's processes included)\n")
    print(measure.table(["format", "batch", "torch ms", "ours ms", "faster"], speed))
    print()
    print(measure.table(["format", "torch MB", "ours MB"], sizes))


if __name__ == "__main__":
    main()
