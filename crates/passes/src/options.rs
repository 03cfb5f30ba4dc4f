use std::path::PathBuf;

/// What [`crate::sanitize()`] may do.
#[derive(Debug, Clone)]
pub struct SanitizeOptions {
    /// The oldest operator set that models are brought to; newer models stay as they are.
    pub min_opset: i64,
    /// The newest operator set that a recognised function may raise the model to.
    pub max_opset: i64,
    /// Whether functions written in primitive operators become one operator ([`crate::Stage::Fuse`]).
    pub fuse: bool,
    /// Names of passes that are left out.
    pub disabled: Vec<String>,
    /// How many bytes a folded constant may take beyond the constants that it is computed from.
    pub max_growth: usize,
    /// Where the graph is written in its text form after each pass that changed it.
    pub dump_dir: Option<PathBuf>,
    /// Stops after this many rewrites: bisection finds the one that breaks a model.
    pub stop_after: Option<usize>,
    /// Whether the graph's invariants are checked after each pass.
    pub verify: bool,
}

impl Default for SanitizeOptions {
    fn default() -> SanitizeOptions {
        SanitizeOptions {
            min_opset: 13,
            max_opset: 21,
            fuse: true,
            disabled: Vec::new(),
            max_growth: 1 << 20,
            dump_dir: None,
            stop_after: None,
            verify: cfg!(debug_assertions),
        }
    }
}
