"""Times the whole job, float ONNX in and int8 ONNX out, beside ONNX Runtime's quantize_static.

    python quantize_job.py BINARY [MODELS_DIR] [--models resnet50 vitb16] [--methods minmax entropy percentile]
                           [--samples 100] [--histogram-samples 32] [--types u8s8 s8s8] [--repeat 1] [--many 0]

Both sides get the same samples and write per-channel int8 weights. ONNX Runtime's side is its pre-processing
(ours sanitizes too) and `quantize_static`, timed by the script q_ort.py: imports and the making of samples do
not count. Ours counts from the start of the process to its end, the check of the written model included.
The sides take turns. `--many 1000` repeats our side with that many samples, for the memory.
"""

import ast
import sys
import tempfile
from pathlib import Path

import measure

HISTOGRAMS = ("entropy", "percentile")


def peer_job(mode, source, target, model, *extra):
    """One run of q_ort.py: seconds of the job alone, and the process's peak memory in MB."""
    script = measure.peers_folder() / "q_ort.py"
    text, _, peak = measure.run([sys.executable, script, mode, source, target, model, *extra])
    return ast.literal_eval(text.strip().splitlines()[-1])["job_s"], peak


def our_job(args, model, data, method, types, target):
    """One run of our command: wall seconds and peak memory in MB."""
    activations = "uint8" if types == "u8s8" else "int8"
    source = Path(args.models_dir) / f"{model}.onnx"
    command = [args.binary, "quantize", source, "--data", data, "--method", method]
    # The peer does not time its result.
    command += ["--activations", activations, "-o", target, "--quiet"]
    command += ["--no-check"] if args.no_check else []
    _, seconds, peak = measure.run(command)
    return seconds, peak


def compare(args, common, folder, model, method, types):
    """One row: both sides in turns, with medians of the ratios."""
    count = args.histogram_samples if method in HISTOGRAMS else args.samples
    data = folder / f"{model}-{count}.npz"
    if not data.exists():
        measure.save_samples(measure.CalibrationFeeds(common, model, count), data)
    source = Path(args.models_dir) / f"{model}.onnx"
    runs = []
    with measure.Load(common) as load:
        for _ in range(args.repeat):
            ours, our_peak = our_job(args, model, data, method, types, folder / "ours.onnx")
            pre, pre_peak = peer_job("pre", source, folder / "pre.onnx", model)
            extra = ["--n", count, "--calib", method]
            job, job_peak = peer_job(types, folder / "pre.onnx", folder / "ort.onnx", model, *extra)
            runs.append((ours, our_peak, pre + job, max(pre_peak, job_peak)))
            print(f"{model} {method} {types}: ours {runs[-1][0]:.1f} s, ONNX Runtime {runs[-1][2]:.1f} s", file=sys.stderr)
    ours, our_peak, theirs, their_peak = (measure.median(column) for column in zip(*runs))
    speed = measure.median([r[2] / r[0] for r in runs])
    memory = measure.median([r[1] / r[3] for r in runs])
    cells = [f"{ours:.1f}", f"{theirs:.1f}", f"{speed:.1f}×", f"{our_peak:.0f}", f"{their_peak:.0f}", f"{memory:.2f}×"]
    return [model, method, types, count, *cells, f"{load.cores:.2f}"]


def many(args, common, folder, model, method):
    """Our side with many samples: the peak memory is to be that of few."""
    data = folder / f"{model}-many.npz"
    if not data.exists():
        measure.save_samples(measure.CalibrationFeeds(common, model, args.many), data)
    seconds, peak = our_job(args, model, data, method, "u8s8", folder / "ours.onnx")
    return [model, method, "u8s8", args.many, f"{seconds:.1f}", "", "", f"{peak:.0f}", "", "", ""]


def main():
    parser = measure.arguments("The quantization job beside ONNX Runtime's.")
    parser.add_argument("--models", nargs="+", default=["resnet50", "vitb16"])
    parser.add_argument("--methods", nargs="+", default=["minmax", *HISTOGRAMS])
    parser.add_argument("--types", nargs="+", default=["u8s8"], choices=["u8s8", "s8s8"])
    parser.add_argument("--samples", type=int, default=100, help="for minmax")
    parser.add_argument("--histogram-samples", type=int, default=32, help="for entropy and percentile")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--many", type=int, default=0, metavar="N", help="repeat our side with N samples")
    parser.add_argument("--no-check", action="store_true", help="leave out our run of the written model")
    args = measure.parse(parser)
    common = measure.peers_common(args.models_dir)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for model in args.models:
            for method in args.methods:
                rows += [compare(args, common, folder, model, method, types) for types in args.types]
            if args.many:
                rows += [many(args, common, folder, model, method) for method in args.methods]
                (folder / f"{model}-many.npz").unlink()
    header = ["model", "method", "types", "samples", "ours s", "ORT s", "faster", "ours MB", "ORT MB", "memory", "others' cores"]
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
