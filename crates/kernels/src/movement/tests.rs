//! Whatever moves elements gives the same ones on every tier, and touches nothing beside its operands.

use super::*;
use crate::testing::{Guarded, Random, assert_same_everywhere, bits};

/// Elements of any type, for comparison.
fn words<T: Copy + Into<u64>>(x: &[T]) -> Vec<u32> {
    x.iter().map(|&v| v.into()).flat_map(|v: u64| [v as u32, (v >> 32) as u32]).collect()
}

fn assert_permutes<T: Element + Into<u64>>(shape: &[usize], axes: &[usize], make: impl Fn(u64) -> T) {
    let mut r = Random::new(61);
    let x: Vec<T> = (0..shape.iter().product()).map(|_| make(r.next())).collect();
    assert_same_everywhere(&format!("{shape:?} {axes:?}"), &|exec, edge| {
        let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![T::default(); x.len()]));
        permute(exec, x.get(), shape, axes, y.get()).unwrap();
        words(y.get())
    });
}

#[test]
fn permutes_alike_everywhere() {
    let cases: [(&[usize], &[usize]); 9] = [
        (&[], &[]),
        (&[7], &[0]),
        (&[1, 9], &[1, 0]),
        (&[37, 65], &[1, 0]),
        (&[17, 15], &[1, 0]),
        (&[2, 50, 3, 16], &[0, 2, 1, 3]),
        (&[2, 3, 49, 17], &[0, 1, 3, 2]),
        (&[2, 9, 11, 5], &[0, 3, 1, 2]),
        (&[3, 7, 33], &[2, 0, 1]),
    ];
    for (shape, axes) in cases {
        assert_permutes(shape, axes, |v| v as u8);
        assert_permutes(shape, axes, |v| v as u16);
        assert_permutes(shape, axes, |v| v as u32);
        assert_permutes(shape, axes, |v| v);
    }
}

fn assert_copies<T: Element + Into<u64>>(dims: &[(usize, usize)], make: impl Fn(u64) -> T) {
    let reach = dims.iter().map(|&(len, step)| (len - 1) * step).sum::<usize>() + 1;
    let mut r = Random::new(62);
    // Nothing stands behind the last element that the view reaches.
    let x: Vec<T> = (0..reach).map(|_| make(r.next())).collect();
    let len = dims.iter().map(|dim| dim.0).product();
    assert_same_everywhere(&format!("{dims:?}"), &|exec, edge| {
        let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![T::default(); len]));
        copy_strided(exec, x.get(), dims, y.get()).unwrap();
        words(y.get())
    });
}

#[test]
fn copies_views_alike_everywhere() {
    let cases: [&[(usize, usize)]; 8] = [
        &[(1, 1)],
        &[(9, 2)],
        &[(33, 0)],
        &[(3, 20), (4, 2)],
        &[(17, 1), (9, 17)],
        &[(65, 1), (67, 130)],
        &[(5, 3), (7, 0), (3, 1)],
        &[(2, 1000), (15, 1), (31, 16)],
    ];
    for dims in cases {
        assert_copies(dims, |v| v as u8);
        assert_copies(dims, |v| v as u16);
        assert_copies(dims, |v| v as u32);
        assert_copies(dims, |v| v);
    }
}

#[test]
fn gathers_and_pads_alike_everywhere() {
    let mut r = Random::new(63);
    for [rows, columns, count] in [[1, 1, 1], [9, 7, 5], [3, 33, 40], [50, 1000, 70]] {
        let x: Vec<u8> = (0..rows * columns).map(|_| r.next() as u8).collect();
        let indices: Vec<usize> = (0..count).map(|i| if i == 0 { rows - 1 } else { r.below(rows) }).collect();
        assert_same_everywhere(&format!("{count} of {rows} rows of {columns}"), &|exec, edge| {
            let (mut x, mut indices) = (Guarded::at(edge, &x), Guarded::at(edge, &indices));
            let mut y = Guarded::at(edge, &vec![0u8; count * columns]);
            gather_rows(exec, x.get(), [rows, columns], indices.get(), y.get()).unwrap();
            words(y.get())
        });
    }
    for axes in [&[(5, 1, 2)][..], &[(2, 0, 1), (3, 2, 0), (17, 3, 9)], &[(2, 0, 0), (130, 0, 7), (3, 0, 0)]] {
        let axes: Vec<Padding> = axes.iter().map(|&(len, before, after)| Padding { len, before, after }).collect();
        let len = |f: fn(&Padding) -> usize| axes.iter().map(f).product::<usize>();
        let x: Vec<u32> = (0..len(|a| a.len)).map(|_| r.next() as u32).collect();
        assert_same_everywhere(&format!("{axes:?}"), &|exec, edge| {
            let mut x = Guarded::at(edge, &x);
            let mut y = Guarded::at(edge, &vec![0u32; len(|a| a.before + a.len + a.after)]);
            pad(exec, x.get(), &axes, 9, y.get()).unwrap();
            words(y.get())
        });
    }
}

