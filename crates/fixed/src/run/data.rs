//! Integers in memory.

/// A vector of integers of some width.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Data {
    I8(Vec<i8>),
    U8(Vec<u8>),
    I16(Vec<i16>),
    U16(Vec<u16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// A width of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Width {
    I8,
    U8,
    I16,
    U16,
    I32,
    I64,
}

impl Width {
    /// Whether 32 bits hold its integers.
    pub fn is_narrow(self) -> bool {
        self != Width::I64
    }

    /// The narrowest width that holds all integers of a range.
    pub fn narrowest((low, high): (i64, i64)) -> Width {
        let within = |least: i64, greatest: i64| low >= least && high <= greatest;
        match () {
            () if within(-128, 127) => Width::I8,
            () if within(0, 255) => Width::U8,
            () if within(-32768, 32767) => Width::I16,
            () if within(0, 65535) => Width::U16,
            () => Width::wide((low, high)),
        }
    }

    /// The narrowest signed width that holds all integers of a range, 32 bits at the least.
    pub fn wide((low, high): (i64, i64)) -> Width {
        if low >= i64::from(i32::MIN) && high <= i64::from(i32::MAX) { Width::I32 } else { Width::I64 }
    }
}

/// Runs an expression on the vector that a [`Data`] holds.
macro_rules! with_ints {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::run::Data::I8($v) => $body,
            $crate::run::Data::U8($v) => $body,
            $crate::run::Data::I16($v) => $body,
            $crate::run::Data::U16($v) => $body,
            $crate::run::Data::I32($v) => $body,
            $crate::run::Data::I64($v) => $body,
        }
    };
}
pub(crate) use with_ints;

/// The same for integers of up to 32 bits; wider ones are the error `$wide`.
macro_rules! with_narrow {
    ($data:expr, $v:ident => $body:expr, $wide:expr) => {
        match $data {
            $crate::run::Data::I8($v) => $body,
            $crate::run::Data::U8($v) => $body,
            $crate::run::Data::I16($v) => $body,
            $crate::run::Data::U16($v) => $body,
            $crate::run::Data::I32($v) => $body,
            $crate::run::Data::I64(_) => return Err($wide),
        }
    };
}
pub(crate) use with_narrow;

/// An integer of a width: as 64 bits and back, where it is known to fit.
pub trait Int: Copy + Default + Send + Sync + 'static {
    /// The value.
    fn wide(self) -> i64;
    /// The low bits; lowering has proved that nothing else is there.
    fn low(x: i64) -> Self;
}

macro_rules! int {
    ($($type:ty)*) => {$(
        impl Int for $type {
            #[inline(always)]
            fn wide(self) -> i64 {
                self as i64
            }
            #[inline(always)]
            fn low(x: i64) -> Self {
                x as Self
            }
        }
    )*};
}
int!(i8 u8 i16 u16 i32 i64);

impl Data {
    /// Zeros.
    pub fn zeros(width: Width, len: usize) -> Data {
        match width {
            Width::I8 => Data::I8(vec![0; len]),
            Width::U8 => Data::U8(vec![0; len]),
            Width::I16 => Data::I16(vec![0; len]),
            Width::U16 => Data::U16(vec![0; len]),
            Width::I32 => Data::I32(vec![0; len]),
            Width::I64 => Data::I64(vec![0; len]),
        }
    }

    /// The width.
    pub fn width(&self) -> Width {
        match self {
            Data::I8(_) => Width::I8,
            Data::U8(_) => Width::U8,
            Data::I16(_) => Width::I16,
            Data::U16(_) => Width::U16,
            Data::I32(_) => Width::I32,
            Data::I64(_) => Width::I64,
        }
    }

    /// The number of integers.
    pub fn len(&self) -> usize {
        with_ints!(self, v => v.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them in 64 bits.
    pub fn to_i64s(&self) -> Vec<i64> {
        with_ints!(self, v => v.iter().map(|x| x.wide()).collect())
    }

    /// Integers of a width that holds them.
    pub fn of(width: Width, values: &[i64]) -> Data {
        let mut data = Data::zeros(width, values.len());
        with_ints!(&mut data, v => v.iter_mut().zip(values).for_each(|(y, &x)| *y = Int::low(x)));
        data
    }
}
