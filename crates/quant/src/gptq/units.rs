//! What is rounded together: the weights that one set of moments serves, the sets that fit into memory, and the tasks of threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use narrowbit_ir::Graph;
use narrowbit_kernels::Exec;

use super::columns::Columns;
use super::factor::Factor;
use super::feedback::{self, Part, Power};
use super::moments::Moments;
use super::{Left, MOST_INPUTS, Rounded, RoundingError, Weight};
use crate::parallel::in_parallel;

/// The columns of a value; products that read it in the same way share their moments.
pub(super) type Spot = Columns;

/// Weights with the same inputs.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    /// Places in the list of spots, whose moments are added up.
    pub spots: Vec<usize>,
    /// Whether moments are taken about the mean.
    centred: bool,
    /// Places in the list of weights.
    weights: Vec<usize>,
}

/// Output channels of a task.
const OUTPUTS: usize = 128;

/// The spots and units of weights, and the weights that have none.
pub(super) fn of(graph: &Graph, weights: &[Weight], memory: usize) -> (Vec<Spot>, Vec<Unit>, Vec<Left>) {
    let (mut spots, mut units, mut left) = (Vec::<Spot>::new(), Vec::<Unit>::new(), Vec::new());
    let mut known: BTreeMap<(narrowbit_ir::ValueId, String), usize> = BTreeMap::new();
    for (w, weight) in weights.iter().enumerate() {
        let mut leave = |why: String| left.push(Left { node: weight.node.clone(), why });
        let Some(first) = weight.columns.first() else {
            leave("its inputs are no columns of a matrix".into());
            continue;
        };
        let bytes = Moments::bytes(first).saturating_mul(weight.columns.len());
        if first.k > MOST_INPUTS || bytes > memory {
            leave(format!("its outputs have {} inputs, more than {MOST_INPUTS}", first.k));
            continue;
        }
        if weight.columns.iter().any(|c| graph.constant(c.source).is_some()) {
            leave("its input is constant".into());
            continue;
        }
        let mut spot = |c: &Columns| {
            *known.entry((c.source, c.key.clone())).or_insert_with(|| {
                spots.push(c.clone());
                spots.len() - 1
            })
        };
        let found: BTreeSet<usize> = weight.columns.iter().map(&mut spot).collect();
        let found: Vec<usize> = found.into_iter().collect();
        match units.iter_mut().find(|u| u.spots == found && u.centred == weight.centred) {
            Some(unit) => unit.weights.push(w),
            None => units.push(Unit { spots: found, centred: weight.centred, weights: vec![w] }),
        }
    }
    (spots, units, left)
}

/// Units by pass over the samples, so that the moments of each take `memory` bytes at the most.
pub(super) fn passes(spots: &[Spot], units: Vec<Unit>, memory: usize) -> Vec<Vec<Unit>> {
    let mut passes: Vec<Vec<Unit>> = Vec::new();
    let (mut held, mut bytes) = (BTreeSet::new(), 0usize);
    for unit in units {
        let own = |held: &BTreeSet<usize>| -> usize {
            unit.spots.iter().filter(|s| !held.contains(*s)).map(|&s| Moments::bytes(&spots[s])).sum()
        };
        if passes.is_empty() || bytes + own(&held) > memory {
            passes.push(Vec::new());
            (held, bytes) = (BTreeSet::new(), 0);
        }
        bytes += own(&held);
        held.extend(unit.spots.iter().copied());
        if let Some(last) = passes.last_mut() {
            last.push(unit);
        }
    }
    passes
}

/// Units whose factors fit into memory at once; at least one.
pub(super) fn waves(spots: &[Spot], units: &[Unit], memory: usize) -> Vec<Range<usize>> {
    // A matrix in 64 bits, and its feedback in 32.
    let bytes = |u: &Unit| u.spots.first().map_or(0, |&s| Moments::bytes(&spots[s])).saturating_mul(3);
    let (mut waves, mut from, mut held) = (Vec::new(), 0, 0usize);
    for (i, unit) in units.iter().enumerate() {
        if i > from && held.saturating_add(bytes(unit)) > memory {
            waves.push(from..i);
            (from, held) = (i, 0);
        }
        held = held.saturating_add(bytes(unit));
    }
    waves.push(from..units.len());
    waves
}

