//! Runs compiled plans over an arena.

use std::collections::BTreeSet;
use std::time::Instant;

use narrowbit_ir::{Graph, ValueId};
use narrowbit_kernels::{Buffer, Exec, Few};
use narrowbit_tensor::memory;

use crate::compile::{Place, Plan, Step};
use crate::error::{RunError, StepError};
use crate::kernel::RunCx;
use crate::session::{Observer, Profile, ProfileRow};
use crate::view::{View, ViewMut};

/// Takes the outputs one after the other, by their position.
pub type Take<'a> = &'a mut dyn FnMut(usize, View) -> Result<(), RunError>;

/// The memory of one run.
pub struct Arena {
    slots: Vec<Buffer>,
}

/// Measures steps when a profile is asked for.
pub struct Clock<'a>(Option<&'a mut Profile>);

impl<'a> Clock<'a> {
    pub fn new(profile: Option<&'a mut Profile>) -> Clock<'a> {
        Clock(profile)
    }

    fn time<T>(&mut self, plan: &Plan, step: &Step, f: impl FnOnce() -> T) -> T {
        let Some(profile) = &mut self.0 else { return f() };
        let start = Instant::now();
        let out = f();
        let seconds = start.elapsed().as_secs_f64();
        profile.rows.push(ProfileRow {
            node: step.node,
            nodes: step.nodes.clone(),
            kernel: step.kernel.name().into(),
            on_integers: step.kernel.on_integers(),
            operands: step.kernel.operands(),
            bytes: step.ins.iter().chain(&step.outs).map(|&i| plan.values[i].ty.bytes()).sum(),
            seconds,
        });
        out
    }
}

impl Arena {
    /// The memory of a plan, and room for what its kernels and the copies of its outputs take beside. An error names the
    /// node whose result takes the most.
    pub fn new(plan: &Plan, graph: &Graph) -> Result<Arena, RunError> {
        let bytes = plan.slots.iter().fold(0usize, |all, &n| all.saturating_add(n));
        let largest = plan.steps.iter().flat_map(|s| s.outs.iter().map(move |&o| (s, &plan.values[o].ty)));
        let largest = largest.max_by_key(|(_, ty)| ty.bytes());
        let beside = largest.map_or(0, |(_, ty)| ty.bytes());
        let slots = memory::check(bytes, beside).ok().and_then(|()| {
            let slot = |&bytes: &usize| Buffer::try_new(bytes.div_ceil(4));
            plan.slots.iter().map(slot).collect::<Option<Vec<Buffer>>>()
        });
        slots.map(|slots| Arena { slots }).ok_or_else(|| {
            let node = largest.map_or(&graph.name, |(step, _)| &graph.node(step.node).name);
            let largest = largest.map(|(_, ty)| format!("{}{:?}", ty.dtype, ty.shape)).unwrap_or_default();
            RunError::Kernel { node: node.clone(), error: StepError::Arena { bytes, largest } }
        })
    }

    #[allow(clippy::too_many_arguments)] // One internal caller; a struct would only rename the list.
    pub fn run(
        &mut self,
        plan: &Plan,
        graph: &Graph,
        exec: &Exec,
        inputs: &[View],
        observe: &BTreeSet<ValueId>,
        observer: Observer,
        clock: &mut Clock,
        take: Take,
    ) -> Result<(), RunError> {
        for step in &plan.steps {
            clock
                .time(plan, step, || self.step(plan, step, exec, inputs))
                .map_err(|error| RunError::Kernel { node: graph.node(step.node).name.clone(), error })?;
            for &i in &step.outs {
                if !step.converts && observe.contains(&plan.values[i].id) {
                    observer(plan.values[i].id, self.view(plan, inputs, i)).map_err(RunError::Observer)?;
                }
            }
        }
        plan.outputs.iter().enumerate().try_for_each(|(k, &i)| take(k, self.view(plan, inputs, i)))
    }

    fn step(&mut self, plan: &Plan, step: &Step, exec: &Exec, inputs: &[View]) -> Result<(), StepError> {
        if !step.outs.is_empty() && step.outs.iter().all(|&o| plan.values[o].ty.bytes() == 0) {
            return Ok(());
        }
        // The outputs' slots leave the arena while the operands' are borrowed.
        let mut taken: Few<Option<Buffer>, 4> = step.outs.iter().map(|&o| Some(self.take(plan, o))).collect();
        let ins = step.ins.iter().enumerate();
        let ins = ins.map(|(k, &i)| (step.in_place != Some(k)).then(|| self.view(plan, inputs, i))).collect();
        let outs = step.outs.iter().zip(taken.iter_mut().flatten()).map(|(&o, buffer)| {
            let ty = &plan.values[o].ty;
            let bytes = match ty.bytes() {
                0 => bytemuck::cast_slice_mut::<u64, u8>(&mut []),
                n => &mut bytemuck::cast_slice_mut(buffer)[..n],
            };
            ViewMut { dtype: ty.dtype, shape: &ty.shape, bytes }
        });
        let mut cx = RunCx { exec, ins, outs: outs.collect() };
        let done = step.kernel.run(&mut cx);
        drop(cx);
        for (&o, buffer) in step.outs.iter().zip(taken.iter_mut()) {
            if let (Place::Slot(s), Some(buffer)) = (plan.values[o].place, buffer.take()) {
                self.slots[s] = buffer;
            }
        }
        done
    }

    fn take(&mut self, plan: &Plan, o: usize) -> Buffer {
        match plan.values[o].place {
            Place::Slot(s) => std::mem::replace(&mut self.slots[s], Buffer::new(0)),
            _ => Buffer::new(plan.values[o].ty.bytes().div_ceil(4)),
        }
    }

    fn view<'a>(&'a self, plan: &'a Plan, inputs: &'a [View], i: usize) -> View<'a> {
        let value = &plan.values[i];
        let bytes: &[u8] = match value.place {
            // Kernels read any type from it: it has to be aligned for all of them.
            _ if value.ty.bytes() == 0 => bytemuck::cast_slice::<u64, u8>(&[]),
            Place::Input(k) => inputs[k].bytes,
            Place::Const(c) => plan.consts[c].bytes(),
            Place::Slot(s) => bytemuck::cast_slice(&self.slots[s]),
        };
        let channels_last = value.channels_last;
        View { dtype: value.ty.dtype, shape: &value.ty.shape, bytes: &bytes[..value.ty.bytes()], channels_last }
    }
}
