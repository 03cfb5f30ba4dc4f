//! Shuffling.

use narrowbit_tensor::SplitMix64;

/// The first `count` elements of a Fisher–Yates shuffle of `0..len`: at step `i` element `i`
/// changes places with element `i + below(len - i)`. Memory grows with `count`, not `len`.
pub(crate) fn shuffled(len: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rng = SplitMix64::new(seed);
    let mut moved = std::collections::HashMap::new();
    (0..count.min(len))
        .map(|i| {
            let j = i + rng.below((len - i) as u64) as usize;
            let at_i = moved.remove(&i).unwrap_or(i);
            if j == i { at_i } else { moved.insert(j, at_i).unwrap_or(j) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_all_elements_and_takes_a_prefix_of_it() {
        let all = shuffled(100, 100, 7);
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(shuffled(100, 10, 7), all[..10]);
        assert_ne!(shuffled(100, 100, 8), all);
        assert_eq!(shuffled(5, 5, 0), [4, 2, 1, 0, 3], "the order is part of the contract");
        assert_eq!(shuffled(usize::MAX, 3, 0).len(), 3);
    }
}
