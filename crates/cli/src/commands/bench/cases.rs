//! The kernels and shapes that `bench kernels` measures.

use anyhow::Result;
use narrowbit_kernels::Activation;
use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::elementwise::{self, BinaryOp, UnaryOp};
use narrowbit_kernels::gemm::{BatchDim, Gemm, Lhs, MatrixView, PackedB, Rhs, gemm};
use narrowbit_kernels::integer::{
    self, Broadcast, Quant, RowNorm, depthwise_nhwc, depthwise_nhwc_pack, layer_norm_rows, softmax_rows, unary_rows,
};
use narrowbit_kernels::panel::{
    Epilogue, IntMatMul, Rows, Target, conv2d_nhwc, conv2d_nhwc_pack, conv2d_nhwc_pack_bf16, panel_gemm,
    panel_gemm_pack, panel_gemm_pack_bf16, panel_matmul,
};
use narrowbit_kernels::peak::Arithmetic;
use narrowbit_kernels::quantize::{QuantScales, quantize};
use narrowbit_kernels::reduce::{LayerNorm, LayerNormOutputs, layer_norm, softmax};
use narrowbit_kernels::{Exec, Isa};

/// What a kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    /// u8 by i8, rounded to u8.
    Int8,
    /// Floats that are rounded to bfloat16 on the way.
    Bf16,
    F32,
}

/// A square image and window.
#[derive(Clone, Copy, Debug)]
struct Conv {
    c: usize,
    size: usize,
    oc: usize,
    window: usize,
    stride: usize,
    groups: usize,
}

/// A function of rows or elements, `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    /// A table of u8.
    Lookup,
    AddInt8,
    AddF32,
    GeluF32,
    /// Floats in, u8 out.
    GeluToInt8,
    Quantize,
    SoftmaxF32,
    SoftmaxToInt8,
    LayerNormF32,
    LayerNormToInt8,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// m × k by packed k × n: the panels, and for floats the kernels of MatMul too.
    Panel(Type, [usize; 3]),
    GemmF32([usize; 3]),
    /// Heads of m × k by k × n, both activations.
    MatMulInt8(usize, [usize; 3]),
    Conv(Type, Conv),
    Function(Function, [usize; 2]),
}

/// A kernel on a shape of a network.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    network: &'static str,
    what: What,
}

/// A kernel ready to run, with its operands.
pub struct Case {
    /// The kind of work.
    pub family: &'static str,
    /// What runs.
    pub kernel: String,
    /// The shape, for people.
    pub shape: String,
    /// Where the shape comes from.
    pub network: &'static str,
    /// Multiply-accumulates; 0 where the work is of another kind.
    pub macs: u64,
    /// What they multiply.
    pub arithmetic: Arithmetic,
    /// Bytes of the operands, weights included.
    pub reads: usize,
    /// Bytes of the results.
    pub writes: usize,
    /// Computes once.
    pub run: Run,
}

type Run = Box<dyn FnMut(&Exec) -> Result<()>>;

/// Products with weights: rows, depth, columns.
const PRODUCTS: &[(&str, [usize; 3])] = &[
    ("ViT-B/16", [197, 768, 768]),
    ("ViT-B/16", [197, 768, 2304]),
    ("ViT-B/16", [197, 768, 3072]),
    ("ViT-B/16", [197, 3072, 768]),
    ("DINOv2 ViT-B/14", [1370, 768, 768]),
    ("DINOv2 ViT-B/14", [1370, 768, 3072]),
    ("DINOv2 ViT-B/14", [1370, 3072, 768]),
    ("MiniLM", [128, 384, 384]),
    ("MiniLM", [128, 384, 1536]),
];

