"""Other networks beside ONNX Runtime: what the defaults make of them, and at what speed.

    python networks.py BINARY [FOLDER] [--models bert levit_128 …] [--threads 2] [--seconds 0.5] [--dynamo]

Exports networks of torchvision, timm and transformers, with seeded random weights, into FOLDER (default: `networks`) where
they are not there yet; quantizes each with the defaults on eight random samples; and prints for each how far both runtimes
agree (SQNR in dB: the float model, and our int8 file), the ratios of least times, ours / ONNX Runtime, of float and int8,
and the share of multiply-accumulates that ran as integers. Random weights say nothing of accuracy: they show what can't
be read, run, quantized or loaded, and what is slow. `--dynamo` takes PyTorch's newer exporter, which some networks need
and take by themselves.
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

import measure

warnings.filterwarnings("ignore")


def torch_modules():
    import torch
    import torch.nn as nn

    class Picked(nn.Module):
        """A network of which one result counts."""

        def __init__(self, network, pick):
            super().__init__()
            self.network, self.pick = network, pick

        def forward(self, *inputs):
            return self.pick(self.network, *inputs)

    class Recurrent(nn.Module):
        def __init__(self, kind, both):
            super().__init__()
            self.first = nn.Linear(80, 256)
            self.layers = getattr(nn, kind)(256, 256, 2, batch_first=True, bidirectional=both)
            self.last = nn.Linear(512 if both else 256, 40)

        def forward(self, x):
            return self.last(self.layers(torch.relu(self.first(x)))[0])

    class Sound(nn.Module):
        """Dilated convolutions along time, and a transposed one."""

        def __init__(self):
            super().__init__()
            layers, c = [], 80
            for i in range(6):
                layers += [nn.Conv1d(c, 192, 5, padding=2 << i, dilation=1 << i), nn.BatchNorm1d(192)]
                layers += [nn.PReLU(192) if i % 2 else nn.LeakyReLU(0.1)]
                c = 192
            self.layers = nn.Sequential(*layers, nn.ConvTranspose1d(192, 64, 4, 2, 1), nn.SiLU(), nn.Conv1d(64, 20, 1))

        def forward(self, x):
            return torch.tanh(self.layers(x))

    return Picked, Recurrent, Sound


def networks():
    """By name: a function that makes the network and its inputs, of one sample."""
    import torch

    picked, recurrent, sound = torch_modules()
    image = lambda side: {"input": torch.randn(1, 3, side, side)}

    def vision(name, side=224):
        import torchvision.models as models

        return lambda: (getattr(models, name)(weights=None), image(side))

    def segmentation(name, side=256):
        import torchvision.models as models

        make = getattr(models.segmentation, name)
        return lambda: (picked(make(weights=None, weights_backbone=None), lambda m, x: m(x)["out"]), image(side))

    def timm(name, side=224):
        def make():
            import timm

            return timm.create_model(name, pretrained=False), image(side)

        return make

    def hugging(network, config, inputs, **settings):
        def make():
            import transformers

            made = getattr(transformers, network)(getattr(transformers, config)(**settings))
            return picked(made, lambda m, *x: m(**dict(zip(inputs, x)))[0]), {k: v() for k, v in inputs.items()}

        return make

    ids = lambda: torch.randint(5, 1000, (1, 128))
    masked = {"input_ids": ids, "attention_mask": lambda: torch.ones(1, 128, dtype=torch.int64)}
    text = lambda network, config, **s: hugging(network, config, masked, vocab_size=1000, **s)
    decoder = lambda network, config, **s: hugging(
        network, config, {"input_ids": ids}, vocab_size=1000, use_cache=False, **s
    )
    pixels = lambda network, config, side=224, **s: hugging(
        network, config, {"pixel_values": lambda: torch.randn(1, 3, side, side)}, **s
    )
    one = lambda make, *shape: lambda: (make(), {"input": torch.randn(1, *shape)})
    small = dict(num_hidden_layers=4, hidden_size=512, intermediate_size=1376, num_attention_heads=8)
    tokens = dict(pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    encoder = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return {
        **{n: vision(n) for n in ["resnet18", "resnext50_32x4d", "vgg11_bn", "densenet121", "squeezenet1_1", "mnasnet1_0"]},
        **{n: vision(n) for n in ["efficientnet_b0", "mobilenet_v3_large", "shufflenet_v2_x1_0", "regnet_y_800mf"]},
        **{n: vision(n) for n in ["convnext_tiny", "swin_t", "maxvit_t"]},
        "inception_v3": vision("inception_v3", 299),
        "swin_v2_t": vision("swin_v2_t", 256),
        **{n: segmentation(n) for n in ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"]},
        **{n: timm(n) for n in ["deit_tiny_patch16_224", "levit_128", "repvgg_a0", "ghostnet_100", "mixer_s16_224"]},
        **{n: timm(n) for n in ["poolformer_s12", "efficientformer_l1", "hrnet_w18_small", "res2net50_26w_4s"]},
        **{n: timm(n) for n in ["eca_nfnet_l0", "pvt_v2_b0", "beit_base_patch16_224", "cait_xxs24_224", "gcresnet33ts"]},
        **{n: timm(n) for n in ["coat_tiny", "volo_d1_224", "mobilenetv4_conv_small", "eva02_tiny_patch14_224"]},
        **{n: timm(n, 256) for n in ["mobilevit_s", "edgenext_small", "fastvit_t8", "mobilenetv4_hybrid_medium"]},
        "vit_small_patch14_reg4_dinov2": timm("vit_small_patch14_reg4_dinov2", 518),
        "vit_base_patch16_siglip_224": timm("vit_base_patch16_siglip_224"),
        "bert": text("BertModel", "BertConfig", num_hidden_layers=6),
        "distilbert": text("DistilBertModel", "DistilBertConfig"),
        "roberta": text("RobertaModel", "RobertaConfig", num_hidden_layers=6, max_position_embeddings=514),
        "albert": text(
            "AlbertModel",
            "AlbertConfig",
            num_hidden_layers=6,
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
        ),
        "electra": text("ElectraModel", "ElectraConfig", num_hidden_layers=6),
        "mpnet": text("MPNetModel", "MPNetConfig", num_hidden_layers=6),
        "deberta": text(
            "DebertaV2Model",
            "DebertaV2Config",
            num_hidden_layers=4,
            hidden_size=384,
            num_attention_heads=6,
            intermediate_size=1536,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=64,
            max_relative_positions=128,
        ),
        "modernbert": text("ModernBertModel", "ModernBertConfig", num_hidden_layers=6, **tokens),
        "t5_encoder": text("T5EncoderModel", "T5Config"),
        "gpt2": decoder("GPT2Model", "GPT2Config", n_layer=6),
        "llama": decoder("LlamaModel", "LlamaConfig", num_key_value_heads=2, **small),
        "qwen2": decoder("Qwen2Model", "Qwen2Config", num_key_value_heads=2, **small),
        "vit": pixels("ViTModel", "ViTConfig", num_hidden_layers=6),
        "clip_vision": pixels("CLIPVisionModel", "CLIPVisionConfig", num_hidden_layers=6),
        "segformer": pixels("SegformerForSemanticSegmentation", "SegformerConfig", 256),
        "dpt": pixels(
            "DPTForDepthEstimation",
            "DPTConfig",
            384,
            num_hidden_layers=12,
            hidden_size=384,
            num_attention_heads=6,
            intermediate_size=1536,
        ),
        "wav2vec2": hugging(
            "Wav2Vec2Model", "Wav2Vec2Config", {"input_values": lambda: torch.randn(1, 16000)}, num_hidden_layers=4
        ),
        "lstm": one(lambda: recurrent("LSTM", True), 100, 80),
        "gru": one(lambda: recurrent("GRU", False), 100, 80),
        "sound": one(sound, 80, 400),
        "transformer": one(lambda: torch.nn.TransformerEncoder(encoder, 4, enable_nested_tensor=False), 100, 256),
    }


def export(make, path, dynamo):
    """Writes a network and eight samples beside it."""
    import torch

    torch.manual_seed(0)
    network, inputs = make()
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))]
    # One batch of noise gives normalisations statistics that fit the weights.
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            network(*(torch.randn(8, *v.shape[1:]) for v in inputs.values()))
    network.eval()
    names = dict(input_names=list(inputs), output_names=["output"])
    try:
        if dynamo:
            raise RuntimeError
        torch.onnx.export(network, tuple(inputs.values()), path, dynamo=False, opset_version=17, **names)
    except Exception:
        torch.onnx.export(network, tuple(inputs.values()), path, dynamo=True, external_data=False, **names)

    def more(name, first):
        if first.is_floating_point():
            return torch.randn(first.shape)
        return first if "mask" in name else torch.randint(5, 1000, first.shape)

    samples = {k: np.concatenate([v.numpy(), *(more(k, v).numpy() for _ in range(7))]) for k, v in inputs.items()}
    np.savez(path.with_suffix(".npz"), **samples)


def sqnr(want, got):
    """Signal to error in dB; inf where all is alike."""
    want, got = want.astype(np.float64), got.reshape(want.shape).astype(np.float64)
    error, signal = np.sum((want - got) ** 2), np.sum(want**2)
    return np.inf if error == 0 else 10 * np.log10(signal / error) if signal > 0 else -np.inf


def compare(args, name, path):
    """One row of the table."""
    import onnxruntime as ort

    first, quantized = path.with_suffix(".first.npz"), path.with_suffix(".int8.onnx")
    sample = {k: v[:1] for k, v in np.load(path.with_suffix(".npz")).items()}
    np.savez(first, **sample)
    if not quantized.exists():
        data = path.with_suffix(".npz")
        measure.run([args.binary, "quantize", path, "--data", data, "-o", quantized, "--measure=no", "--quiet"])

    def outputs(model):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        theirs = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, sample)[0]
        mine = path.with_suffix(".out.npz")
        measure.run([args.binary, "run", model, "--data", first, "-o", mine])
        return theirs, next(iter(np.load(mine).values()))

    agreement = [f"{sqnr(*outputs(model)):.0f}" for model in (path, quantized)]
    times = [
        (
            measure.our_latency(args.binary, model, first, args.threads, args.seconds)[1],
            measure.engine_latency("ort", model, first, args.threads, args.seconds)[1],
        )
        for model in (path, quantized)
    ]
    profile = [args.binary, "bench", quantized, "--profile", "--data", first, "--runs", "1", "--seconds", "0"]
    said = subprocess.run(profile, capture_output=True, text=True, check=True).stdout
    share = next((line.split()[1] for line in said.splitlines() if "multiply-accumulates" in line), "")
    ratios = [f"{mine / theirs:.2f}" for mine, theirs in times]
    return [name, *agreement, *ratios, f"{times[1][0] / times[0][0]:.2f}", share]


def main():
    parser = argparse.ArgumentParser(description="Other networks beside ONNX Runtime.")
    parser.add_argument("binary", type=lambda p: Path(p).resolve(), help="the narrowbit command (a release build)")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("networks"), help="where the networks are written")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="time of each measurement")
    parser.add_argument("--dynamo", action="store_true", help="export with PyTorch's newer exporter")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    known, rows = networks(), []
    for name in args.models or known:
        path = args.folder / f"{name}.onnx"
        try:
            if not path.with_suffix(".npz").exists():
                export(known[name], path, args.dynamo)
            rows.append(compare(args, name, path))
        except Exception as error:
            rows.append([name, f"{type(error).__name__}: {' '.join(str(error).split())[-160:]}", *[""] * 5])
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["network", "float dB", "int8 dB", "float / ort", "int8 / ort", "int8 / float", "on integers"]
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
