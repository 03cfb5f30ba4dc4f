use narrowbit_tensor::{DType, Element, Tensor, TensorError, memory};

/// A value while a model runs: its type, its shape and its bytes, aligned for every element type.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The element type.
    pub dtype: DType,
    /// The extents, in elements.
    pub shape: &'a [usize],
    /// The elements in row-major order, as [`Tensor::bytes`] lays them out.
    pub bytes: &'a [u8],
    /// Whether the second axis is the innermost one in memory (NHWC).
    pub channels_last: bool,
}

impl Default for View<'_> {
    fn default() -> Self {
        View { dtype: DType::U8, shape: &[], bytes: &[], channels_last: false }
    }
}

impl<'a> View<'a> {
    /// A view of elements in row-major order; [`Session::run_into`](crate::Session::run_into) checks that there are as many as the
    /// shape says.
    pub fn new<T: Element>(shape: &'a [usize], elements: &'a [T]) -> View<'a> {
        View { dtype: T::DTYPE, shape, bytes: bytemuck::cast_slice(elements), channels_last: false }
    }

    /// A view of a tensor, whose bytes must be aligned for its type.
    pub(crate) fn of(t: &'a Tensor) -> View<'a> {
        // No elements are aligned for every type, wherever they are said to stand.
        let bytes = if t.bytes().is_empty() { bytemuck::cast_slice::<u64, u8>(&[]) } else { t.bytes() };
        View { dtype: t.dtype(), shape: t.shape(), bytes, channels_last: false }
    }

    /// Whether the bytes are those of the shape, and aligned for the type.
    pub(crate) fn is_whole(&self) -> bool {
        is_whole(self.dtype, self.shape, self.bytes)
    }

    /// The elements.
    ///
    /// # Errors
    /// When `T` does not read this type.
    pub fn slice<T: Element>(&self) -> Result<&'a [T], TensorError> {
        let wrong = || TensorError::Type { expected: T::DTYPE.to_string(), actual: self.dtype };
        if !T::reads(self.dtype) {
            return Err(wrong());
        }
        bytemuck::try_cast_slice(self.bytes).map_err(|_| wrong())
    }

    /// A copy as a tensor.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn to_tensor(&self) -> Result<Tensor, TensorError> {
        fn typed<T: Element>(v: &View) -> Result<Tensor, TensorError> {
            Tensor::new(v.shape, v.slice::<T>()?.to_vec())
        }
        memory::check(self.bytes.len(), 0)?;
        if self.channels_last {
            return self.plain();
        }
        // Typed vectors keep their alignment, so that reading them back borrows.
        match self.dtype {
            DType::F32 => typed::<f32>(self),
            DType::I64 => typed::<i64>(self),
            DType::I32 => typed::<i32>(self),
            DType::F64 => typed::<f64>(self),
            _ => Tensor::from_bytes(self.dtype, self.shape, self.bytes.to_vec()),
        }
    }
}

impl View<'_> {
    /// A copy with the channels moved back to the second axis.
    fn plain(&self) -> Result<Tensor, TensorError> {
        let size = self.dtype.bits() / 8;
        let [n, c] = [self.shape[0], self.shape[1]];
        let pixels: usize = self.shape[2..].iter().product();
        let mut bytes = vec![0; self.bytes.len()];
        for (i, element) in bytes.chunks_exact_mut(size.max(1)).enumerate() {
            let (image, channel, pixel) = (i / (c * pixels), i / pixels % c, i % pixels);
            let at = ((image * pixels + pixel) * c + channel) * size;
            element.copy_from_slice(&self.bytes[at..at + size]);
        }
        debug_assert_eq!(n * c * pixels * size, self.bytes.len());
        Tensor::from_bytes(self.dtype, self.shape, bytes)
    }
}

/// A value that a kernel fills.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// The element type.
    pub dtype: DType,
    /// The extents, in elements.
    pub shape: &'a [usize],
    /// The elements; what they hold beforehand is arbitrary, but for a value made in place.
    pub bytes: &'a mut [u8],
}

impl Default for ViewMut<'_> {
    fn default() -> Self {
        ViewMut { dtype: DType::U8, shape: &[], bytes: &mut [] }
    }
}

/// Whether bytes are those of the type and shape, and aligned for it.
fn is_whole(dtype: DType, shape: &[usize], bytes: &[u8]) -> bool {
    let len = shape.iter().try_fold(1usize, |len, &d| len.checked_mul(d));
    let aligned = bytes.as_ptr().align_offset((dtype.bits() / 8).clamp(1, 8)) == 0;
    aligned && len.and_then(|len| dtype.byte_len(len)) == Some(bytes.len())
}

impl<'a> ViewMut<'a> {
    /// A view of elements that are filled; [`Session::run_into`](crate::Session::run_into) checks that there are as many as the shape
    /// says.
    pub fn new<T: Element>(shape: &'a [usize], elements: &'a mut [T]) -> ViewMut<'a> {
        ViewMut { dtype: T::DTYPE, shape, bytes: bytemuck::cast_slice_mut(elements) }
    }
}

impl ViewMut<'_> {
    /// Whether the bytes are those of the shape, and aligned for the type.
    pub(crate) fn is_whole(&self) -> bool {
        is_whole(self.dtype, self.shape, self.bytes)
    }

    /// The elements.
    ///
    /// # Errors
    /// When `T` does not read this type.
    pub fn slice<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        let actual = self.dtype;
        let wrong = || TensorError::Type { expected: T::DTYPE.to_string(), actual };
        if !T::reads(actual) {
            return Err(wrong());
        }
        bytemuck::try_cast_slice_mut(self.bytes).map_err(|_| wrong())
    }
}