#[test]
fn reads_floats_alike_everywhere() {
    let mut r = Random::new(64);
    for len in [0, 1, 17, 1000, 200_003] {
        let bytes: Vec<u8> = r.vec(len).iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_same_everywhere(&format!("{len} floats"), &|exec, edge| {
            let (mut x, mut y) = (Guarded::at(edge, &bytes), Guarded::at(edge, &vec![0f32; len]));
            floats_of(exec, x.get(), y.get()).unwrap();
            bits(y.get())
        });
    }
}

const IMAGES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [2, 3, 5, 1], [3, 9, 31, 1], [2, 4, 3, 7], [1, 5, 9, 17], [1, 20, 20, 24]];

fn assert_resizes<T: Element + Into<u64>>(shape: [usize; 4], tables: [&[usize]; 2], make: impl Fn(u64) -> T) {
    let [planes, _, _, c] = shape;
    let mut r = Random::new(65);
    let x: Vec<T> = (0..shape.iter().product()).map(|_| make(r.next())).collect();
    assert_same_everywhere(&format!("{shape:?} {}×{}", tables[0].len(), tables[1].len()), &|exec, edge| {
        let (mut x, [mut rows, mut columns]) = (Guarded::at(edge, &x), tables.map(|t| Guarded::at(edge, t)));
        let mut y = Guarded::at(edge, &vec![T::default(); planes * tables[0].len() * tables[1].len() * c]);
        resize_nearest(exec, x.get(), shape, rows.get(), columns.get(), y.get()).unwrap();
        words(y.get())
    });
}

#[test]
fn resizes_alike_everywhere() {
    let mut r = Random::new(66);
    for shape in IMAGES {
        let [_, h, w, _] = shape;
        let repeated = |n: usize, times: usize| (0..n * times).map(|j| j / times).collect::<Vec<_>>();
        let mut any = |n: usize, len: usize| (0..len).map(|_| r.below(n)).collect::<Vec<_>>();
        let tables = [
            [repeated(h, 1), repeated(w, 2)],
            [repeated(h, 3), repeated(w, 3)],
            [repeated(h, 4), repeated(w, 8)],
            [any(h, 2 * h + 1), any(w, 2 * w + 1)],
            // The last pixel last.
            [vec![h - 1], [any(w, w / 2), vec![w - 1]].concat()],
        ];
        for tables in &tables {
            let tables = tables.each_ref().map(Vec::as_slice);
            assert_resizes(shape, tables, |v| v as u8);
            assert_resizes(shape, tables, |v| v as u16);
            assert_resizes(shape, tables, |v| v as u32);
            assert_resizes(shape, tables, |v| v);
        }
    }
}

/// Starts, elements and weights of one axis.
type Table = (Vec<usize>, Vec<usize>, Vec<f64>);

/// Up to three taps for each element, the last of which is the last of the axis.
fn table(from: usize, to: usize, r: &mut Random) -> Table {
    let mut t: Table = (vec![0], Vec::new(), Vec::new());
    for i in 0..to {
        for _ in 0..r.below(4) {
            t.1.push(r.below(from));
            t.2.push(f64::from(r.unit()) * 0.7);
        }
        if i + 1 == to {
            t.1.push(from - 1);
            t.2.push(0.3);
        }
        t.0.push(t.1.len());
    }
    t
}

fn assert_resamples<T: Sample + Copy + Default>(
    shape: [usize; 4],
    tables: &[Table; 2],
    x: &[T],
    words: fn(&[T]) -> Vec<u32>,
) {
    let lens = tables.each_ref().map(|t| t.0.len() - 1);
    for (columns_first, round) in [(false, false), (true, true)] {
        assert_same_everywhere(&format!("{shape:?} to {lens:?}"), &|exec, edge| {
            let mut guarded =
                tables.each_ref().map(|t| (Guarded::at(edge, &t.0), Guarded::at(edge, &t.1), Guarded::at(edge, &t.2)));
            let [rows, columns] =
                guarded.each_mut().map(|t| Taps { starts: t.0.get(), index: t.1.get(), weight: t.2.get() });
            let mut x = Guarded::at(edge, x);
            let mut y = Guarded::at(edge, &vec![T::default(); shape[0] * lens[0] * lens[1] * shape[3]]);
            resample(exec, &Resample { shape, rows, columns, columns_first, round }, x.get(), y.get()).unwrap();
            words(y.get())
        });
    }
}

#[test]
fn resamples_to_the_same_bits_everywhere() {
    let mut r = Random::new(67);
    for shape in IMAGES {
        let [_, h, w, _] = shape;
        let tables = [table(h, 2 * h + 1, &mut r), table(w, w.div_ceil(2) + 1, &mut r)];
        let x = r.vec(shape.iter().product());
        let codes: Vec<u8> = x.iter().map(|v| (v * 127.0 + 128.0) as u8).collect();
        assert_resamples(shape, &tables, &x, bits);
        assert_resamples(shape, &tables, &codes, words::<u8>);
    }
}