/// Channels, size, output channels, window, stride, groups.
const CONVS: &[(&str, [usize; 6])] = &[
    ("ResNet-50", [3, 224, 64, 7, 2, 1]),
    ("ResNet-50", [64, 56, 64, 1, 1, 1]),
    ("ResNet-50", [64, 56, 64, 3, 1, 1]),
    ("ResNet-50", [64, 56, 256, 1, 1, 1]),
    ("ResNet-50", [128, 28, 128, 3, 1, 1]),
    ("ResNet-50", [512, 28, 128, 1, 1, 1]),
    ("ResNet-50", [256, 14, 256, 3, 1, 1]),
    ("ResNet-50", [1024, 14, 256, 1, 1, 1]),
    ("ResNet-50", [512, 7, 512, 3, 1, 1]),
    ("ResNet-50", [2048, 7, 512, 1, 1, 1]),
    ("U-Net", [64, 128, 64, 3, 1, 1]),
    ("MobileNetV2", [96, 112, 96, 3, 2, 96]),
    ("MobileNetV2", [144, 56, 144, 3, 1, 144]),
    ("MobileNetV2", [576, 14, 576, 3, 1, 576]),
];

/// Functions, rows and columns.
const FUNCTIONS: &[(&str, Function, [usize; 2])] = &[
    ("ViT-B/16", Function::Lookup, [197, 3072]),
    ("ResNet-50", Function::AddInt8, [3136, 256]),
    ("ResNet-50", Function::AddF32, [3136, 256]),
    ("ViT-B/16", Function::GeluF32, [197, 3072]),
    ("ViT-B/16", Function::GeluToInt8, [197, 3072]),
    ("ViT-B/16", Function::Quantize, [197, 768]),
    ("ViT-B/16", Function::SoftmaxF32, [2364, 197]),
    ("ViT-B/16", Function::SoftmaxToInt8, [2364, 197]),
    ("ViT-B/16", Function::LayerNormF32, [197, 768]),
    ("ViT-B/16", Function::LayerNormToInt8, [197, 768]),
];

/// Everything, in the order of the report.
pub fn all() -> Vec<Spec> {
    let types = [Type::Int8, Type::Bf16, Type::F32];
    let conv = |&[c, size, oc, window, stride, groups]: &[usize; 6]| Conv { c, size, oc, window, stride, groups };
    let mut all = Vec::new();
    let mut add = |network, what| all.push(Spec { network, what });
    for t in types {
        PRODUCTS.iter().for_each(|&(network, shape)| add(network, What::Panel(t, shape)));
    }
    PRODUCTS.iter().for_each(|&(network, shape)| add(network, What::GemmF32(shape)));
    add("ViT-B/16", What::MatMulInt8(12, [197, 64, 197]));
    add("ViT-B/16", What::MatMulInt8(12, [197, 197, 64]));
    for t in types {
        let convs = CONVS.iter().map(|(network, shape)| (network, conv(shape)));
        // There is no depthwise kernel of bfloat16.
        let convs = convs.filter(|(_, c)| t != Type::Bf16 || c.groups == 1);
        convs.for_each(|(network, c)| add(network, What::Conv(t, c)));
    }
    FUNCTIONS.iter().for_each(|&(network, f, shape)| add(network, What::Function(f, shape)));
    all
}

impl Conv {
    fn params(&self) -> Conv2dParams {
        let Conv { c, size, oc, window, stride, groups } = *self;
        Conv2dParams {
            n: 1,
            c,
            h: size,
            w: size,
            oc,
            kh: window,
            kw: window,
            strides: [stride; 2],
            pads: [window / 2; 4],
            dilations: [1; 2],
            groups,
        }
    }

    fn pixels(&self) -> usize {
        self.size.div_ceil(self.stride).pow(2)
    }
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Function::Lookup => "lookup_u8",
            Function::AddInt8 => "add_u8",
            Function::AddF32 => "add_f32",
            Function::GeluF32 => "gelu_f32",
            Function::GeluToInt8 => "gelu_f32_to_u8",
            Function::Quantize => "quantize_f32_to_u8",
            Function::SoftmaxF32 => "softmax_f32",
            Function::SoftmaxToInt8 => "softmax_f32_to_u8",
            Function::LayerNormF32 => "layer_norm_f32",
            Function::LayerNormToInt8 => "layer_norm_f32_to_u8",
        }
    }

    /// Bytes read and written for each element.
    fn bytes(self) -> [usize; 2] {
        match self {
            Function::Lookup => [1, 1],
            Function::AddInt8 => [2, 1],
            Function::AddF32 => [8, 4],
            Function::GeluF32 | Function::SoftmaxF32 | Function::LayerNormF32 => [4, 4],
            Function::GeluToInt8 | Function::Quantize | Function::SoftmaxToInt8 | Function::LayerNormToInt8 => [4, 1],
        }
    }
}

