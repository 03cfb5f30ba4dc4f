//! The pass [`DeadCode`].

use crate::{Pass, PassCx, PassError, Stage};

/// **What it does:** removes nodes whose outputs nobody reads, and constants without readers.
///
/// **When it applies:** always, random operators included.
///
/// **Numerical effect:** none.
///
/// **Example:** `y = Relu(x)`, `z = Exp(x)`, output `y` → `y = Relu(x)`.
#[derive(Debug, Clone, Copy)]
pub struct DeadCode;

impl Pass for DeadCode {
    fn name(&self) -> &'static str {
        "dead-code"
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    fn doc(&self) -> &'static str {
        "Removes nodes whose outputs nobody reads, and constants without readers."
    }

    fn run(&self, cx: &mut PassCx) -> Result<(), PassError> {
        cx.remove_dead();
        Ok(())
    }
}
