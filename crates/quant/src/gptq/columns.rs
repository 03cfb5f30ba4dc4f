//! The input columns of a product: the vectors x of which each output is `w · x` for some weights w.

use narrowbit_ir::{Graph, NodeId, QuantRole, ValueId};
use narrowbit_ops::nn::{Conv, ConvTranspose, Window};
use narrowbit_runtime::View;

/// How the columns of a product lie in what it reads, and its weights in their tensor.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    /// The value that is multiplied.
    pub source: ValueId,
    /// Parts of the input channels with weights of their own.
    pub groups: usize,
    /// Inputs of an output, within a group.
    pub k: usize,
    /// Output channels of a group.
    pub n: usize,
    form: Form,
    /// Equal for products that read one value in the same columns.
    pub key: String,
}

#[derive(Debug, Clone)]
enum Form {
    /// Rows of a matrix; whether it is transposed, and whether the weight is `[n, k]`.
    Rows { transposed: bool, by_output: bool },
    /// The windows of a convolution.
    Windows { op: Windows, weight: Vec<usize> },
}

#[derive(Debug, Clone)]
enum Windows {
    Conv(Conv),
    Transpose(ConvTranspose),
}

impl Columns {
    /// The columns of a node's weighted product; `None` for products that have no such form (deformable convolutions,
    /// weights of more than a matrix).
    pub fn of(graph: &Graph, id: NodeId) -> Option<Columns> {
        let node = graph.node(id);
        let QuantRole::Weighted { data, weight, .. } = node.op.quant() else { return None };
        let (source, w) = (node.input(data)?, graph.const_input(id, weight)?);
        let shape = w.shape();
        if w.is_empty() {
            return None;
        }
        let flag = |name: &str| node.op.attrs().int_or(name, 0).is_ok_and(|v| v != 0);
        let (groups, k, n, form) = match (node.op.name(), shape) {
            ("MatMul" | "Gemm", &[rows, columns]) => {
                let by_output = node.op.name() == "Gemm" && flag("transB");
                let (k, n) = if by_output { (columns, rows) } else { (rows, columns) };
                (1, k, n, Form::Rows { transposed: flag("transA"), by_output })
            }
            ("Conv", &[m, per_group, ref kernel @ ..]) => {
                let op = node.op.downcast::<Conv>()?.clone();
                let groups = op.group;
                let form = Form::Windows { op: Windows::Conv(op), weight: shape.to_vec() };
                (groups, per_group * kernel.iter().product::<usize>(), m / groups.max(1), form)
            }
            ("ConvTranspose", &[c, n, ref kernel @ ..]) => {
                let op = node.op.downcast::<ConvTranspose>()?.clone();
                let groups = op.group;
                let form = Form::Windows { op: Windows::Transpose(op), weight: shape.to_vec() };
                (groups, c / groups.max(1) * kernel.iter().product::<usize>(), n, form)
            }
            _ => return None,
        };
        if groups == 0 || groups * k * n != w.len() {
            return None;
        }
        let key = match &form {
            Form::Rows { transposed, .. } => format!("rows {transposed}"),
            Form::Windows { op: Windows::Conv(c), weight } => format!("{c:?} {:?}", &weight[1..]),
            Form::Windows { op: Windows::Transpose(c), weight } => format!("{c:?} {} {:?}", weight[0], &weight[2..]),
        };
        Some(Columns { source, groups, k, n, form, key: format!("{groups} {k} {key}") })
    }

    /// Whether the weights of another product lie in their tensor in the same way.
    pub fn same_layout(&self, other: &Columns) -> bool {
        let kind = |c: &Columns| match &c.form {
            Form::Rows { by_output, .. } => (usize::from(*by_output), 0),
            Form::Windows { op: Windows::Conv(_), .. } => (2, 0),
            Form::Windows { op: Windows::Transpose(_), weight } => (3, weight[2..].iter().product()),
        };
        (self.groups, self.k, self.n, kind(self)) == (other.groups, other.k, other.n, kind(other))
    }