impl Spec {
    /// Multiply-accumulates; 0 where the work is of another kind.
    pub fn macs(&self) -> u64 {
        let product = |s: &[usize]| s.iter().map(|&d| d as u64).product();
        match &self.what {
            What::Panel(_, s) | What::GemmF32(s) => product(s),
            What::MatMulInt8(heads, s) => *heads as u64 * product(s),
            What::Conv(_, c) => product(&[c.pixels(), c.oc, c.c / c.groups, c.window, c.window]),
            What::Function(..) => 0,
        }
    }

    fn family(&self) -> &'static str {
        match self.what {
            What::Panel(Type::Int8, _) => "int8 product",
            What::Panel(Type::Bf16, _) => "bf16 product",
            What::Panel(Type::F32, _) | What::GemmF32(_) => "f32 product",
            What::MatMulInt8(..) => "int8 product of activations",
            What::Conv(Type::Int8, c) if c.groups > 1 => "int8 depthwise",
            What::Conv(_, c) if c.groups > 1 => "f32 depthwise",
            What::Conv(Type::Int8, _) => "int8 convolution",
            What::Conv(Type::Bf16, _) => "bf16 convolution",
            What::Conv(Type::F32, _) => "f32 convolution",
            What::Function(Function::SoftmaxF32 | Function::SoftmaxToInt8, _) => "softmax",
            What::Function(Function::LayerNormF32 | Function::LayerNormToInt8, _) => "layer norm",
            What::Function(..) => "elementwise",
        }
    }

    fn shape(&self) -> String {
        match &self.what {
            What::Panel(_, [m, k, n]) | What::GemmF32([m, k, n]) => format!("{m}×{k}×{n}"),
            What::MatMulInt8(heads, [m, k, n]) => format!("{heads}·{m}×{k}×{n}"),
            What::Conv(_, c) => {
                let Conv { c, size, oc, window, stride, .. } = c;
                format!("{c}→{oc} {window}×{window}/{stride} at {size}×{size}")
            }
            What::Function(_, [rows, columns]) => format!("{rows}×{columns}"),
        }
    }

    fn kernel(&self) -> &'static str {
        match self.what {
            What::Function(f, _) => f.name(),
            _ => "",
        }
    }

    /// Kind, shape and network.
    pub fn text(&self) -> String {
        format!("{} {} {} ({})", self.family(), self.kernel(), self.shape(), self.network)
    }

    /// Whether that has the text in it, in any case.
    pub fn mentions(&self, text: &str) -> bool {
        self.text().to_lowercase().contains(&text.to_lowercase())
    }

    /// Whether the instruction set has a kernel for it that is worth a measurement.
    pub fn runs_on(&self, isa: Isa) -> bool {
        self.arithmetic() != Arithmetic::Bf16 || isa.multiplies_bf16()
    }

    fn arithmetic(&self) -> Arithmetic {
        match self.what {
            What::Panel(Type::Int8, _) | What::MatMulInt8(..) | What::Conv(Type::Int8, _) => Arithmetic::Int8,
            What::Panel(Type::Bf16, _) | What::Conv(Type::Bf16, _) => Arithmetic::Bf16,
            _ => Arithmetic::F32,
        }
    }

    /// Makes operands of pseudo-random numbers and packs the weights.
    pub fn build(&self, exec: &Exec) -> Result<Case> {
        let (kernel, [reads, writes], run) = match self.what {
            What::Panel(t, shape) => panel(exec, t, shape)?,
            What::GemmF32(shape) => gemm_f32(exec, shape)?,
            What::MatMulInt8(heads, shape) => matmul_int8(heads, shape),
            What::Conv(t, c) if c.groups > 1 => depthwise(exec, t, c)?,
            What::Conv(t, c) => conv(exec, t, c)?,
            What::Function(f, shape) => function(f, shape),
        };
        let arithmetic = self.arithmetic();
        let (family, shape, macs) = (self.family(), self.shape(), self.macs());
        Ok(Case { family, kernel: kernel.into(), shape, network: self.network, macs, arithmetic, reads, writes, run })
    }
}

