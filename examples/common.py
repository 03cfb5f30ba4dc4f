"""What the training scripts share: data, training loop, ONNX export, and the files of an example."""

import copy
import json
import math
import time
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 2026
CALIBRATION, TEST = 128, 500

# Pixel values go from 0 to 16. Mean and standard deviation are those of the training images.
DIGITS_PREPROCESS = {"scale": 1 / 16, "mean": [0.306], "std": [0.376], "layout": "NCHW"}


def set_seeds():
    """Makes a run repeatable: on one machine the same weights come out, bit for bit."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def split(samples, labels, calibration, test, stratify):
    """Three disjoint parts (train, calibration, test), each a pair of samples and labels."""
    rest, held, rest_labels, held_labels = train_test_split(
        samples,
        labels,
        test_size=calibration + test,
        random_state=SEED,
        stratify=labels if stratify else None,
    )
    calib, tests, calib_labels, test_labels = train_test_split(
        held,
        held_labels,
        test_size=test,
        random_state=SEED,
        stratify=held_labels if stratify else None,
    )
    return (rest, rest_labels), (calib, calib_labels), (tests, test_labels)


def digits():
    """scikit-learn's handwritten digits, images as uint8 [N, 8, 8, 1] with values 0 to 16."""
    data = load_digits()
    images = data.images.astype(np.uint8)[..., None]
    return split(images, data.target.astype(np.int64), CALIBRATION, TEST, stratify=True)


def digits_input(images):
    """uint8 NHWC images to the float NCHW input that `DIGITS_PREPROCESS` describes."""
    p = DIGITS_PREPROCESS
    x = images.astype(np.float32) * np.float32(p["scale"])
    x = (x - np.float32(p["mean"])) / np.float32(p["std"])
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def jitter(images, generator):
    """Each image rotated by up to 10 degrees, resized by up to 10 % and moved by up to 0.8 pixels."""
    n, size = len(images), images.shape[-1]

    def uniform(limit):
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, zoom = uniform(math.radians(10)), 1 + uniform(0.1)
    shift = 0.8 * 2 / size
    rows = [
        torch.stack([zoom * angle.cos(), -angle.sin(), uniform(shift)], 1),
        torch.stack([angle.sin(), zoom * angle.cos(), uniform(shift)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(model, inputs, targets, loss, *, epochs, rate, weight_decay, batch=64, augment=None):
    """AdamW with warm-up and cosine decay; returns the running average of the weights, in eval mode."""
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average = copy.deepcopy(model).eval()
    begun = time.monotonic()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(x), generator=generator)[: len(x) // batch * batch]
        for chosen in order.split(batch):
            samples = augment(x[chosen], generator) if augment else x[chosen]
            value = loss(model(samples), y[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            update_average(average, model, decay=0.99)
            total += value.item()
        if (epoch + 1) % max(epochs // 10, 1) == 0:
            mean = total / (len(order) // batch)
            print(f"epoch {epoch + 1}: loss {mean:.4f} ({time.monotonic() - begun:.0f} s)")
    return average


@torch.no_grad()
def update_average(average, model, decay):
    """Moves the averaged weights a little towards the model's; counters are copied."""
    held = average.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            held[name].lerp_(value, 1 - decay)
        else:
            held[name].copy_(value)


def export(model, sample, folder, input_name, output_name):
    """Writes `model.onnx` as the exporter sees the modules: nothing folded, the batch size left open."""
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.from_numpy(sample),),
            path,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
            opset_version=17,
            dynamo=False,
            # Otherwise the exporter merges BatchNorm into the convolutions.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def predict(path, inputs):
    """Runs the exported model with ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def write_case(folder, case):
    """Writes `case.json` and prints it."""
    text = json.dumps(case, indent=1)
    (folder / "case.json").write_text(text + "\n")
    print(text)


def finish_digits(model, folder, calib, test):
    """Exports a digits network with its data sets and measures it on the test images."""
    np.savez_compressed(folder / "calib.npz", images=calib[0], labels=calib[1])
    np.savez_compressed(folder / "test.npz", images=test[0], labels=test[1])
    inputs = digits_input(test[0])
    path = export(model, inputs[:2], folder, "input", "logits")
    logits = predict(path, inputs)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(torch.from_numpy(inputs)).numpy(), atol=1e-3)
    accuracy = float((logits.argmax(1) == test[1]).mean())
    case = {"input": "input", "preprocess": DIGITS_PREPROCESS, "metric": "top1", "float": accuracy}
    write_case(folder, case)
