//! The pass [`InlineFunctions`].

use crate::{Pass, PassCx, PassError, Stage};

/// **What it does:** replaces each call of a function that the model defines by the nodes of its body.
///
/// **When it applies:** always; functions that call functions are expanded too.
///
/// **Numerical effect:** none.
///
/// **Example:** `y = mine.Double(x)` with `Double(a) = a + a` → `y = Add(x, x)`.
#[derive(Debug, Clone, Copy)]
pub struct InlineFunctions;

impl Pass for InlineFunctions {
    fn name(&self) -> &'static str {
        "inline-functions"
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    fn doc(&self) -> &'static str {
        "Replaces each call of a function that the model defines by the nodes of its body."
    }

    /// Functions belong to the model: the manager calls the importer's inliner.
    fn run(&self, _: &mut PassCx) -> Result<(), PassError> {
        Ok(())
    }
}