    /// The place in the weight's tensor of input `k` of output channel `n` of a group.
    pub fn place(&self, group: usize, n: usize, k: usize) -> usize {
        match &self.form {
            Form::Rows { by_output: false, .. } => k * self.n + n,
            Form::Windows { op: Windows::Transpose(_), weight } => {
                let taps: usize = weight[2..].iter().product();
                ((group * (self.k / taps) + k / taps) * self.n + n) * taps + k % taps
            }
            _ => (group * self.n + n) * self.k + k,
        }
    }

    /// The columns of one run; `None` where the value has another shape than the product takes.
    pub fn view<'a>(&'a self, view: &View<'a>, values: &'a [f32]) -> Option<ColumnsOf<'a>> {
        match &self.form {
            Form::Rows { transposed, .. } => {
                let rows = values.len() / self.k;
                let fits = view.shape.len() != 1 || !transposed;
                let fits =
                    fits && view.shape.iter().product::<usize>() == values.len() && rows * self.k == values.len();
                let step = if *transposed { (1, rows) } else { (self.k, 1) };
                let layout = Layout::Matrix { step };
                (fits && !view.channels_last).then_some(ColumnsOf { columns: self, values, rows, layout })
            }
            Form::Windows { op, weight } => {
                let (window, batch, channels, transposed) = match op {
                    Windows::Conv(op) => {
                        let s = op.resolve(view.shape, weight).ok()?;
                        (s.window, s.batch, s.c, false)
                    }
                    Windows::Transpose(op) => {
                        let s = op.resolve(view.shape, weight).ok()?;
                        (s.window, s.batch, s.c, true)
                    }
                };
                let pixels = if transposed { &window.output } else { &window.input };
                let area: usize = pixels.iter().product();
                if batch * channels * area != values.len() || self.k * self.groups != channels * window.taps() {
                    return None;
                }
                let (channel, pixel) = if view.channels_last { (1, channels) } else { (area, 1) };
                let taps = taps(&window, transposed);
                let image = Image { taps, inputs: pixels.clone(), channel, pixel, size: channels * area };
                let rows = batch * image.taps.iter().map(Vec::len).product::<usize>();
                Some(ColumnsOf { columns: self, values, rows, layout: Layout::Image(image) })
            }
        }
    }

    /// The columns of values from which positions were left out, rows one after the other.
    pub fn of_rows<'a>(&'a self, values: &'a [f32]) -> Option<ColumnsOf<'a>> {
        let plain = matches!(self.form, Form::Rows { transposed: false, .. }) && values.len().is_multiple_of(self.k);
        let layout = Layout::Matrix { step: (self.k, 1) };
        plain.then_some(ColumnsOf { columns: self, values, rows: values.len() / self.k, layout })
    }

    /// Whether the columns are rows of a matrix.
    pub fn is_rows(&self) -> bool {
        matches!(self.form, Form::Rows { .. })
    }
}

/// Along each axis, by position of the output: the place that each tap reads, in elements of the axis.
fn taps(window: &Window, transposed: bool) -> Vec<Vec<Vec<Option<usize>>>> {
    let axis = |a: usize| {
        let (stride, dilation, begin) = (window.strides[a], window.dilations[a], window.begins[a]);
        // A transposed convolution writes where a convolution reads.
        let (outputs, inputs) = match transposed {
            true => (window.input[a], window.output[a]),
            false => (window.output[a], window.input[a]),
        };
        let at = |o: usize, t: usize| match transposed {
            true => (o + begin).checked_sub(t * dilation).filter(|p| p % stride == 0).map(|p| p / stride),
            false => (o * stride + t * dilation).checked_sub(begin),
        };
        let of = |o: usize| (0..window.kernel[a]).map(|t| at(o, t).filter(|&i| i < inputs)).collect();
        (0..outputs).map(of).collect()
    };
    (0..window.rank()).map(axis).collect()
}

/// The columns of one run.
pub(crate) struct ColumnsOf<'a> {
    columns: &'a Columns,
    values: &'a [f32],
    /// How many there are.
    pub rows: usize,
    layout: Layout,
}

enum Layout {
    /// Steps to the next row, and within a row.
    Matrix {
        step: (usize, usize),
    },
    Image(Image),
}

