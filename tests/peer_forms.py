"""Quantizes a model with ONNX Runtime in each form that it writes, and runs the results.

    python peer_forms.py MODEL FOLDER [--compare]

FOLDER holds `inputs.npz`, arrays by input name, which also calibrate. Writes `<form>.onnx` and its outputs
`<form>.npz`, computed without optimizations, and prints the forms as a JSON list. With `--compare`, prints how far
`<form>.ours.npz` of another program is from them, in dB by form.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import cases

U8, S8 = QuantType.QUInt8, QuantType.QInt8


class Once(CalibrationDataReader):
    """All samples as one batch."""

    def __init__(self, feeds):
        self.left = [feeds]

    def get_next(self):
        return self.left.pop() if self.left else None


def static(form, activations, weights, per_channel=False, **options):
    def make(model, out, feeds):
        quantize_static(
            model,
            out,
            Once(feeds),
            quant_format=form,
            per_channel=per_channel,
            activation_type=activations,
            weight_type=weights,
            extra_options=options,
        )

    return make


def dynamic(weights, operators, **options):
    def make(model, out, _):
        quantize_dynamic(model, out, op_types_to_quantize=operators, weight_type=weights, **options)

    return make


PRODUCTS = ["MatMul", "Gemm", "Conv"]
FORMS = {
    "qdq_u8s8": static(QuantFormat.QDQ, U8, S8, per_channel=True),
    "qdq_s8s8_symmetric": static(QuantFormat.QDQ, S8, S8, ActivationSymmetric=True),
    "qdq_u8u8": static(QuantFormat.QDQ, U8, U8),
    "qdq_microsoft": static(QuantFormat.QDQ, U8, S8, UseQDQContribOps=True),
    "qoperator_u8s8": static(QuantFormat.QOperator, U8, S8, per_channel=True),
    "qoperator_u8u8": static(QuantFormat.QOperator, U8, U8),
    "dynamic_s8": dynamic(S8, PRODUCTS, per_channel=True),
    "dynamic_u8": dynamic(U8, PRODUCTS),
    "dynamic_activations": dynamic(S8, PRODUCTS, extra_options={"MatMulConstBOnly": False}),
}


def compare(folder):
    report = {}
    for form in FORMS:
        theirs, ours = np.load(folder / f"{form}.npz"), np.load(folder / f"{form}.ours.npz")
        report[form] = min(cases.sqnr_db(theirs[name], ours[name]) for name in theirs.files)
    print(json.dumps({form: min(sqnr, 1e9) for form, sqnr in report.items()}))


def main(model, folder, *flags):
    folder = Path(folder)
    if flags == ("--compare",):
        compare(folder)
        return
    logging.disable(logging.WARNING)
    feeds = dict(np.load(folder / "inputs.npz"))
    for form, make in FORMS.items():
        made = str(folder / f"{form}.onnx")
        make(model, made, feeds)
        session = cases.session(made, optimize=False)
        np.savez(folder / f"{form}.npz", **dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds))))
    print(json.dumps(list(FORMS)))


if __name__ == "__main__":
    main(*sys.argv[1:])
