"""Writes single-node models with random data and the outputs that ONNX Runtime gives for them.

    python ms_cases.py OUT

Covers the operators of ONNX Runtime's own domain, which have no node tests, and those of ONNX's
quantization operators whose node tests are thin. The layout is that of `export_node_tests.py`:
OUT/index.json, OUT/<case>/model.onnx, OUT/<case>/data_set_0/{input,output}_<j>.pb. OUT is replaced
as a whole. Integer outputs are to be equal; float outputs state their tolerance.
"""

import ml_dtypes
import numpy as np
from onnx import TensorProto
from ms_tools import F16, F32, I8, I32, U8, Case, case, floats, ints, main, scalar, scale_of, zero

# ------------------------------------------------------------------ ONNX's quantization operators


@case
def quantize_linear(r):
    x = floats(r, 3, 8, 5, scale=2)
    # Quotients stay within int32: beyond, ONNX Runtime's blocked kernel wraps instead of saturating.
    x[0, 0, :4] = [0.05, 0.15, -0.05, 1e6]
    for d in (I8, U8, np.int16, np.uint16):
        yield d.__name__, Case("QuantizeLinear", [x, scalar(0.1), zero(r, d)], domain="")
        s, z = r.uniform(0.01, 0.1, 8).astype(F32), ints(r, 8, d)
        yield f"{d.__name__}_axis", Case("QuantizeLinear", [x, s, z], domain="", axis=1)
        s, z = r.uniform(0.01, 0.1, (3, 2, 5)).astype(F32), ints(r, (3, 2, 5), d)
        yield f"{d.__name__}_block", Case("QuantizeLinear", [x, s, z], domain="", axis=1, block_size=4)
        h = x.clip(-100, 100).astype(F16)
        yield f"{d.__name__}_f16", Case("QuantizeLinear", [h, scalar(0.1, F16), zero(r, d)], domain="")
    for d in (I8, U8):
        for opset in (10, 13, 19, 23, 24, 25):
            s = scalar(0.1) if opset == 10 else r.uniform(0.01, 0.1, 8).astype(F32)
            z = zero(r, d) if opset == 10 else ints(r, 8, d)
            yield f"{d.__name__}_opset{opset}", Case("QuantizeLinear", [x, s, z], domain="", opset=opset)
    for name in ("int4", "uint4"):
        d = np.dtype(getattr(ml_dtypes, name))
        z = np.array(3).astype(d)
        yield name, Case("QuantizeLinear", [x, scalar(0.1), z], domain="", cast=TensorProto.INT8)
        z = r.integers(0, 7, 8).astype(I8).astype(d)
        yield f"{name}_axis", Case("QuantizeLinear", [x, r.uniform(0.1, 0.5, 8).astype(F32), z], domain="", cast=TensorProto.INT8)
    for name in ("int2", "uint2"):
        z = np.array(1).astype(np.dtype(getattr(ml_dtypes, name)))
        yield name, Case("QuantizeLinear", [x, scalar(1.0), z], domain="", opset=25, cast=TensorProto.INT8)
    # Without saturation, ONNX Runtime's e4m3fn makes 448 of quotients from 480 to 496, where ONNX says NaN.
    wide = floats(r, 64, scale=300)
    wide = wide[(abs(wide / 0.7) < 464) | (abs(wide / 0.7) > 500)]
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        z = np.array(0).astype(np.dtype(getattr(ml_dtypes, name)))
        for saturate in (0, 1):
            c = Case("QuantizeLinear", [wide, scalar(0.7), z], domain="", opset=19, cast=TensorProto.FLOAT, exact=True, saturate=saturate)
            yield f"{name}_{saturate}", c


