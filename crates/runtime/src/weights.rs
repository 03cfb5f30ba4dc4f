use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use narrowbit_ir::NodeId;
use narrowbit_kernels::Buffer;
use narrowbit_kernels::conv::Taps;

/// What a packed operand is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    name: &'static str,
    /// The part of a window that it holds, where that depends on the image.
    taps: Option<Taps>,
    /// The planes of a window over volumes, likewise.
    planes: Option<Range<usize>>,
    /// The phase of a transposed convolution, and what is cut at the start of each axis.
    phase: Option<(usize, [usize; 3])>,
}

impl Form {
    /// Of some taps of a window, and of some planes of it where it has others, too.
    pub fn of(name: &'static str, taps: &Taps, planes: Option<&Range<usize>>) -> Form {
        Form { name, taps: (!taps.are_all()).then(|| taps.clone()), planes: planes.cloned(), phase: None }
    }

    /// Of a phase of a transposed convolution, whose taps depend on what is cut at the start of each axis.
    pub fn of_phase(name: &'static str, index: usize, pads: [usize; 3]) -> Form {
        Form { phase: Some((index, pads)), ..Form::from(name) }
    }
}

impl From<&'static str> for Form {
    fn from(name: &'static str) -> Form {
        Form { name, taps: None, planes: None, phase: None }
    }
}

impl From<(&'static str, &Taps)> for Form {
    fn from((name, taps): (&'static str, &Taps)) -> Form {
        Form::of(name, taps, None)
    }
}

/// A packed operand of any type, by its node and form.
type Packed = HashMap<(NodeId, Form), Arc<dyn Any + Send + Sync>>;

/// Constant operands in the layout of their kernels, made once per session and shared by
/// all plans and threads.
#[derive(Default)]
pub struct Weights {
    packed: Mutex<Packed>,
    /// Unpacked floats on their way, kept from one operand to the next while a plan is made.
    scratch: Mutex<Option<Buffer>>,
}

impl Weights {
    /// Calls `body` with `len` floats of any content.
    pub fn with_scratch<R>(&self, len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.as_ref().is_none_or(|b| b.len() < len) {
            // The old one goes first.
            *scratch = None;
        }
        body(&mut scratch.get_or_insert_with(|| Buffer::new(len))[..len])
    }

    /// Frees what was needed only for packing.
    pub fn drop_scratch(&self) {
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether an operand of a node is packed already, in any form.
    pub fn has(&self, node: NodeId) -> bool {
        let map = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        map.keys().any(|(n, _)| *n == node)
    }

    /// The packed operand of a node, made by `pack` the first time.
    pub fn get<T, E>(
        &self,
        node: NodeId,
        form: impl Into<Form>,
        pack: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E>
    where
        T: Any + Send + Sync,
    {
        let key = (node, form.into());
        // A poisoned lock only means that another thread's packing panicked; the map is whole.
        let mut map = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(found)) = map.get(&key).cloned().map(Arc::downcast) {
            return Ok(found);
        }
        let made = Arc::new(pack()?);
        map.insert(key, made.clone());
        Ok(made)
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n = self.packed.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Weights({n} packed)")
    }
}
