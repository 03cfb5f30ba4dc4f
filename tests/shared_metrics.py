"""Measures float and int8 on all test data of the shared models, and compares with their README's figures.

    python shared_metrics.py BINARY [--shared DIR] [--only NAME…] [--ort-metric] [--keep DIR] [--flags="…"] [--most LOSS]

For each model: eval float, quantize with the default settings on its calibration data (or with the flags given, for
instance --flags="--approach dynamic"), eval int8, run the quantized file in ONNX Runtime. Prints a table. Exit code 1 when a float figure differs from the README's by
more than 0.15 points (0.0005 for correlations), int8 loses more than 0.5 points (0.005), or ONNX Runtime can't
run a file. A model that the README calls hard need not keep the limit, if `quantize` warns of it.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import cases
from cases import narrowbit

MOST_LOSS = 0.005
# One image of 1,000 is 0.1 point: rounding may move one that lies on the border.
FLOAT_TOLERANCE = {"top1": 0.0015, "miou": 0.0015, "spearman": 0.0005}


def score(result):
    return result["scores"][0]["value"]


def ranks(x):
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def outputs(session, case, file=None, batch=32):
    names = cases.input_names(session)
    total = len(next(iter(case.inputs(names, file=file).values())))
    total = min(total, case.samples or total)
    parts = [session.run(None, case.inputs(names, i, min(i + batch, total), file))[0] for i in range(0, total, batch)]
    return np.concatenate(parts)


def ort_metric(session, case):
    """The metric of a model run by ONNX Runtime, computed apart from narrowbit's code."""
    y = outputs(session, case)
    if case.metric == "spearman":
        vectors = []
        for file, h in ((case.test, y), (case.pair, outputs(session, case, case.pair))):
            mask = np.load(case.path(file))["attention_mask"][..., None]
            vectors.append((h * mask).sum(1) / mask.sum(1))
        a, b = vectors
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return float(np.corrcoef(ranks(cosine), ranks(np.load(case.path(case.labels))))[0, 1])
    data = np.load(case.path(case.test))
    if case.metric == "top1":
        return float((y.argmax(1) == data["labels"][: len(y)]).mean())
    masks, classes = data["masks"][: len(y)], case.about["classes"]
    counted = masks != case.about["ignore"]
    pairs = masks[counted].astype(int) * classes + y.argmax(1)[counted]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return float((np.diag(confusion) / np.maximum(union, 1)).mean())


def agreement(binary, case, quantized, folder):
    """SQNR in dB of our outputs against ONNX Runtime's of the quantized file, on the first samples."""
    session = cases.session(quantized)
    names = cases.input_names(session)
    expected = session.run(None, case.inputs(names, 0, 8))[0]
    ours = folder / "ours.npz"
    data = ["--data", case.path(case.test), "--samples", 8, *case.preprocess_args()]
    narrowbit(binary, "run", quantized, *data, "--batch", 8, "-o", ours)
    saved = np.load(ours)
    return session, cases.sqnr_db(expected, saved[saved.files[0]])


def measure(binary, case, folder, with_ort_metric, flags, most):
    """One row of the table, and what is wrong with it."""
    row, wrong = {"case": case.name, "metric": case.metric, "readme": case.float_figure}, []
    quantized = folder / f"{case.name}.int8.onnx"
    begun = time.perf_counter()
    float_result = narrowbit(binary, "eval", case.model_path, *case.eval_args(), check=False)
    row["float s"] = time.perf_counter() - begun
    if float_result is None:
        return row, ["eval of the float model failed"]
    row["float"] = score(float_result)
    begun = time.perf_counter()
    summary = narrowbit(binary, "quantize", case.model_path, *case.calib_args(), *flags, "-o", quantized, check=False)
    row["quantize s"] = time.perf_counter() - begun
    if summary is None:
        return row, ["quantize failed"]
    row["integer"] = f"{summary['integer_nodes'] or summary['stored_nodes']}/{summary['nodes']}"
    row["size"] = summary["bytes_after"] / summary["bytes_before"]
    begun = time.perf_counter()
    int8_result = narrowbit(binary, "eval", quantized, *case.eval_args(), check=False)
    row["int8 s"] = time.perf_counter() - begun
    if int8_result is None:
        return row, ["eval of the int8 model failed"]
    row["int8"] = score(int8_result)
    row["loss"] = row["float"] - row["int8"]
    try:
        session, row["ort dB"] = agreement(binary, case, quantized, folder)
        if with_ort_metric:
            row["ort int8"] = ort_metric(session, case)
    except Exception as error:  # Whatever ONNX Runtime raises is the finding.
        wrong.append(f"ONNX Runtime: {str(error).splitlines()[0]}")
    if not case.hard and abs(row["float"] - row["readme"]) > FLOAT_TOLERANCE[case.metric]:
        wrong.append(f"float {row['float']:.4f} is not the README's {row['readme']:.4f}")
    if row["loss"] > most and not (case.hard and summary["warnings"]):
        wrong.append(f"int8 loses {row['loss']:.4f}, more than {most}")
    return row, wrong


FORMATS = {"size": "{:.3f}", "ort dB": "{:.1f}", "float s": "{:.1f}", "quantize s": "{:.1f}", "int8 s": "{:.1f}"}
COLUMNS = ["case", "metric", "readme", "float", "int8", "loss", "ort int8", "ort dB", "integer", "size", "float s", "quantize s", "int8 s"]


def print_table(rows):
    columns = [c for c in COLUMNS if any(c in row for row in rows)]

    def cell(row, column):
        value = row.get(column, "")
        return FORMATS.get(column, "{:.4f}").format(value) if isinstance(value, float) else str(value)

    cells = [columns] + [[cell(row, c) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(description="Float and int8 metrics of the shared models.")
    parser.add_argument("binary", type=Path, help="the narrowbit command (a release build)")
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=os.environ.get("NARROWBIT_SHARED", beside))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only the cases whose name contains one of these")
    parser.add_argument("--ort-metric", action="store_true", help="also measure the int8 file in ONNX Runtime")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the quantized models in this folder")
    parser.add_argument("--flags", default="", help="flags of quantize, besides the calibration data")
    parser.add_argument("--most", type=float, default=MOST_LOSS, help="the loss that is allowed, in parts of 1")
    args = parser.parse_args()
    chosen = [c for c in cases.shared_cases(args.shared) if not args.only or any(o in c.name for o in args.only)]
    rows, problems = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for case in chosen:
            row, wrong = measure(args.binary.resolve(), case, folder, args.ort_metric, args.flags.split(), args.most)
            rows.append(row)
            problems += [f"{case.name}: {w}" for w in wrong]
            print(f"{case.name}: done{'; ' + '; '.join(wrong) if wrong else ''}", file=sys.stderr, flush=True)
    print_table(rows)
    for problem in problems:
        print(f"FAILED  {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