@case
def dequantize_linear(r):
    for d in (I8, U8, np.int16, np.uint16):
        x = ints(r, (3, 8, 5), d)
        yield d.__name__, Case("DequantizeLinear", [x, scalar(0.1), zero(r, d)], domain="", exact=True)
        s, z = r.uniform(0.01, 0.1, 8).astype(F32), ints(r, 8, d)
        yield f"{d.__name__}_axis", Case("DequantizeLinear", [x, s, z], domain="", exact=True, axis=1)
        s, z = r.uniform(0.01, 0.1, (3, 2, 5)).astype(F32), ints(r, (3, 2, 5), d)
        yield f"{d.__name__}_block", Case("DequantizeLinear", [x, s, z], domain="", exact=True, axis=1, block_size=4)
        yield f"{d.__name__}_f16", Case("DequantizeLinear", [x, scalar(0.1, F16), zero(r, d)], domain="", exact=True)
    x = ints(r, (4, 5), I32)
    yield "int32", Case("DequantizeLinear", [x, scalar(1e-4)], domain="", exact=True)
    yield "int32_axis", Case("DequantizeLinear", [x, r.uniform(0.01, 0.1, 5).astype(F32)], domain="", exact=True)
    for name in ("int4", "uint4", "int2", "uint2"):
        d = np.dtype(getattr(ml_dtypes, name))
        x = r.integers(-1 if name[0] == "i" else 0, 2, (4, 6)).astype(I8).astype(d)
        c = Case("DequantizeLinear", [x, scalar(0.1), np.array(1).astype(d)], domain="", opset=25, exact=True)
        yield name, c
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        d = np.dtype(getattr(ml_dtypes, name))
        x = np.arange(256, dtype=U8).view(d)
        x = x[np.isfinite(x.astype(F32))]
        yield name, Case("DequantizeLinear", [x, scalar(0.3)], domain="", opset=19, exact=True)


@case
def dynamic_quantize_linear(r):
    for i, x in enumerate([floats(r, 40), abs(floats(r, 40)) + 1, -abs(floats(r, 40)) - 1, np.zeros(3, F32)]):
        yield str(i), Case("DynamicQuantizeLinear", [x], 3, domain="")


