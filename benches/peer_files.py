"""Networks that other tools have quantized: our time on their files beside our own file's, and their engine's results.

    python peer_files.py BINARY [MODELS_DIR] [--models minilm vitb16] [--forms qdq qoperator dynamic nncf] [--threads 2]
                         [--rounds 3] [--seconds 2] [--quantized DIR] [--base BINARY] [--make] [--no-time] [--no-results]

MODELS_DIR defaults to $NARROWBIT_BENCH/models. DIR (default: `quantized` beside MODELS_DIR) receives the files that are not
there yet: ONNX Runtime's `quantize_static` in both formats and `quantize_dynamic`, NNCF's quantization of the ONNX model,
and ours. `--make` only makes them. Each row says:

- `/ own`: our time on the file over our time on our own int8 file, in turns, the median of the rounds' ratios;
- `/ base`: our time over that of another build of narrowbit on the same file (`--base`);
- `interp`, `plain`, `opt`: the largest difference from our interpreter, and from ONNX Runtime without and with its
  optimizations, over the largest magnitude of ONNX Runtime's output.

All files run one sample of the peers' `common`; static ones were calibrated with four others, as speed does not depend on
ranges.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import int8_latency
import measure

FORMS = ["qdq", "qoperator", "dynamic", "nncf"]
SAMPLES = 4


def reader(common, name):
    """Calibration samples as ONNX Runtime reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter(common.calib_feeds(name, SAMPLES))

        def get_next(self):
            return next(self.feeds, None)

    return Reader()


def static(common, name, source, path, form):
    """`quantize_static` with its own defaults for the format, behind the preparation that its guide asks for."""
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    formats = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(source, prepared)
        quantize_static(prepared, path, reader(common, name), quant_format=formats[form])


def nncf_file(common, name, source, path):
    """NNCF's quantization of the ONNX model itself."""
    import nncf
    import onnx

    kind = nncf.ModelType.TRANSFORMER if name in int8_latency.TRANSFORMERS else None
    feeds = common.calib_feeds(name, SAMPLES)
    made = nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds), model_type=kind)
    onnx.save(made, path)


def make_one(args, common, name, form):
    """Makes a file where it is not there yet, complete or not at all."""
    path = args.quantized / f"{name}.{form}.onnx"
    if path.exists():
        return
    print(f"making {path.name}", file=sys.stderr, flush=True)
    source, partial = args.models_dir / f"{name}.onnx", path.with_suffix(".partial")
    if form == "dynamic":
        measure.run([sys.executable, measure.peers_folder() / "q_ort.py", "dyn", source, partial, name])
    elif form == "nncf":
        nncf_file(common, name, source, partial)
    else:
        static(common, name, source, partial, form)
    partial.rename(path)


def theirs(path, feeds, optimize):
    """ONNX Runtime's outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


def ours(args, path, data, interpret):
    """Our outputs."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.npz"
        flags = ["--interpret"] if interpret else []
        measure.run([args.binary, "run", path, "--data", data, "-o", out, "--quiet", *flags])
        return dict(np.load(out))


def deviation(got, want):
    """The largest difference over the largest magnitude, of the output that is worst."""
    worst = 0.0
    for name, w in want.items():
        scale = float(np.abs(w).max()) or 1.0
        worst = max(worst, float(np.abs(got[name].reshape(w.shape).astype(np.float64) - w).max()) / scale)
    return worst


def agreement(args, path, data):
    """How far our outputs are from the interpreter's, and from ONNX Runtime's without and with its optimizations."""
    feeds, run = dict(np.load(data)), ours(args, path, data, False)
    wanted = [ours(args, path, data, True), theirs(path, feeds, False), theirs(path, feeds, True)]
    return [f"{deviation(run, want):.4f}" for want in wanted]


def times(args, name, path, data):
    """Our time on a file over that on our own file, and over another build's time on the same file."""
    own, rounds = args.quantized / f"{name}.narrowbit.onnx", []
    for _ in range(args.rounds):
        measured = [measure.our_latency(args.binary, p, data, args.threads, args.seconds)[0] for p in (path, own)]
        if args.base:
            measured.append(measure.our_latency(args.base, path, data, args.threads, args.seconds)[0])
        rounds.append(measured)
    over = range(1, 3 if args.base else 2)
    return [f"{measure.median([r[0] / r[i] for r in rounds]):.2f}" for i in over] + ([] if args.base else ["-"])


def main():
    parser = measure.arguments("Other tools' quantized files.")
    parser.add_argument("--models", nargs="+", default=["minilm", "vitb16", "resnet50", "mobilenetv2"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement")
    measure.quantized_folder(parser)
    parser.add_argument("--base", type=Path, help="another build to measure against")
    parser.add_argument("--make", action="store_true", help="only make the files")
    parser.add_argument("--no-time", action="store_true", help="only compare results")
    parser.add_argument("--no-results", action="store_true", help="only measure time")
    args = measure.parse(parser)
    args.peers = []
    common = measure.peers_common(args.models_dir)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            if not args.make:
                int8_latency.make(args, common, name)
                data = Path(scratch) / f"{name}.npz"
                np.savez(data, **common.test_feed(name))
            for form in args.forms:
                make_one(args, common, name, form)
                if args.make:
                    continue
                path = args.quantized / f"{name}.{form}.onnx"
                timed = ["-", "-"] if args.no_time else times(args, name, path, data)
                results = ["-"] * 3 if args.no_results else agreement(args, path, data)
                rows.append([name, form, *timed, *results])
                print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(measure.table(["model", "file", "/ own", "/ base", "interp", "plain", "opt"], rows))


if __name__ == "__main__":
    main()
