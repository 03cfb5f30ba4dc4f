"""What the Python helpers share: models with their data, and samples as a model takes them."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Case:
    """A model with its calibration and test data; paths lie in `folder`."""

    name: str
    folder: Path
    model: str = "model.onnx"
    calib: str = "calib.npz"
    test: str = "test.npz"
    pair: str | None = None
    labels: str | None = None
    samples: int | None = None
    hard: bool = False

    def path(self, file):
        return self.folder / file

    @property
    def model_path(self):
        return self.path(self.model)

    @property
    def about(self):
        return json.loads(self.path("case.json").read_text())

    @property
    def metric(self):
        return self.about["metric"]

    @property
    def float_figure(self):
        """The float model's metric as the case states it, measured with ONNX Runtime."""
        figure = self.about["float"]
        return figure[self.metric] if isinstance(figure, dict) else figure

    def preprocess_args(self):
        """The flags that turn the case's images into inputs."""
        return ["--preprocess", str(self.path("case.json"))] if self.about.get("preprocess") else []

    def calib_args(self):
        return ["--data", str(self.path(self.calib)), *self.preprocess_args()]

    def test_args(self):
        limit = ["--samples", str(self.samples)] if self.samples else []
        return ["--data", str(self.path(self.test)), *limit, *self.preprocess_args()]

    def eval_args(self):
        """The arguments of `eval` after the model."""
        args = [*self.test_args(), "--metric", self.metric]
        if self.pair:
            args += ["--pair", str(self.path(self.pair))]
        if self.labels:
            args += ["--labels", str(self.path(self.labels))]
        return args

    def inputs(self, names, start=0, stop=None, file=None):
        """The first test samples as the model's inputs, `names` in its order."""
        data = np.load(self.path(file or self.test))
        if "images" in data:
            return {names[0]: prepare(data["images"][start:stop], self.about["preprocess"])}
        if len(names) == 1 and names[0] not in data:
            (only,) = [k for k in data.files if k not in ("labels", "masks")]
            return {names[0]: data[only][start:stop]}
        return {name: data[name][start:stop] for name in names}


def shared_cases(root):
    """The models of the folder `shared`; `hard` ones are known to need more than the defaults."""
    models = Path(root) / "models"
    return [
        Case("cifar10-resnet20", models / "cifar10-resnet20"),
        Case("cifar10-resnet20-bn", models / "cifar10-resnet20", model="model_bn.onnx"),
        Case("mlperf-tiny-ic", models / "mlperf-tiny-ic"),
        Case("mlperf-tiny-kws", models / "mlperf-tiny-kws"),
        Case("unet-camvid", models / "unet-camvid", calib="data.h5"),
        Case("fashion-mnist-vit", models / "fashion-mnist-vit"),
        Case("minilm-sts", models / "minilm-sts", test="test_a.npz", pair="test_b.npz", labels="scores.npy"),
        Case("fashion-mnist-vit-outliers", models / "fashion-mnist-vit", model="model_outliers.onnx", samples=2000, hard=True),
    ]


def example_cases(root):
    """The networks of the folder `examples`."""
    return [Case(name, Path(root) / "examples" / name) for name in ("digits-cnn", "digits-vit", "diabetes-mlp")]


def prepare(images, p):
    """uint8 NHWC images as a model takes them: y = (x·scale + offset − mean) / std."""
    x = images.astype(np.float32) * np.float32(p.get("scale", 1)) + np.float32(p.get("offset", 0))
    x = (x - np.float32(p.get("mean", 0))) / np.float32(p.get("std", 1))
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if p.get("layout", "NCHW") == "NCHW" else x, np.float32)


def session(path, optimize=True, threads=0, save=None):
    """An ONNX Runtime session on the CPU; `save` is where its optimized model goes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if save:
        # The extended level is the last whose operators do not depend on the processor.
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(save)
    source = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def input_names(session):
    return [i.name for i in session.get_inputs()]


def narrowbit(binary, *args, check=True, env=None):
    """Runs the command with `--json` and returns what it printed, or None where it failed and `check` is off."""
    command = [str(binary), *map(str, args), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode not in (0, 1) or (check and done.returncode):
        print(f"$ {' '.join(command)}\nexit code {done.returncode}\n{done.stderr}", file=sys.stderr)
        if check:
            raise SystemExit(1)
        return None
    return json.loads(done.stdout)


def sqnr_db(reference, other):
    """The signal-to-quantization-noise ratio in decibels."""
    reference = np.asarray(reference, np.float64)
    noise = ((reference - np.asarray(other, np.float64)) ** 2).sum()
    return float("inf") if noise == 0 else float(10 * np.log10((reference**2).sum() / noise))
