//! Resizing of images, with Pillow's arithmetic.
//!
//! The filters with antialias follow Pillow's `Resample.c`: one horizontal and one vertical
//! pass, coefficients in f64 normalised to 1, for 8-bit pixels rounded to 22 fractional bits
//! with an 8-bit intermediate; the results are Pillow's to the bit. Own code, because the
//! integer results must not depend on the instruction set, and a calibration set resized here
//! must equal the one that the model was trained with.

use crate::preprocess::ResizeFilter;

/// Fractional bits of a coefficient for 8-bit pixels.
const PRECISION: u32 = 32 - 8 - 2;

/// Pixels in rows, channels last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image<T> {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) channels: usize,
    pub(crate) data: Vec<T>,
}

/// Pixel types and their arithmetic in a resampling pass.
pub(crate) trait Pixel: Copy + Default {
    /// Whether values are whole numbers.
    const IS_INTEGER: bool;
    /// A running sum.
    type Sum: Copy;
    /// A coefficient.
    type Weight: Copy;
    /// The sum of nothing.
    const START: Self::Sum;

    /// This type's coefficients of a table.
    fn weights(table: &Table) -> &[Self::Weight];

    /// `sum + self * weight`.
    fn weigh(self, sum: Self::Sum, weight: Self::Weight) -> Self::Sum;

    /// The pixel of a complete sum.
    fn finish(sum: Self::Sum) -> Self;

    /// A value from `f32`, rounded to nearest where needed.
    fn from_f32(v: f32) -> Self;

    /// The value.
    fn to_f32(self) -> f32;
}

impl Pixel for u8 {
    const IS_INTEGER: bool = true;
    type Sum = i32;
    type Weight = i32;
    /// One half, so that the final shift rounds.
    const START: i32 = 1 << (PRECISION - 1);

    fn weights(table: &Table) -> &[i32] {
        &table.fixed
    }

    fn weigh(self, sum: i32, weight: i32) -> i32 {
        // 8 + 22 bits and a sign fit; one more bit holds the overshoot of cubic filters.
        sum.wrapping_add(i32::from(self).wrapping_mul(weight))
    }

    fn finish(sum: i32) -> u8 {
        (sum >> PRECISION).clamp(0, 255) as u8
    }

