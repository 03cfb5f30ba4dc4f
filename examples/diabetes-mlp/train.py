"""Trains a small regression network on scikit-learn's diabetes data.

    pip install -r examples/requirements.txt
    python examples/diabetes-mlp/train.py          (a few seconds)

Ten measurements of a patient in, the progress of the disease after a year out. The network scales
its input and output itself, so that the arrays are the raw ones. Writes model.onnx, calib.npz,
test.npz and case.json beside this script.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402

CALIBRATION, TEST = 60, 140


class DiabetesMlp(nn.Module):
    """[N, 10] raw features to [N, 1] raw target."""

    def __init__(self, features, target):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(features.mean(0)))
        self.register_buffer("std", torch.from_numpy(features.std(0)))
        self.register_buffer("target_mean", torch.tensor(target.mean()))
        self.register_buffer("target_std", torch.tensor(target.std()))
        self.layers = nn.Sequential(
            nn.Linear(10, 64),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 1),
        )

    def forward(self, x):
        return self.layers((x - self.mean) / self.std) * self.target_std + self.target_mean


def main():
    common.set_seeds()
    data = load_diabetes(scaled=False)
    features, target = data.data.astype(np.float32), data.target.astype(np.float32)
    training, calib, test = common.split(features, target, CALIBRATION, TEST, stratify=False)
    spread = float(training[1].std())
    model = common.train(
        DiabetesMlp(*training),
        training[0],
        training[1][:, None],
        lambda found, wanted: nn.functional.mse_loss(found / spread, wanted / spread),
        epochs=80,
        rate=3e-3,
        weight_decay=0.1,
        batch=32,
    )
    for name, (x, y) in {"calib": calib, "test": test}.items():
        np.savez_compressed(HERE / f"{name}.npz", features=x, labels=y[:, None])
    path = common.export(model, test[0][:2], HERE, "features", "target")
    found = common.predict(path, test[0])[:, 0]
    scores = {
        "pearson": float(np.corrcoef(found, test[1])[0, 1]),
        "mse": float(np.mean((found - test[1]) ** 2)),
    }
    common.write_case(HERE, {"input": "features", "preprocess": None, "metric": "pearson", "float": scores})


if __name__ == "__main__":
    main()
