use narrowbit_tensor::{DType, Element, Tensor, TensorError};

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

impl<'a> View<'a> {
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
    /// Never for views that a session makes.
    pub fn to_tensor(&self) -> Result<Tensor, TensorError> {
        fn typed<T: Element>(v: &View) -> Result<Tensor, TensorError> {
            Tensor::new(v.shape, v.slice::<T>()?.to_vec())
        }
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

impl ViewMut<'_> {
    /// The elements.
    ///
    /// # Errors
    /// When `T` does not read this type.
    pub fn slice<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        let wrong = TensorError::Type { expected: T::DTYPE.to_string(), actual: self.dtype };
        if !T::reads(self.dtype) {
            return Err(wrong);
        }
        bytemuck::try_cast_slice_mut(self.bytes).map_err(|_| wrong)
    }
}