struct Image {
    /// By axis, position and tap: the place in the input.
    taps: Vec<Vec<Vec<Option<usize>>>>,
    /// Pixels along each axis.
    inputs: Vec<usize>,
    /// Elements to the next channel, and to the next pixel.
    channel: usize,
    pixel: usize,
    /// Elements of a sample.
    size: usize,
}

impl ColumnsOf<'_> {
    /// The matrix `[rows, k]` itself, where it lies in memory like that.
    pub fn matrix(&self) -> Option<&[f32]> {
        let lies = match &self.layout {
            Layout::Matrix { step } => step.1 == 1,
            Layout::Image(image) => image.channel == 1 && self.columns.groups == 1 && image.is_pixels(),
        };
        lies.then_some(self.values)
    }

    /// Writes one column of all groups, `[groups, k]`.
    pub fn gather(&self, row: usize, to: &mut [f32]) {
        match &self.layout {
            Layout::Matrix { step } => {
                to.iter_mut().enumerate().for_each(|(i, t)| *t = self.values[row * step.0 + i * step.1]);
            }
            Layout::Image(image) => {
                let places = image.places(row);
                let positions = self.rows / (self.values.len() / image.size).max(1);
                let sample = &self.values[row / positions.max(1) * image.size..][..image.size];
                // Channels of a group follow those of the one before.
                for (c, to) in to.chunks_exact_mut(places.len()).enumerate() {
                    let channel = &sample[c * image.channel..];
                    let read = |p: &Option<usize>| p.map_or(0.0, |p| channel[p * image.pixel]);
                    to.iter_mut().zip(&places).for_each(|(t, p)| *t = read(p));
                }
            }
        }
    }
}

impl Image {
    /// The pixel that each tap of the window of a row reads; `None` in the padding.
    fn places(&self, row: usize) -> Vec<Option<usize>> {
        let mut places = vec![Some(0usize)];
        let (mut rest, mut extents) = (row, Vec::with_capacity(self.taps.len()));
        for axis in self.taps.iter().rev() {
            extents.push(rest % axis.len().max(1));
            rest /= axis.len().max(1);
        }
        for ((axis, &at), input) in self.taps.iter().zip(extents.iter().rev()).zip(&self.inputs) {
            places = places.iter().flat_map(|p| axis[at].iter().map(move |t| Some((*p)? * input + (*t)?))).collect();
        }
        places
    }