/// The kernel's name, bytes read and written, and the work.
type Built = (&'static str, [usize; 2], Run);

/// Bytes that look random, the same on each run.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn weights(len: usize) -> Vec<i8> {
    bytes(len).into_iter().map(|b| b as i8).collect()
}

/// Floats in −1 … 1.
fn floats(len: usize) -> Vec<f32> {
    bytes(len).into_iter().map(|b| f32::from(b as i8) / 128.0).collect()
}

/// One over the scale, and the zero point, of every u8 result.
const TARGET: (f32, i32) = (20.0, 128);

/// An epilogue's arrays: scales of integer sums, and a bias.
fn columns(n: usize, depth: usize) -> (Vec<i32>, Vec<f32>, Vec<f32>) {
    (vec![1234; n], vec![1e-4 / (depth as f32).sqrt(); n], vec![0.5; n])
}

fn panel(exec: &Exec, t: Type, [m, k, n]: [usize; 3]) -> Result<Built> {
    let (offsets, scales, bias) = columns(n, k);
    if t != Type::Int8 {
        let (x, mut y) = (floats(m * k), vec![0f32; m * n]);
        let pack = if t == Type::Bf16 { panel_gemm_pack_bf16 } else { panel_gemm_pack::<f32> };
        let w = pack(exec, (k, n), &floats(k * n), false)?;
        let name = w.kernel().name;
        let run = move |exec: &Exec| {
            let epilogue = Epilogue { bias: &bias, ..Epilogue::default() };
            Ok(panel_gemm(exec, Rows::F32(&x), (m, k, k), &w, &epilogue, Target::F32(&mut y))?)
        };
        let size = if t == Type::Bf16 { 2 } else { 4 };
        return Ok((name, [4 * m * k + size * k * n, 4 * m * n], Box::new(run)));
    }
    let (x, mut y) = (bytes(m * k), vec![0u8; m * n]);
    let w = panel_gemm_pack::<i8>(exec, (k, n), &weights(k * n), false)?;
    let name = w.kernel().name;
    let run = move |exec: &Exec| {
        let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
        Ok(panel_gemm(exec, Rows::U8(&x), (m, k, k), &w, &epilogue, Target::U8(&mut y, TARGET.0, TARGET.1))?)
    };
    Ok((name, [m * k + k * n, m * n], Box::new(run)))
}

fn gemm_f32(exec: &Exec, [m, k, n]: [usize; 3]) -> Result<Built> {
    let (x, mut y) = (floats(m * k), vec![0f32; m * n]);
    let b = PackedB::new(exec, MatrixView::row_major(&floats(k * n), n), (k, n), (1, 0))?;
    let name = b.kernel().name;
    let run = move |exec: &Exec| {
        let a = Lhs::View(MatrixView::row_major(&x, k));
        Ok(gemm(exec, &Gemm::new(m, n, k, a, Rhs::Packed(&b)), &mut y)?)
    };
    Ok((name, [4 * (m * k + k * n), 4 * m * n], Box::new(run)))
}

fn matmul_int8(heads: usize, [m, k, n]: [usize; 3]) -> Built {
    let (a, b, mut y) = (bytes(heads * m * k), bytes(heads * k * n), vec![0u8; heads * m * n]);
    let run = move |exec: &Exec| {
        let p = IntMatMul {
            a: (Rows::U8(&a), 128),
            b: (Rows::U8(&b), 128),
            shape: [m, k, n],
            batch: &[BatchDim { len: heads, a: m * k, b: k * n, c: m * n, bias: 0 }],
            scale: 1e-4,
            activation: Activation::None,
        };
        Ok(panel_matmul(exec, &p, Target::U8(&mut y, TARGET.0, TARGET.1))?)
    };
    ("panel_matmul_i8", [heads * (m * k + k * n), heads * m * n], Box::new(run))
}

