//! Which values share memory: a value takes the smallest free slot that fits, or grows one.

/// A value that needs memory from one step to another.
#[derive(Debug, Clone)]
pub struct Life {
    /// Bytes.
    pub bytes: usize,
    /// The step that makes it.
    pub from: usize,
    /// The last step that reads it.
    pub to: usize,
    /// The value whose slot it takes over; that value's life must end with the step `from`.
    pub takes_over: Option<usize>,
}

/// Slots and their sizes, and the slot of each value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of each slot.
    pub slots: Vec<usize>,
    /// By value.
    pub slot_of: Vec<usize>,
}

/// Assigns a slot to each life, which must be in the order of `from`.
pub fn plan(lives: &[Life]) -> Layout {
    let mut layout = Layout { slots: Vec::new(), slot_of: vec![0; lives.len()] };
    // By slot: the last step that uses it, and whether it is taken over at that step.
    let mut busy: Vec<usize> = Vec::new();
    for (i, life) in lives.iter().enumerate() {
        let slot = match life.takes_over {
            Some(old) => layout.slot_of[old],
            None => pick(&mut layout.slots, &mut busy, life),
        };
        layout.slots[slot] = layout.slots[slot].max(life.bytes);
        busy[slot] = busy[slot].max(life.to);
        layout.slot_of[i] = slot;
    }
    layout
}

fn pick(slots: &mut Vec<usize>, busy: &mut Vec<usize>, life: &Life) -> usize {
    let free = (0..slots.len()).filter(|&s| busy[s] < life.from);
    // The smallest that fits, or the largest of those that have to grow.
    let best = free.min_by_key(|&s| if slots[s] >= life.bytes { (0, slots[s]) } else { (1, usize::MAX - slots[s]) });
    best.unwrap_or_else(|| {
        slots.push(0);
        busy.push(0);
        slots.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(bytes: usize, from: usize, to: usize) -> Life {
        Life { bytes, from, to, takes_over: None }
    }

    #[test]
    fn reuses_a_slot_after_its_last_reader() {
        let l = plan(&[life(100, 1, 2), life(50, 2, 3), life(80, 3, 4)]);
        assert_eq!(l.slot_of, [0, 1, 0]);
        assert_eq!(l.slots, [100, 50]);
    }

    #[test]
    fn takes_over_a_slot_in_place() {
        let mut second = life(100, 2, 5);
        second.takes_over = Some(0);
        let l = plan(&[life(100, 1, 2), second, life(10, 3, 4)]);
        assert_eq!(l.slot_of, [0, 0, 1]);
    }

    #[test]
    fn never_gives_one_slot_to_two_living_values() {
        let lives: Vec<Life> = (1..40).map(|i| life(i * 37 % 101, i, i + 1 + i * 7 % 5)).collect();
        let l = plan(&lives);
        for (i, a) in lives.iter().enumerate() {
            for (j, b) in lives.iter().enumerate().skip(i + 1) {
                let overlap = a.from <= b.to && b.from <= a.to;
                assert!(!overlap || l.slot_of[i] != l.slot_of[j], "{i} and {j}");
            }
        }
    }
}