    fn from_f32(v: f32) -> u8 {
        v.round_ties_even().clamp(0.0, 255.0) as u8
    }

    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl Pixel for f32 {
    const IS_INTEGER: bool = false;
    type Sum = f64;
    type Weight = f64;
    const START: f64 = 0.0;

    fn weights(table: &Table) -> &[f64] {
        &table.real
    }

    fn weigh(self, sum: f64, weight: f64) -> f64 {
        sum + f64::from(self) * weight
    }

    fn finish(sum: f64) -> f32 {
        sum as f32
    }

    fn from_f32(v: f32) -> f32 {
        v
    }

    fn to_f32(self) -> f32 {
        self
    }
}

/// An image of another size; the image itself where the size is the same.
pub(crate) fn resize<T: Pixel>(image: Image<T>, width: usize, height: usize, filter: ResizeFilter) -> Image<T> {
    if (image.width, image.height) == (width, height) {
        return image;
    }
    match filter {
        ResizeFilter::Nearest => nearest(&image, width, height),
        ResizeFilter::BilinearNoAa => bilinear(&image, width, height),
        _ => {
            let image = if image.width == width { image } else { horizontal(&image, width, filter) };
            if image.height == height { image } else { vertical(&image, height, filter) }
        }
    }
}

/// The filter's half width and value at a distance.
fn kernel(filter: ResizeFilter) -> (f64, fn(f64) -> f64) {
    fn triangle(x: f64) -> f64 {
        (1.0 - x.abs()).max(0.0)
    }
    fn cubic(x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        if x < 1.0 {
            ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * A
        } else {
            0.0
        }
    }
    fn sinc(x: f64) -> f64 {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    }
    fn lanczos(x: f64) -> f64 {
        if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
    }
    fn mean(x: f64) -> f64 {
        if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
    }
    match filter {
        ResizeFilter::Bicubic => (2.0, cubic),
        ResizeFilter::Lanczos => (3.0, lanczos),
        ResizeFilter::Area => (0.5, mean),
        _ => (1.0, triangle),
    }
}

/// For each output position the first input position, and where its coefficients are.
pub(crate) struct Table {
    starts: Vec<(usize, std::ops::Range<usize>)>,
    real: Vec<f64>,
    fixed: Vec<i32>,
}

impl Table {
    fn new(from: usize, to: usize, filter: ResizeFilter) -> Table {
        let (support, value) = kernel(filter);
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = support * stretch;
        let mut table = Table { starts: Vec::with_capacity(to), real: Vec::new(), fixed: Vec::new() };
        for x in 0..to {
            let centre = (x as f64 + 0.5) * scale;
            // Truncation towards zero after adding one half, as the C code casts.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let at = table.real.len();
            let inverse = 1.0 / stretch;
            table.real.extend((first..last).map(|i| value((i as f64 - centre + 0.5) * inverse)));
            let sum: f64 = table.real[at..].iter().sum();
            if sum != 0.0 {
                table.real[at..].iter_mut().for_each(|w| *w /= sum);
            }
            table.starts.push((first, at..table.real.len()));
        }
        let one = f64::from(1u32 << PRECISION);
        table.fixed = table.real.iter().map(|w| (w * one + if *w < 0.0 { -0.5 } else { 0.5 }) as i32).collect();
        table
    }
}

fn horizontal<T: Pixel>(image: &Image<T>, width: usize, filter: ResizeFilter) -> Image<T> {
    let table = Table::new(image.width, width, filter);
    let c = image.channels;
    let mut data = Vec::with_capacity(width * image.height * c);
    let mut sums = vec![T::START; c];
    for row in image.data.chunks_exact(image.width * c) {
        for (first, at) in &table.starts {
            sums.fill(T::START);
            for (pixel, &w) in row[first * c..].chunks_exact(c).zip(&T::weights(&table)[at.clone()]) {
                sums.iter_mut().zip(pixel).for_each(|(s, p)| *s = p.weigh(*s, w));
            }
            data.extend(sums.iter().map(|&s| T::finish(s)));
        }
    }
    Image { width, height: image.height, channels: c, data }
}

fn vertical<T: Pixel>(image: &Image<T>, height: usize, filter: ResizeFilter) -> Image<T> {
    let table = Table::new(image.height, height, filter);
    let stride = image.width * image.channels;
    let mut data = Vec::with_capacity(stride * height);
    let mut sums = vec![T::START; stride];
    for (first, at) in &table.starts {
        sums.fill(T::START);
        for (row, &w) in image.data[first * stride..].chunks_exact(stride).zip(&T::weights(&table)[at.clone()]) {
            sums.iter_mut().zip(row).for_each(|(s, p)| *s = p.weigh(*s, w));
        }
        data.extend(sums.iter().map(|&s| T::finish(s)));
    }
    Image { width: image.width, height, channels: image.channels, data }
}

/// Positions of the nearest input pixels; the sum runs as Pillow's does, error and all.
fn nearest_positions(from: usize, to: usize) -> Vec<usize> {
    let scale = from as f64 / to as f64;
    let mut at = scale * 0.5;
    (0..to)
        .map(|_| {
            let i = (at as usize).min(from.saturating_sub(1));
            at += scale;
            i
        })
        .collect()
}

fn nearest<T: Pixel>(image: &Image<T>, width: usize, height: usize) -> Image<T> {
    let (xs, ys) = (nearest_positions(image.width, width), nearest_positions(image.height, height));
    let c = image.channels;
    let mut data = Vec::with_capacity(width * height * c);
    for y in ys {
        let row = &image.data[y * image.width * c..][..image.width * c];
        xs.iter().for_each(|x| data.extend_from_slice(&row[x * c..][..c]));
    }
    Image { width, height, channels: c, data }
}

/// Neighbours and the weight of the second, for half-pixel centres and clamped borders.
fn neighbours(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f64 / to as f64;
    let at = |x: usize| ((x as f64 + 0.5) * scale - 0.5).max(0.0);
    let last = from.saturating_sub(1);
    (0..to).map(|x| ((at(x) as usize).min(last), (at(x) as usize + 1).min(last), at(x).fract() as f32)).collect()
}

fn bilinear<T: Pixel>(image: &Image<T>, width: usize, height: usize) -> Image<T> {
    let (xs, ys) = (neighbours(image.width, width), neighbours(image.height, height));
    let c = image.channels;
    let pixel = |y: usize, x: usize, k: usize| image.data[(y * image.width + x) * c + k].to_f32();
    let mut data = Vec::with_capacity(width * height * c);
    for &(y0, y1, fy) in &ys {
        for &(x0, x1, fx) in &xs {
            data.extend((0..c).map(|k| {
                let top = pixel(y0, x0, k) * (1.0 - fx) + pixel(y0, x1, k) * fx;
                let low = pixel(y1, x0, k) * (1.0 - fx) + pixel(y1, x1, k) * fx;
                T::from_f32(top * (1.0 - fy) + low * fy)
            }));
        }
    }
    Image { width, height, channels: c, data }
}