fn conv(exec: &Exec, t: Type, c: Conv) -> Result<Built> {
    let p = c.params();
    let (image, out, len) = (c.c * c.size * c.size, c.pixels() * c.oc, p.weight_len()?);
    let (offsets, scales, bias) = columns(c.oc, len / c.oc);
    if t != Type::Int8 {
        let (x, mut y) = (floats(image), vec![0f32; out]);
        let pack = if t == Type::Bf16 { conv2d_nhwc_pack_bf16 } else { conv2d_nhwc_pack::<f32> };
        let w = pack(exec, &p, &floats(len))?;
        let name = w.kernel().name;
        let run = move |exec: &Exec| {
            let epilogue = Epilogue { bias: &bias, activation: Activation::Relu, ..Epilogue::default() };
            Ok(conv2d_nhwc(exec, &p, Rows::F32(&x), 0, &w, &epilogue, Target::F32(&mut y))?)
        };
        let size = if t == Type::Bf16 { 2 } else { 4 };
        return Ok((name, [4 * image + size * len, 4 * out], Box::new(run)));
    }
    let (x, mut y) = (bytes(image), vec![0u8; out]);
    let w = conv2d_nhwc_pack::<i8>(exec, &p, &weights(len))?;
    let name = w.kernel().name;
    let run = move |exec: &Exec| {
        let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
        Ok(conv2d_nhwc(exec, &p, Rows::U8(&x), 128, &w, &epilogue, Target::U8(&mut y, TARGET.0, TARGET.1))?)
    };
    Ok((name, [image + len, out], Box::new(run)))
}

fn depthwise(exec: &Exec, t: Type, c: Conv) -> Result<Built> {
    let p = c.params();
    let (image, out, len) = (c.c * c.size * c.size, c.pixels() * c.oc, p.weight_len()?);
    let (offsets, scales, bias) = columns(c.oc, len / c.oc);
    if t == Type::F32 {
        let (x, mut y) = (floats(image), vec![0f32; out]);
        let w = depthwise_nhwc_pack::<f32>(exec, &p, &floats(len), &[])?;
        let run = move |exec: &Exec| {
            let epilogue = Epilogue { bias: &bias, activation: Activation::Relu, ..Epilogue::default() };
            Ok(depthwise_nhwc(exec, &p, Rows::F32(&x), 0, &w, &epilogue, Target::F32(&mut y))?)
        };
        return Ok(("depthwise_nhwc_f32", [4 * (image + len), 4 * out], Box::new(run)));
    }
    let (x, mut y) = (bytes(image), vec![0u8; out]);
    let w = depthwise_nhwc_pack::<i8>(exec, &p, &weights(len), &[])?;
    let run = move |exec: &Exec| {
        let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
        Ok(depthwise_nhwc(exec, &p, Rows::U8(&x), 128, &w, &epilogue, Target::U8(&mut y, TARGET.0, TARGET.1))?)
    };
    Ok(("depthwise_nhwc_i8", [image + len, out], Box::new(run)))
}

fn function(f: Function, [rows, columns]: [usize; 2]) -> Built {
    let len = rows * columns;
    let traffic = f.bytes().map(|b| b * len);
    let run: Run = match f {
        Function::Lookup | Function::AddInt8 => int_function(f, len),
        Function::AddF32 | Function::GeluF32 | Function::SoftmaxF32 | Function::LayerNormF32 => {
            float_function(f, rows, columns)
        }
        _ => rounding_function(f, rows, columns),
    };
    (f.name(), traffic, run)
}

