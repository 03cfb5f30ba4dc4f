"""Makes the data seeds under corpus/: python3 corpus.py (needs numpy, pillow, h5py).

All of it is synthetic: one sound file of each kind, and files that lie about their sizes. A file that
once broke a parser is added by hand beside them.
"""
import io
import json
import os
import zipfile

import h5py
import numpy as np
from PIL import Image

here = os.path.dirname(os.path.abspath(__file__))


def path(target, name):
    folder = os.path.join(here, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, name)


def write(target, name, data):
    with open(path(target, name), "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)


a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

np.savez(path("data_npz", "stored.npz"), input=a, labels=np.arange(2))
np.savez_compressed(
    path("data_npz", "deflated.npz"),
    images=np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3),
    masks=np.zeros((2, 4, 6), np.uint8),
)
np.savez_compressed(path("data_npz", "bomb.npz"), input=np.zeros((2, 1 << 18), np.float32))
buffer = io.BytesIO()
np.save(buffer, a)
lying = buffer.getvalue().replace(b"(2, 3, 4)", b"(9, 3, 4)")
with zipfile.ZipFile(path("data_npz", "lying_shape.npz"), "w") as z:
    z.writestr("input.npy", lying)

write("data_npy", "lying_shape.npy", lying)
empty = io.BytesIO()
np.save(empty, np.zeros((0, 3, 4), np.float32))
header = empty.getvalue()
huge = b"(0, 1099511627776, 1099511627776)"
write("data_npy", "zero_beside_huge.npy", header.replace(b"(0, 3, 4), }" + b" " * (len(huge) - 9), huge + b", }"))
np.save(path("data_npy", "bool.npy"), a > 3)
np.save(path("data_npy", "scalar.npy"), np.float64(1))
np.save(path("data_npy", "strings.npy"), np.array(["a", "b"]))
with open(path("data_npy", "v3.npy"), "wb") as f:
    np.lib.format.write_array(f, a.astype(">i2"), version=(3, 0))


def safetensors(shape):
    header = json.dumps({"input": {"dtype": "F32", "shape": shape, "data_offsets": [0, 96]}}).encode()
    return len(header).to_bytes(8, "little") + header + a.tobytes()


write("data_safetensors", "ok.safetensors", safetensors([2, 3, 4]))
beside = {"input": {"dtype": "F32", "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}}
beside = json.dumps(beside).encode()
write("data_safetensors", "zero_beside_huge.safetensors", len(beside).to_bytes(8, "little") + beside)
write("data_safetensors", "overflow.safetensors", safetensors([1 << 32, 1 << 32, 4]))
write("data_safetensors", "long_header.safetensors", (1 << 63).to_bytes(8, "little") + b"{}")

with h5py.File(path("data_h5", "groups.h5"), "w", libver="latest") as f:
    for split in ("calibration", "test"):
        for i in range(2):
            image = np.full((4, 6, 3), i, np.uint8)
            f.create_dataset(f"{split}/p{i}/image", data=image, chunks=(2, 6, 3), compression="gzip")
            f[f"{split}/p{i}/mask"] = np.zeros((4, 6), np.uint8)
with h5py.File(path("data_h5", "sparse.h5"), "w") as f:
    f.create_dataset("input", shape=(1 << 40, 3, 4), dtype="f4", chunks=(1, 3, 4))

rgb = Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))
rgb.save(path("data_image", "rgb.png"))
rgb.save(path("data_image", "rgb.jpg"))
rgb.save(path("data_image", "progressive.jpg"), progressive=True, subsampling=2)
Image.fromarray(np.arange(100, dtype=np.uint8).reshape(5, 5, 4)).save(path("data_image", "rgba.png"))
Image.fromarray(np.arange(25, dtype=np.uint16).reshape(5, 5)).save(path("data_image", "gray16.png"))

write("data_labels", "table.csv", 'file,label\n"a, ""b"".png",cat\nc.png,dog\n')
write("data_labels", "list.csv", "# classes\n3\n1\n2.5\n")
write("data_labels", "open_quote.csv", 'file,label\n"a.png,1\n')
write("data_labels", "label_not_in_first_two.csv", "a,b,label\n1,2,3\n")

every = dict(scale=0.5, offset=-1, mean=[0.4, 0.5], std=2, layout="NCHW", resize="224x200", filter="bicubic")
write("data_preprocess", "all.json", json.dumps(dict(every, crop=[4, 5], channels="bgr")))
write("data_preprocess", "all.toml", 'range = [-1, 1]\nresize = 256\ncrop = "224x224"\norder = "gray"\n')
write("data_preprocess", "null.json", json.dumps(dict(preprocess=None)))