@case
def qlinear_conv(r):
    for i, (xd, wd) in enumerate([(U8, U8), (U8, I8), (I8, I8)]):
        x = ints(r, (2, 4, 7, 6), xd)
        for suffix, group, per_channel, kw in [
            ("plain", 1, False, {}),
            ("channels", 1, True, {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
            ("groups", 2, True, {"dilations": [2, 1]}),
            ("depthwise", 4, True, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            ("lower", 1, True, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ]:
            m = 8
            w = ints(r, (m, 4 // group, 3, 2), wd, *((-127, 127) if wd is I8 else (0, 255)))
            ws = r.uniform(0.005, 0.02, m if per_channel else ()).astype(F32)
            wz = np.zeros(m if per_channel else (), wd) if wd is I8 else np.full(m if per_channel else (), 120, wd)
            bias = ints(r, m, I32, -2000, 2000)
            head = [x, scale_of(r), zero(r, xd), w, ws, wz, scalar(0.2), zero(r, xd), bias]
            yield f"{i}_{suffix}", Case("QLinearConv", head, domain="", opset=10, group=group, **kw)
    x, w = ints(r, (1, 2, 9), U8), ints(r, (3, 2, 4), I8)
    yield "1d", Case("QLinearConv", [x, scalar(0.02), zero(r, U8), w, scalar(0.01), scalar(0, I8), scalar(0.1), zero(r, U8)], domain="", opset=10, pads=[1, 2])
    x, w = ints(r, (1, 2, 4, 5, 6), U8), ints(r, (3, 2, 2, 3, 2), I8)
    yield "3d", Case("QLinearConv", [x, scalar(0.02), zero(r, U8), w, scalar(0.01), scalar(0, I8), scalar(0.1), zero(r, U8)], domain="", opset=10)
    x, w = ints(r, (2, 7, 6, 4), U8), ints(r, (8, 4, 3, 3), I8)
    ws = r.uniform(0.005, 0.02, 8).astype(F32)
    head = [x, scalar(0.02), zero(r, U8), w, ws, np.zeros(8, I8), scalar(0.2), zero(r, U8), ints(r, 8, I32, -2000, 2000)]
    yield "nhwc", Case("QLinearConv", head, channels_last=1, pads=[1, 1, 1, 1], const=(3, 4, 5))


@case
def conv_integer(r):
    for xd in (U8, I8):
        for wd in (U8, I8):
            x, w = ints(r, (1, 4, 6, 5), xd), ints(r, (6, 2, 3, 3), wd)
            c = Case("ConvInteger", [x, w, zero(r, xd), zero(r, wd)], domain="", opset=10, group=2, pads=[1, 0, 1, 2])
            yield f"{xd.__name__}_{wd.__name__}", c


@case
def matmul_integer(r):
    for ad in (U8, I8):
        for bd in (U8, I8):
            a, b = ints(r, (2, 5, 40), ad), ints(r, (40, 7), bd)
            yield f"{ad.__name__}_{bd.__name__}", Case("MatMulInteger", [a, b, zero(r, ad), zero(r, bd)], domain="", opset=10)
            yield f"{ad.__name__}_{bd.__name__}_columns", Case("MatMulInteger", [a, b, zero(r, ad), ints(r, 7, bd)], domain="", opset=10)
    yield "batches", Case("MatMulInteger", [ints(r, (3, 1, 2, 6), U8), ints(r, (2, 6, 4), I8)], domain="", opset=10)


@case
def qlinear_matmul(r):
    for ad, bd in [(U8, U8), (U8, I8), (I8, I8)]:
        a, b = ints(r, (2, 5, 40), ad), ints(r, (40, 7), bd)
        head = [a, scale_of(r), zero(r, ad), b]
        tail = [scalar(0.5), zero(r, ad)]
        name = f"{ad.__name__}_{bd.__name__}"
        yield name, Case("QLinearMatMul", head + [scale_of(r), zero(r, bd)] + tail, domain="", opset=10)
        s, z = r.uniform(0.005, 0.05, 7).astype(F32), ints(r, 7, bd)
        yield f"{name}_columns", Case("QLinearMatMul", head + [s, z] + tail, domain="", opset=21)


# ------------------------------------------------------------------ ONNX Runtime's quantized operators


def two(r, d, shapes=((2, 3, 40), (2, 3, 40))):
    a, b = (ints(r, s, d) for s in shapes)
    return [a, scale_of(r), zero(r, d), b, scale_of(r), zero(r, d)]


@case
def qlinear_binary(r):
    for op in ("Add", "Mul"):
        for d in (U8, I8):
            for name, shapes in [("same", ((2, 3, 40), (2, 3, 40))), ("row", ((2, 3, 40), (40,))), ("column", ((3, 40), (3, 1))), ("scalar", ((3, 41), (1,)))]:
                # A scale of its own for each: sums of two, products of two.
                c = scalar(r.uniform(0.02, 0.06) if op == "Add" else r.uniform(0.05, 0.2))
                yield f"{op}_{d.__name__}_{name}", Case(f"QLinear{op}", two(r, d, shapes) + [c, zero(r, d)])


@case
def qlinear_unary(r):
    for d in (U8, I8):
        x = np.arange(256, dtype=U8).view(d)
        sigmoid = [x, scalar(0.05), zero(r, d), scalar(1 / 256), scalar(0 if d is U8 else -128, d)]
        yield f"sigmoid_{d.__name__}", Case("QLinearSigmoid", sigmoid)
        yield f"leaky_{d.__name__}", Case("QLinearLeakyRelu", [x, scalar(0.05), zero(r, d), scalar(0.04), zero(r, d)], alpha=0.1)
        for axis, opset in [(-1, 13), (1, 13), (1, 12), (-1, 12)]:
            x = ints(r, (2, 3, 20), d)
            head = [x, scalar(0.06), zero(r, d), scalar(1 / 256), scalar(0 if d is U8 else -128, d)]
            yield f"softmax_{d.__name__}_{axis}_{opset}", Case("QLinearSoftmax", head, axis=axis, opset_attr=opset)


@case
def qlinear_moves(r):
    for d in (U8, I8):
        s, z = scalar(0.04), zero(r, d)
        parts = []
        for n, same in [(3, False), (2, True), (4, False)]:
            parts += [ints(r, (2, n, 5), d), s if same else scale_of(r), z if same else zero(r, d)]
        yield f"concat_{d.__name__}", Case("QLinearConcat", [s, z] + parts, axis=1)
        where = [r.integers(0, 2, (3, 1)).astype(bool), ints(r, (3, 20), d), scale_of(r), zero(r, d), ints(r, (1, 20), d), scale_of(r), zero(r, d), s, z]
        yield f"where_{d.__name__}", Case("QLinearWhere", where)


@case
def qlinear_pools(r):
    for d in (U8, I8):
        for last in (0, 1):
            x = ints(r, (2, 9, 8, 4) if last else (2, 4, 9, 8), d)
            ps = [x, scale_of(r), zero(r, d), scalar(0.02), zero(r, d)]
            yield f"global_{d.__name__}_{last}", Case("QLinearGlobalAveragePool", ps, channels_last=last)
            for name, kw in [
                ("plain", {}),
                ("pad", {"pads": [1, 1, 0, 1], "strides": [2, 1]}),
                ("count", {"pads": [1, 1, 1, 1], "count_include_pad": 1}),
                ("ceil", {"strides": [2, 3], "ceil_mode": 1}),
            ]:
                c = Case("QLinearAveragePool", ps, channels_last=last, kernel_shape=[3, 2], **kw)
                yield f"average_{d.__name__}_{last}_{name}", c
        x = ints(r, (2, 9, 8, 4), d)
        yield f"max_{d.__name__}", Case("NhwcMaxPool", [x], kernel_shape=[3, 2], pads=[1, 1, 1, 0], strides=[2, 2])
        # 7 x 7 planes, as in classifiers.
        yield f"classifier_{d.__name__}", Case("QLinearGlobalAveragePool", [ints(r, (1, 32, 7, 7), d), scale_of(r), zero(r, d), scalar(0.01), zero(r, d)])


@case
def qgemm(r):
    for ad, bd in [(U8, U8), (U8, I8), (I8, I8)]:
        for ta, tb, columns, quantized in [(0, 0, False, True), (1, 0, True, True), (0, 1, True, False), (1, 1, False, False)]:
            a, b = ints(r, (30, 5) if ta else (5, 30), ad), ints(r, (7, 30) if tb else (30, 7), bd)
            n = 7 if columns else ()
            head = [a, scale_of(r), zero(r, ad), b, r.uniform(0.005, 0.05, n).astype(F32), ints(r, n, bd), ints(r, (1, 7), I32, -3000, 3000)]
            tail = [scalar(0.5), zero(r, ad)] if quantized else []
            name = f"{ad.__name__}_{bd.__name__}_{ta}{tb}{int(columns)}{int(quantized)}"
            yield name, Case("QGemm", head + tail, transA=ta, transB=tb, alpha=1.5, rtol=1e-6)


@case
def integer_to_float(r):
    for bd in (U8, I8):
        a, b = ints(r, (2, 5, 40), U8), ints(r, (40, 7), bd)
        s, z, bias = r.uniform(0.005, 0.05, 7).astype(F32), ints(r, 7, bd), floats(r, 7)
        yield f"{bd.__name__}", Case("MatMulIntegerToFloat", [a, b, scale_of(r), s, zero(r, U8), z, bias], rtol=1e-6)
        yield f"{bd.__name__}_plain", Case("MatMulIntegerToFloat", [a, b, scale_of(r), scale_of(r)], rtol=1e-6)
        x = floats(r, 2, 5, 40)
        yield f"{bd.__name__}_dynamic", Case("DynamicQuantizeMatMul", [x, b, s, z, bias], rtol=1e-5)
        yield f"{bd.__name__}_dynamic_plain", Case("DynamicQuantizeMatMul", [x, b, scale_of(r)], rtol=1e-5)


@case
def dynamic_lstm(r):
    hidden, inputs = 12, 9
    for wd in (U8, I8):
        for direction, dirs, columns in [("forward", 1, False), ("reverse", 1, True), ("bidirectional", 2, True)]:
            rows = 4 * hidden
            w, rec = ints(r, (dirs, inputs, rows), wd), ints(r, (dirs, hidden, rows), wd)
            shape = (dirs, rows) if columns else (dirs,)
            scales = [r.uniform(0.002, 0.01, shape).astype(F32) for _ in range(2)]
            zeros = [np.full(shape, 128 if wd is U8 else 0, wd) for _ in range(2)]
            state = [floats(r, dirs, 1, hidden), floats(r, dirs, 1, hidden)]
            ins = [floats(r, 6, 1, inputs), w, rec, floats(r, dirs, 2 * rows), None, *state, None, scales[0], zeros[0], scales[1], zeros[1]]
            name = f"{wd.__name__}_{direction}"
            yield name, Case("DynamicQuantizeLSTM", ins, outputs=3, hidden_size=hidden, direction=direction, const=(1, 2, 8, 9, 10, 11), atol=1e-5)


@case
def matmul_nbits(r):
    for bits in (2, 4, 8):
        for name, k, n, bs, zp, bias in [("plain", 64, 24, 32, False, False), ("rest", 70, 16, 32, True, True), ("wide", 256, 40, 128, True, False)]:
            blocks = -(-k // bs)
            b = ints(r, (n, blocks, bs * bits // 8), U8)
            scales = r.uniform(0.01, 0.1, n * blocks).astype(F32).reshape(n, blocks)
            zeros = ints(r, (n, -(-blocks * bits // 8)), U8) if zp else None
            ins = [floats(r, 2, 3, k), b, scales, zeros, None, floats(r, n) if bias else None]
            yield f"{bits}_{name}", Case("MatMulNBits", ins, K=k, N=n, bits=bits, block_size=bs, const=(1, 2, 3, 5), atol=1e-4)


    b, scales = ints(r, (8, 6, 8), U8), r.uniform(0.01, 0.1, (8, 6)).astype(F32)
    zeros = r.uniform(0, 15, (8, 6)).astype(F32)
    yield "4_float", Case("MatMulNBits", [floats(r, 2, 96), b, scales, zeros], K=96, N=8, bits=4, block_size=16, const=(1, 2, 3), atol=1e-4)


@case
def gather_block_quantized(r):
    for bits in (4, 8):
        data = ints(r, (10, 64 * bits // 8), U8)
        scales = r.uniform(0.01, 0.1, (10, 4)).astype(F32)
        indices = np.array([[0, 9], [3, -1]], np.int64)
        ins = [data, indices, scales, ints(r, (10, 4 * bits // 8), U8)]
        yield f"{bits}", Case("GatherBlockQuantized", ins, bits=bits, block_size=16, const=(0, 2, 3), exact=True)
        yield f"{bits}_symmetric", Case("GatherBlockQuantized", ins[:3], bits=bits, block_size=16, const=(0, 2), exact=True)
    for name in ("int4", "uint4"):
        d = np.dtype(getattr(ml_dtypes, name))
        data = r.integers(0, 8, (3, 32, 5)).astype(I8).astype(d)
        z = r.integers(0, 8, (3, 2, 5)).astype(I8).astype(d)
        scales = r.uniform(0.01, 0.1, (3, 2, 5)).astype(F32)
        ins = [data, np.array([2, 0, 1], np.int32), scales, z]
        c = Case("GatherBlockQuantized", ins, block_size=16, quantize_axis=1, gather_axis=2, const=(0, 2, 3), exact=True)
        yield name, c


@case
def microsoft_qdq(r):
    x = floats(r, 3, 8)
    for d in (U8, I8, np.int16, np.uint16):
        yield f"quantize_{d.__name__}", Case("QuantizeLinear", [x, scalar(0.02), zero(r, d)])
        yield f"quantize_{d.__name__}_axis", Case("QuantizeLinear", [x, r.uniform(0.01, 0.1, 3).astype(F32), ints(r, 3, d)], axis=0)
        q = ints(r, (3, 8), d)
        yield f"dequantize_{d.__name__}", Case("DequantizeLinear", [q, scalar(0.02), zero(r, d)], exact=True)
        yield f"dequantize_{d.__name__}_axis", Case("DequantizeLinear", [q, r.uniform(0.01, 0.1, 8).astype(F32), ints(r, 8, d)], axis=1, exact=True)


# ------------------------------------------------------------------ float operators


@case
def activations(r):
    x = floats(r, 2, 3, 16, scale=3)
    yield "gelu", Case("Gelu", [x])
    yield "fast", Case("FastGelu", [x])
    yield "fast_bias", Case("FastGelu", [x, floats(r, 16)])
    yield "bias", Case("BiasGelu", [x, floats(r, 16)])
    yield "quick", Case("QuickGelu", [x])
    yield "quick_alpha", Case("QuickGelu", [x], alpha=1.0)
    for upper in (0, 1):
        yield f"trilu_{upper}", Case("Trilu", [x, np.array(-1, np.int64)], upper=upper)


@case
def layer_norms(r):
    x, skip, g, b, bias = floats(r, 2, 5, 16), floats(r, 2, 5, 16), floats(r, 16), floats(r, 16), floats(r, 16)
    yield "simplified", Case("SimplifiedLayerNormalization", [x, g], 2, domain="", axis=-1, epsilon=1e-6)
    yield "layer", Case("LayerNormalization", [x, g, b], 3, domain="", opset=16)
    yield "simplified_plain", Case("SimplifiedLayerNormalization", [x, g], domain="", opset=17)
    yield "skip", Case("SkipLayerNormalization", [x, skip, g, b], epsilon=1e-5)
    yield "skip_bias", Case("SkipLayerNormalization", [x, skip, g, b, bias], ["y", "", "", "sum"])
    yield "skip_bare", Case("SkipLayerNormalization", [x, skip, g])
    yield "skip_broadcast", Case("SkipLayerNormalization", [x, skip[:1], g, b])
    yield "skip_simplified", Case("SkipSimplifiedLayerNormalization", [x, skip, g, bias], ["y", "", "", "sum"], epsilon=1e-5)
    ids, segments = ints(r, (2, 5), I32, 0, 19), ints(r, (2, 5), I32, 0, 1)
    words, positions, kinds = floats(r, 20, 16), floats(r, 8, 16), floats(r, 2, 16)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], I32)
    yield "embed", Case("EmbedLayerNormalization", [ids, segments, words, positions, kinds, g, b, mask], 3)
    yield "embed_bare", Case("EmbedLayerNormalization", [ids, None, words, positions, None, g, b], 2)
    places = ints(r, (2, 5), I32, 0, 7)
    yield "embed_places", Case("EmbedLayerNormalization", [ids, segments, words, positions, kinds, g, b, None, places], 2)


@case
def fused(r):
    yield "matmul", Case("FusedMatMul", [floats(r, 2, 3, 5), floats(r, 5, 4)], alpha=0.3)
    yield "matmul_trans", Case("FusedMatMul", [floats(r, 2, 5, 3), floats(r, 2, 4, 5)], transA=1, transB=1, alpha=2.0)
    yield "matmul_batch_a", Case("FusedMatMul", [floats(r, 3, 2, 5), floats(r, 2, 5, 4)], transBatchA=1)
    yield "matmul_batch_ab", Case("FusedMatMul", [floats(r, 3, 2, 6, 5), floats(r, 4, 2, 6, 5)], transBatchA=1, transBatchB=1, transB=1)
    yield "matmul_batch_a_trans", Case("FusedMatMul", [floats(r, 5, 2, 3), floats(r, 2, 5, 4)], transBatchA=1, transA=1)
    for name, kw in [("Relu", {}), ("LeakyRelu", {"activation_alpha": 0.2}), ("Sigmoid", {}), ("Tanh", {}), ("Elu", {"activation_alpha": 0.5})]:
        ins = [floats(r, 4, 5), floats(r, 6, 5), floats(r, 6)]
        yield f"gemm_{name}", Case("FusedGemm", ins, transB=1, alpha=0.7, beta=1.5, activation=name, **kw)
    x, w, b = floats(r, 2, 4, 6, 7), floats(r, 8, 2, 3, 3), floats(r, 8)
    for name, kw in [("Relu", {}), ("LeakyRelu", {"activation_params": [0.2]}), ("Clip", {"activation_params": [-0.5, 1.5]}), ("Sigmoid", {}), ("Tanh", {}), ("HardSigmoid", {"activation_params": [0.25, 0.4]})]:
        yield f"conv_{name}", Case("FusedConv", [x, w, b], group=2, pads=[1, 1, 1, 1], activation=name, **kw)
    yield "conv_sum", Case("FusedConv", [x, w, b, floats(r, 2, 8, 4, 5)], group=2, activation="Relu")


@case
def attention(r):
    x, w, b = floats(r, 2, 4, 8), floats(r, 8, 24, scale=0.5), floats(r, 24)
    ends, both = np.array([3, 4], I32), np.array([3, 4, 1, 0], I32)
    raw = np.array([[1, 1, 0, 1], [0, 1, 1, 1]], I32)
    cube = r.integers(0, 2, (2, 4, 4)).astype(I32)
    cube[:, :, 0] = 1
    yield "plain", Case("Attention", [x, w, b], num_heads=2)
    # ONNX Runtime 1.31.1 crashes where the bias is left out.
    yield "scale", Case("Attention", [x, w, b], num_heads=2, scale=0.3)
    for name, m in [("ends", ends), ("both", both), ("raw", raw), ("cube", cube)]:
        yield f"mask_{name}", Case("Attention", [x, w, b, m], num_heads=2)
        yield f"mask_{name}_causal", Case("Attention", [x, w, b, m], num_heads=2, unidirectional=1)
    yield "filter", Case("Attention", [x, w, b, raw], num_heads=2, mask_filter_value=-3.0)
    yield "causal", Case("Attention", [x, w, b], num_heads=2, unidirectional=1)
    yield "sizes", Case("Attention", [x, floats(r, 8, 28), floats(r, 28)], num_heads=2, qkv_hidden_sizes=[8, 8, 12])
    yield "added", Case("Attention", [x, w, b, None, None, floats(r, 1, 2, 4, 4)], num_heads=2)
    past = floats(r, 2, 2, 2, 3, 4)
    yield "past", Case("Attention", [x, w, b, None, past], 2, num_heads=2, unidirectional=1)
    yield "past_mask", Case("Attention", [x, w, b, np.ones((2, 7), I32), past], 2, num_heads=2)
    for xd, wd in [(U8, U8), (U8, I8)]:
        for columns in (False, True):
            n = 24 if columns else ()
            ins = [ints(r, (2, 4, 8), xd), ints(r, (8, 24), wd), floats(r, 24), scalar(0.01), r.uniform(0.005, 0.02, n).astype(F32), ends, zero(r, xd), ints(r, n, wd)]
            yield f"quantized_{wd.__name__}_{int(columns)}", Case("QAttention", ins, num_heads=2)
    ins = [ints(r, (2, 4, 8), U8), ints(r, (8, 24), I8), floats(r, 24), scalar(0.01), scalar(0.02), None, zero(r, U8), scalar(0, I8), past]
    yield "quantized_past", Case("QAttention", ins, 2, num_heads=2, unidirectional=1)


@case
def multi_head_attention(r):
    q, k, v = floats(r, 2, 4, 8), floats(r, 2, 6, 8), floats(r, 2, 6, 12)
    b = floats(r, 28)
    yield "cross", Case("MultiHeadAttention", [q, k, v], num_heads=2)
    yield "bias", Case("MultiHeadAttention", [q, k, v, b], num_heads=2)
    mask = np.array([[1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]], I32)
    yield "mask", Case("MultiHeadAttention", [q, k, v, None, mask], num_heads=2)
    yield "ends", Case("MultiHeadAttention", [q, k, v, None, np.array([5, 6], I32)], num_heads=2)
    cube = r.integers(0, 2, (2, 4, 6)).astype(I32)
    cube[:, :, 0] = 1
    yield "cube", Case("MultiHeadAttention", [q, k, v, None, cube], num_heads=2)
    yield "added", Case("MultiHeadAttention", [q, k, v, None, None, floats(r, 2, 1, 4, 6)], num_heads=2)
    yield "scale", Case("MultiHeadAttention", [q, k, v], num_heads=2, scale=0.1)
    by_head = [floats(r, 2, 2, 6, 4), floats(r, 2, 2, 6, 4)]
    yield "by_head", Case("MultiHeadAttention", [q] + by_head, num_heads=2)
    self_k, self_v = floats(r, 2, 4, 8), floats(r, 2, 4, 8)
    past = [floats(r, 2, 2, 3, 4), floats(r, 2, 2, 3, 4)]
    yield "past", Case("MultiHeadAttention", [q, self_k, self_v, None, None, None] + past, 3, num_heads=2)
    yield "causal", Case("MultiHeadAttention", [q, self_k, self_v], num_heads=2, unidirectional=1)
    yield "causal_past", Case("MultiHeadAttention", [q, self_k, self_v, floats(r, 24), None, None] + past, 3, num_heads=2, unidirectional=1)


@case
def rotary_embedding(r):
    half = np.arange(4) / 4
    angles = np.outer(np.arange(9), 10.0**-half)
    cos, sin = np.cos(angles).astype(F32), np.sin(angles).astype(F32)
    ids = np.array([[3, 4, 5], [0, 8, 2]], np.int64)
    first = np.array([2], np.int64)
    for name, x in [("by_head", floats(r, 2, 5, 3, 8)), ("rows", floats(r, 2, 3, 40))]:
        yield f"{name}_ids", Case("RotaryEmbedding", [x, ids, cos, sin], opset=17)
        yield f"{name}_first", Case("RotaryEmbedding", [x, first, cos, sin], opset=17)
        yield f"{name}_interleaved", Case("RotaryEmbedding", [x, ids, cos, sin], opset=17, interleaved=1)
    x = floats(r, 2, 3, 48)
    yield "part", Case("RotaryEmbedding", [x, first, cos, sin], opset=17, num_heads=4, rotary_embedding_dim=8)


def grouped(r, batch, length, past, lengths, total, packed=False, rotary=False, bias=False, heads=4, kv=2, size=16):
    """Inputs of GroupQueryAttention; `past` is the extent of the cache, or None."""
    q, k, v = floats(r, batch, length, heads * size), floats(r, batch, length, kv * size), floats(r, batch, length, kv * size)
    first = [np.concatenate([q, k, v], 2), None, None] if packed else [q, k, v]
    cache = [None, None] if past is None else [floats(r, batch, kv, past, size), floats(r, batch, kv, past, size)]
    angles = np.outer(np.arange(20), 10.0 ** -(np.arange(size // 2) / (size // 2)))
    tables = [np.cos(angles).astype(F32), np.sin(angles).astype(F32)] if rotary else [None, None]
    added = [None, floats(r, 1, heads, length, total)] if bias else []
    return first + cache + [np.array(lengths, I32), np.array(total, I32)] + tables + added


@case
def group_query_attention(r):
    def make(*args, attrs={}, **kwargs):
        inputs = grouped(r, *args, **kwargs)
        return Case("GroupQueryAttention", inputs, 3, opset=17, num_heads=4, kv_num_heads=2, do_rotary=int(kwargs.get("rotary", 0)), **attrs)

    yield "prompt", make(2, 5, None, [4, 4], 5)
    yield "prompt_packed_rotary", make(2, 5, None, [4, 4], 5, packed=True, rotary=True)
    yield "prompt_past_of_length_0", make(1, 5, 0, [4], 5, rotary=True)
    yield "step", make(2, 1, 7, [7, 7], 8)
    yield "step_of_different_lengths", make(2, 1, 9, [7, 4], 8, packed=True, rotary=True)
    yield "step_interleaved", make(1, 1, 7, [7], 8, rotary=True, attrs={"rotary_interleaved": 1})
    yield "steps", make(1, 3, 7, [9], 10, rotary=True)
    yield "scale", make(1, 3, 7, [9], 10, attrs={"scale": 0.1})
    yield "softcap", make(1, 3, 7, [9], 10, attrs={"softcap": 0.5})
    yield "window_of_a_prompt", make(1, 6, None, [5], 6, attrs={"local_window_size": 2})
    yield "window_of_a_step", make(1, 1, 7, [7], 8, attrs={"local_window_size": 3})
    yield "bias", make(1, 3, 7, [9], 10, bias=True)
    yield "bias_softcap", make(1, 3, 7, [9], 10, bias=True, attrs={"softcap": 0.5})


@case
def fourier(r):
    axis = np.array(1, np.int64)

    def dft(*inputs, op="DFT", opset=20, **attrs):
        # ONNX Runtime transforms lengths other than powers of two in f32, with errors of 1e-5 of the largest number.
        return Case(op, list(inputs), domain="", opset=opset, atol=1e-3, **attrs)

    def number(n):
        return np.array(n, np.int64)

    for length in [1, 8, 12, 37, 60]:
        real, whole = floats(r, 2, length, 3, 1), floats(r, 2, length, 3, 2)
        yield f"real_{length}", dft(real, None, axis)
        yield f"complex_{length}", dft(whole, None, axis)
        yield f"onesided_{length}", dft(real, None, axis, onesided=1)
        yield f"inverse_{length}", dft(whole, None, axis, inverse=1)
        yield f"opset_17_{length}", dft(whole, opset=17, axis=1)
    x = floats(r, 2, 10, 1)
    yield "cut", dft(x, number(7), axis)
    yield "filled", dft(x, number(16), axis)
    signal, window = floats(r, 2, 50, 1), floats(r, 16)
    yield "frames", dft(signal, number(5), window, op="STFT", opset=17, const=(1,))
    yield "frames_twosided", dft(signal, number(5), window, number(16), op="STFT", opset=17, onesided=0)
    yield "frames_without_window", dft(signal, number(7), None, number(12), op="STFT", opset=17)


if __name__ == "__main__":
    main()