/// A weight by its place, what became of it (nothing, where its inputs tell nothing), and the squares of its outputs.
pub(super) type Found = (usize, Option<Rounded>, Power);

/// Rounds the weights of some units on the threads of `exec`.
pub(super) fn round(
    exec: &Exec,
    weights: &[Weight],
    units: &[Unit],
    moments: &BTreeMap<usize, Moments>,
) -> Result<Vec<Found>, RoundingError> {
    let sums: Vec<Option<Sum>> = units.iter().map(|u| Sum::of(u, moments)).collect();
    let groups = |u: usize| weights[units[u].weights[0]].columns[0].groups;
    let matrices: Vec<(usize, usize)> = (0..units.len()).flat_map(|u| (0..groups(u)).map(move |g| (u, g))).collect();
    let factors = in_parallel(exec, &matrices, |&(u, g)| {
        let k = weights[units[u].weights[0]].columns[0].k;
        let sum = sums[u].as_ref().map(Sum::get).filter(|m| m.rows() > 0)?;
        Factor::new(exec, k, |i, j| sum.entry(g, i, j, units[u].centred))
    });
    let factor: BTreeMap<(usize, usize), &Option<Factor>> = matrices.iter().copied().zip(&factors).collect();
    let mut found = Vec::new();
    for (u, unit) in units.iter().enumerate() {
        let dead = (0..groups(u)).all(|g| factor[&(u, g)].is_none());
        for &w in &unit.weights {
            let means = sums[u].as_ref().map(|s| s.get().means());
            match means.filter(|_| !dead) {
                Some(means) => {
                    let (codes, power) = weight(exec, &weights[w], &|g| factor[&(u, g)].as_ref())?;
                    found.push((w, Some(Rounded { codes, means }), power));
                }
                None => found.push((w, None, Power::default())),
            }
        }
    }
    Ok(found)
}

/// The moments of a unit.
enum Sum<'a> {
    One(&'a Moments),
    Several(Moments),
}

impl Sum<'_> {
    fn of<'a>(unit: &Unit, moments: &'a BTreeMap<usize, Moments>) -> Option<Sum<'a>> {
        let mut all = unit.spots.iter().filter_map(|s| moments.get(s));
        let first = all.next()?;
        let mut rest = all.peekable();
        if rest.peek().is_none() {
            return Some(Sum::One(first));
        }
        let mut sum = first.clone();
        rest.for_each(|m| sum.merge(m));
        Some(Sum::Several(sum))
    }

    fn get(&self) -> &Moments {
        match self {
            Sum::One(m) => m,
            Sum::Several(m) => m,
        }
    }
}

/// The codes of a weight, `[groups, n, k]`; groups without a factor are rounded to the nearest.
fn weight<'a>(
    exec: &Exec,
    weight: &Weight,
    factor: &(dyn Fn(usize) -> Option<&'a Factor> + Sync),
) -> Result<(Vec<i32>, Power), RoundingError> {
    let c = &weight.columns[0];
    let values = weight.tensor.to_f32s()?;
    let starts: Vec<(usize, usize)> =
        (0..c.groups).flat_map(|g| (0..c.n).step_by(OUTPUTS).map(move |n| (g, n))).collect();
    let parts = in_parallel(exec, &starts, |&(g, first)| {
        let outputs = OUTPUTS.min(c.n - first);
        let of = |i: usize| values[c.place(g, first + i / c.k, i % c.k)];
        let own: Vec<f32> = (0..outputs * c.k).map(of).collect();
        match factor(g) {
            Some(factor) => feedback::round(exec, factor, &own, weight.grid.as_ref(), g * c.n + first),
            None => Ok(nearest(&own, c.k, weight, g * c.n + first)),
        }
    });
    let (mut codes, mut power) = (Vec::with_capacity(values.len()), Power::default());
    for part in parts {
        let part = part?;
        codes.extend(part.codes);
        power += part.power;
    }
    Ok((codes, power))
}

/// Output channels whose inputs tell nothing.
fn nearest(own: &[f32], k: usize, weight: &Weight, first: usize) -> Part {
    let mut codes = vec![0i32; own.len()];
    let mut value = [0f32];
    for (i, (w, code)) in own.iter().zip(codes.chunks_exact_mut(1)).enumerate() {
        weight.grid.round(i % k, first + i / k, &[*w], code, &mut value);
    }
    Part { codes, power: Power::default() }
}
