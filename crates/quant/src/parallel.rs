use std::sync::OnceLock;

use narrowbit_kernels::Exec;

/// The results of `work` on each item, in order, computed on the threads of `exec`.
pub(crate) fn in_parallel<T: Sync, R: Send + Sync>(exec: &Exec, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let results: Vec<OnceLock<R>> = items.iter().map(|_| OnceLock::new()).collect();
    exec.pool().run(items.len(), &|i| {
        results[i].get_or_init(|| work(&items[i]));
    });
    results.into_iter().zip(items).map(|(r, item)| r.into_inner().unwrap_or_else(|| work(item))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_of_items_on_any_number_of_threads() {
        for threads in [1, 3] {
            let exec = Exec::new(narrowbit_kernels::Isa::detect(), threads);
            let items: Vec<usize> = (0..100).collect();
            assert_eq!(in_parallel(&exec, &items, |i| i * i), items.iter().map(|i| i * i).collect::<Vec<_>>());
            assert!(in_parallel(&exec, &[0; 0], |i| *i).is_empty());
        }
    }
}
