"""Trains a small vision transformer on scikit-learn's handwritten digits.

    pip install -r examples/requirements.txt
    python examples/digits-vit/train.py          (about five minutes on one core)

Patches of 2x2 pixels, a class token, three pre-norm layers with self-attention and GELU. Attention
and GELU are exported as primitive operators. Writes model.onnx, calib.npz, test.npz and case.json
beside this script.
"""

import sys
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402

SIZE, PATCH = 8, 2
WIDTH, DEPTH, HEADS = 96, 3, 4


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self):
        super().__init__()
        self.scale = (WIDTH // HEADS) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = self.softmax(q @ k.transpose(-2, -1) * self.scale)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        x = x + self.dropout(self.attn(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class DigitsVit(nn.Module):
    """[N, 1, 8, 8] to [N, 10] logits."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        tokens = (SIZE // PATCH) ** 2 + 1
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        x = self.blocks(torch.cat([cls, x], dim=1) + self.pos_embed)
        return self.head(self.norm(x)[:, 0])


def main():
    common.set_seeds()
    training, calib, test = common.digits()
    model = common.train(
        DigitsVit(),
        common.digits_input(training[0]),
        training[1],
        nn.CrossEntropyLoss(label_smoothing=0.05),
        epochs=200,
        rate=1e-3,
        weight_decay=0.05,
        augment=common.jitter,
    )
    common.finish_digits(model, HERE, calib, test)


if __name__ == "__main__":
    main()
