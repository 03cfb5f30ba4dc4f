"""What the benchmark scripts share: children with their time and peak memory, samples, and the machine's load."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Huge pages for the peers' allocators: without them the comparison flatters us on virtual machines.
HUGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
    "TBB_MALLOC_USE_HUGE_PAGES": "1",
}


def peers_folder():
    """The folder with the peers' scripts: `bench` in NARROWBIT_SHARED, else in `shared` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("NARROWBIT_SHARED", beside)) / "bench"
    if not (folder / "q_ort.py").exists():
        sys.exit(f"{folder}: the peers' scripts are not there; set NARROWBIT_SHARED")
    return folder


def peers_common(models_dir):
    """The peers' module `common`, with the models of `models_dir`."""
    if Path(models_dir).name != "models":
        sys.exit(f"{models_dir}: the folder must be called models, as mkmodels.py makes it")
    os.environ["NARROWBIT_BENCH"] = str(Path(models_dir).resolve().parent)
    sys.path.insert(0, str(peers_folder()))
    import common

    return common


def arguments(description):
    """A parser of what all scripts take: the command, and the folder of the peers' models."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("binary", type=lambda p: Path(p).resolve(), help="the narrowbit command (a release build)")
    default = Path(os.environ.get("NARROWBIT_BENCH", "bench-work")) / "models"
    parser.add_argument("models_dir", type=Path, nargs="?", default=default, help="the folder that mkmodels.py filled")
    return parser


def quantized_folder(parser):
    """Adds the folder of quantized models, beside the models unless it is given."""
    parser.add_argument("--quantized", type=Path, metavar="DIR", help="folder of the quantized models")


def parse(parser):
    """The arguments, with the folder of quantized models made."""
    args = parser.parse_args()
    if hasattr(args, "quantized"):
        args.quantized = args.quantized or args.models_dir.resolve().parent / "quantized"
        args.quantized.mkdir(exist_ok=True)
    return args


def run(command, env=None):
    """Runs a child to its end: its output, wall seconds, and peak resident memory in MB."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        child = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode()
        if child.returncode:
            err.seek(0)
            said = err.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, command))}\nexit code {child.returncode}\n{said}")
    return text, seconds, usage.ru_maxrss / 1024


def save_samples(feeds, path):
    """Samples of batch 1 as an .npz with one array per input, written one sample at a time."""
    import zipfile

    first = feeds(0)
    count = len(feeds)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in first.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *array.shape[1:])})
                for i in range(count):
                    file.write(np.ascontiguousarray(feeds(i)[name]).tobytes())


class CalibrationFeeds:
    """The calibration samples of the peers' `common`, made one at a time."""

    def __init__(self, common, model, count):
        self.common, self.model, self.count = common, model, count
        self.image = common.REG[model]["kind"] == "img"

    def __len__(self):
        return self.count

    def __call__(self, i):
        # The same seeds as in `common.calib_feeds`.
        return self.common.feed(self.model, (self.common.CAL0 if self.image else 200) + i)


class Load:
    """Cores that other processes used while a block ran."""

    def __init__(self, common):
        self.busy = common._busy

    def __enter__(self):
        self.begun, self.at = self.busy(), time.perf_counter()
        self.own = sum(os.times()[:4])
        return self

    def __exit__(self, *_):
        own = sum(os.times()[:4]) - self.own
        self.cores = max(0.0, (self.busy() - self.begun - own) / (time.perf_counter() - self.at))


def median(values):
    return float(np.median(values))


def table(header, rows):
    """A table with aligned columns."""
    lines = [header] + [[str(c) for c in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines)


# Engines that run one model in a process of their own, so that allocator and threads are their own too.
# Arguments: model, data, threads, seconds.
_TIMED = """
z = np.load(data); x = {k: z[k] for k in z.files}
for _ in range(3): run(x)
times, begun = [], time.perf_counter()
while len(times) < 5 or (time.perf_counter() - begun < seconds and len(times) < 1000):
    t = time.perf_counter(); run(x); times.append((time.perf_counter() - t) * 1e3)
print(json.dumps({"median": float(np.median(times)), "min": min(times)}))
"""
_BEGIN = """
import sys, time, json, numpy as np
model, data, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
"""
ENGINES = {
    "ort": _BEGIN
    + """
import onnxruntime as ort
o = ort.SessionOptions(); o.intra_op_num_threads = threads; o.inter_op_num_threads = 1; o.log_severity_level = 3
s = ort.InferenceSession(model, o, providers=["CPUExecutionProvider"]); run = lambda x: s.run(None, x)
"""
    + _TIMED,
    "openvino": _BEGIN
    + """
import openvino as ov
options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
r = ov.Core().compile_model(model, "CPU", options).create_infer_request(); run = lambda x: r.infer(x, share_inputs=True)
"""
    + _TIMED,
}


def engine_latency(engine, model, data, threads, seconds):
    """Median and least milliseconds of a run by a peer, and the process's peak memory in MB."""
    text, _, peak = run([sys.executable, "-c", ENGINES[engine], model, data, threads, seconds], HUGE_PAGES)
    result = json.loads(text.strip().splitlines()[-1])
    return result["median"], result["min"], peak


def our_latency(binary, model, data, threads, seconds, batch=1, float_type="f32"):
    """As `engine_latency`, by `narrowbit bench`."""
    command = [binary, "bench", model, "--data", data, "--threads", threads, "--batch", batch, "--float", float_type]
    text, _, peak = run([*command, "--runs", 1000, "--seconds", seconds, "--json", "--quiet"])
    (row,) = json.loads(text)
    return row["median_ms"], row["min_ms"], peak
