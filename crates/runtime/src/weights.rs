use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use narrowbit_ir::NodeId;

/// A packed operand of any type, by its node and form.
type Packed = HashMap<(NodeId, &'static str), Arc<dyn Any + Send + Sync>>;

/// Constant operands in the layout of their kernels, made once per session and shared by
/// all plans and threads.
#[derive(Default)]
pub struct Weights(Mutex<Packed>);

impl Weights {
    /// The packed operand of a node, made by `pack` the first time.
    pub fn get<T, E>(&self, node: NodeId, form: &'static str, pack: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E>
    where
        T: Any + Send + Sync,
    {
        // A poisoned lock only means that another thread's packing panicked; the map is whole.
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(found)) = map.get(&(node, form)).cloned().map(Arc::downcast) {
            return Ok(found);
        }
        let made = Arc::new(pack()?);
        map.insert((node, form), made.clone());
        Ok(made)
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Weights({n} packed)")
    }
}