/// Integers to integers.
fn int_function(f: Function, len: usize) -> Run {
    let (x, z, mut y) = (bytes(len), bytes(len), vec![0u8; len]);
    if f == Function::Lookup {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 7) as u8);
        return Box::new(move |exec| Ok(integer::lookup(exec, &x, &table, &mut y)?));
    }
    Box::new(move |exec| {
        let (a, b) = (Quant::U8(&x, 0.02, 128), Quant::U8(&z, 0.03, 120));
        let out = Target::U8(&mut y, TARGET.0, TARGET.1);
        Ok(integer::binary(exec, BinaryOp::Add, a, b, Broadcast::Same, Activation::Relu, out)?)
    })
}

/// Floats to floats.
fn float_function(f: Function, rows: usize, columns: usize) -> Run {
    let len = rows * columns;
    let (x, z, mut y) = (floats(len), floats(len), vec![0f32; len]);
    match f {
        Function::AddF32 => Box::new(move |exec| {
            let (a, b, out) = ((&x[..], &[len][..]), (&z[..], &[len][..]), (&mut y[..], &[len][..]));
            Ok(elementwise::binary(exec, BinaryOp::Add, a, b, out)?)
        }),
        Function::SoftmaxF32 => Box::new(move |exec| Ok(softmax(exec, &x, &mut y, [rows, columns, 1], false)?)),
        Function::LayerNormF32 => Box::new(move |exec| {
            let (scale, bias) = (Some(&z[..columns]), Some(&z[..columns]));
            let params = LayerNorm { scale, bias, epsilon: 1e-5, ..LayerNorm::default() };
            Ok(layer_norm(exec, &x, &mut y, [rows, columns], &params, LayerNormOutputs::default())?)
        }),
        _ => Box::new(move |exec| Ok(elementwise::unary(exec, UnaryOp::Activation(Activation::GeluErf), &x, &mut y)?)),
    }
}

/// Floats to integers.
fn rounding_function(f: Function, rows: usize, columns: usize) -> Run {
    let len = rows * columns;
    let (x, z, mut y) = (floats(len), floats(columns), vec![0u8; len]);
    match f {
        Function::Quantize => Box::new(move |exec| {
            Ok(quantize::<u8>(exec, &x, &mut y, &QuantScales::per_tensor(&(1.0 / TARGET.0), &TARGET.1, len))?)
        }),
        Function::SoftmaxToInt8 => Box::new(move |exec| {
            Ok(softmax_rows(exec, Quant::F32(&x), [rows, columns], false, Target::U8(&mut y, 255.0, 0))?)
        }),
        Function::LayerNormToInt8 => Box::new(move |exec| {
            let norm = RowNorm { scale: Some(&z), bias: Some(&z), epsilon: 1e-5, rms: false };
            let out = Target::U8(&mut y, TARGET.0, TARGET.1);
            Ok(layer_norm_rows(exec, Quant::F32(&x), [rows, columns], &norm, out)?)
        }),
        _ => Box::new(move |exec| {
            let out = Target::U8(&mut y, TARGET.0, TARGET.1);
            Ok(unary_rows(exec, UnaryOp::Activation(Activation::GeluErf), Quant::F32(&x), out)?)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_shapes_of_the_networks_and_every_family() {
        let texts: Vec<String> = all().iter().map(Spec::text).collect();
        let has = |text: &str| texts.iter().any(|t| t.contains(text));
        for shape in ["197×768×768", "197×768×3072", "197×3072×768", "1370×768×3072", "7×7/2 at 224×224"] {
            assert!(has(&format!("int8 product  {shape}")) || has(shape), "{shape}");
        }
        for family in ["int8 product", "f32 product", "int8 convolution", "f32 depthwise", "softmax", "layer norm"] {
            assert!(texts.iter().any(|t| t.starts_with(family)), "{family}");
        }
        assert!(all().iter().any(|s| s.mentions("RESNET")) && !all().iter().any(|s| s.mentions("frobnicate")));
    }

    #[test]
    fn counts_multiply_accumulates_of_a_convolution() {
        let first = Spec {
            network: "ResNet-50",
            what: What::Conv(Type::Int8, Conv { c: 3, size: 224, oc: 64, window: 7, stride: 2, groups: 1 }),
        };
        assert_eq!(first.macs(), 112 * 112 * 64 * 3 * 49);
    }
}