    /// Whether each window is one pixel, in order.
    fn is_pixels(&self) -> bool {
        let identity = |axis: &Vec<Vec<Option<usize>>>| axis.iter().enumerate().all(|(i, taps)| taps[..] == [Some(i)]);
        self.taps.iter().zip(&self.inputs).all(|(axis, &input)| axis.len() == input && identity(axis))
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::text;
    use narrowbit_ops::Registry;
    use narrowbit_runtime::{Options, Session};
    use narrowbit_tensor::{SplitMix64, Tensor};

    use super::*;

    fn noise(shape: &[usize], seed: u64) -> Tensor {
        let mut r = SplitMix64::new(seed);
        Tensor::new(shape, (0..shape.iter().product()).map(|_| r.normal() as f32).collect::<Vec<f32>>()).unwrap()
    }

    /// The product computed from columns and places, beside the operator's own result; channels first, or last for images.
    fn agrees(node: &str, x: &[usize], w: &[usize], last: bool) {
        let dims = |s: &[usize]| format!("{s:?}");
        let text = format!(
            "model opset=17 graph \"g\" {{ input %x: f32{} const %w: f32{} = random(3) %y = {node} output %y }}",
            dims(x),
            dims(w)
        );
        let model = text::parse_model(&text, &Registry).unwrap();
        let graph = &model.graph;
        let id = graph.nodes().next().unwrap().0;
        let columns = Columns::of(graph, id).unwrap();
        let input = noise(x, 1);
        let weights = graph.const_input(id, 1).unwrap().to_f32s().unwrap().into_owned();
        let y = Session::new(graph.clone(), Options::default())
            .unwrap()
            .run(std::slice::from_ref(&input))
            .unwrap()
            .remove(0);
        let values = input.to_f32s().unwrap();
        let turned: Vec<f32> = match last {
            true => {
                let (c, area) = (x[1], x[2..].iter().product::<usize>());
                (0..values.len()).map(|i| values[i / (c * area) * c * area + i % c * area + i / c % area]).collect()
            }
            false => values.to_vec(),
        };
        let view = View { channels_last: last, ..View::new(x, &turned) };
        let of = columns.view(&view, &turned).unwrap();
        let expected = y.to_f32s().unwrap();
        assert_eq!(of.rows * columns.n * columns.groups, expected.len(), "{node}");
        if let Some(matrix) = of.matrix() {
            let mut row = vec![0.0; columns.k];
            of.gather(of.rows - 1, &mut row);
            assert_eq!(row, matrix[(of.rows - 1) * columns.k..]);
        }
        // Outputs of images lie by channel, those of matrices by row.
        let positions = if columns.is_rows() { 1 } else { of.rows / x[0] };
        let mut column = vec![0.0; columns.groups * columns.k];
        for row in 0..of.rows {
            of.gather(row, &mut column);
            for g in 0..columns.groups {
                let column = &column[g * columns.k..];
                for n in 0..columns.n {
                    let sum: f32 = (0..columns.k).map(|k| column[k] * weights[columns.place(g, n, k)]).sum();
                    let m = columns.groups * columns.n;
                    let at = (row / positions * m + g * columns.n + n) * positions + row % positions;
                    assert!((sum - expected[at]).abs() < 1e-4, "{node} {row} {g} {n}: {sum} {}", expected[at]);
                }
            }
        }
    }

    #[test]
    fn gives_the_columns_that_each_product_multiplies() {
        agrees("MatMul(%x, %w)", &[2, 3, 5], &[5, 4], false);
        agrees("Gemm(%x, %w)", &[3, 5], &[5, 4], false);
        agrees("Gemm(%x, %w) {transB=1}", &[3, 5], &[4, 5], false);
        agrees("Gemm(%x, %w) {transA=1}", &[5, 3], &[5, 4], false);
        for last in [false, true] {
            agrees("Conv(%x, %w)", &[2, 3, 5, 4], &[4, 3, 1, 1], last);
            agrees("Conv(%x, %w) {pads=[1, 0, 2, 1], strides=[2, 1]}", &[2, 3, 6, 5], &[4, 3, 3, 2], last);
            agrees("Conv(%x, %w) {auto_pad=\"SAME_UPPER\", dilations=[2, 1]}", &[1, 2, 7, 6], &[3, 2, 2, 3], last);
            agrees("Conv(%x, %w) {group=3, pads=[1, 1, 1, 1]}", &[2, 6, 4, 4], &[6, 2, 3, 3], last);
            agrees("Conv(%x, %w) {group=4}", &[1, 4, 5, 5], &[4, 1, 3, 3], last);
            agrees("Conv(%x, %w) {pads=[2, 2]}", &[2, 3, 9], &[4, 3, 5], last);
            agrees("ConvTranspose(%x, %w) {strides=[2, 2], pads=[1, 0, 0, 1]}", &[2, 3, 4, 3], &[3, 2, 3, 3], last);
            agrees("ConvTranspose(%x, %w) {group=2, strides=[3, 1]}", &[1, 4, 3, 3], &[4, 3, 2, 2], last);
        }
        agrees("Conv(%x, %w) {strides=[2, 1, 1]}", &[1, 2, 4, 3, 5], &[2, 2, 2, 3, 2], false);
    }

    #[test]
    fn has_no_columns_for_products_of_other_forms() {
        let text = r#"model opset=19 graph "g" { input %x: f32[2, 3, 5] const %w: f32[2, 5, 4] = random(3)
            input %i: f32[1, 1, 4, 4] input %o: f32[1, 18, 2, 2] const %d: f32[1, 1, 3, 3] = random(1)
            %y = MatMul(%x, %w) %z = DeformConv(%i, %d, %o) output %y output %z }"#;
        let model = text::parse_model(text, &Registry).unwrap();
        assert!(model.graph.nodes().all(|(id, _)| Columns::of(&model.graph, id).is_none()));
    }
}
