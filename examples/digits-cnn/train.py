"""Trains a small convolutional network on scikit-learn's handwritten digits.

    pip install -r examples/requirements.txt
    python examples/digits-cnn/train.py          (about one minute on one core)

Residual blocks, an inverted residual with a depthwise convolution, ReLU6 and HardSwish, global
average pooling. BatchNorm stays in the exported graph. Writes model.onnx, calib.npz, test.npz and
case.json beside this script.
"""

import sys
from pathlib import Path

from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402


def conv_bn(inputs, outputs, kernel, stride=1, groups=1):
    """Convolution without bias and its BatchNorm, as [conv, norm]."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU())
        self.conv2 = nn.Sequential(*conv_bn(outputs, outputs, 3))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.conv2(self.conv1(x)) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation, added to the input."""

    def __init__(self, width, ratio, act):
        super().__init__()
        inner = width * ratio
        self.expand = nn.Sequential(*conv_bn(width, inner, 1), act())
        self.depthwise = nn.Sequential(*conv_bn(inner, inner, 3, groups=inner), act())
        self.project = nn.Sequential(*conv_bn(inner, width, 1))

    def forward(self, x):
        return x + self.project(self.depthwise(self.expand(x)))


class DigitsCnn(nn.Module):
    """[N, 1, 8, 8] to [N, 10] logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(1, 32, 3), nn.ReLU())
        self.layer1 = Residual(32, 32)
        self.layer2 = Residual(32, 64, stride=2)
        self.layer3 = InvertedResidual(64, 2, nn.ReLU6)
        self.layer4 = InvertedResidual(64, 2, nn.Hardswish)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.head(self.dropout(self.pool(x).flatten(1)))


def main():
    common.set_seeds()
    training, calib, test = common.digits()
    model = common.train(
        DigitsCnn(),
        common.digits_input(training[0]),
        training[1],
        nn.CrossEntropyLoss(label_smoothing=0.05),
        epochs=60,
        rate=4e-3,
        weight_decay=0.05,
        augment=common.jitter,
    )
    common.finish_digits(model, HERE, calib, test)


if __name__ == "__main__":
    main()
