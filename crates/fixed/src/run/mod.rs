//! The program: steps on registers of integers. No code here or below knows a floating-point type.

mod data;
mod map;
mod pair;
mod product;
mod rows;
mod window;

use std::sync::{Mutex, PoisonError};

use narrowbit_kernels::integer::{ApartWeights, Rescale};
use narrowbit_kernels::{Exec, KernelError};

pub(crate) use data::with_ints;
pub use data::{Data, Int, Width};
pub use map::{Join, Map, Rounding};
pub use pair::Pair;
pub(crate) use product::rest;
pub use product::{Dense, Direct, Weights};
pub use rows::Shifts;
pub use window::{Fold, Pool};

/// The name of a value of the program.
pub type Register = usize;

/// An index of [`Step::Gather`] for what is no element.
pub const FILL: u32 = u32::MAX;

/// One operation on whole tensors.
#[derive(Debug)]
pub enum Step {
    /// Sums of products on the integer kernels, in 32 bits.
    Dense(Box<Dense>),
    /// Sums of products of each channel alone, in 32 bits.
    Apart(Box<ApartWeights>),
    /// Sums of products in plain loops: wide operands, wide or saturating sums, groups of few channels.
    Direct(Box<Direct>),
    /// Products of two tensors of the program.
    Pair(Box<Pair>),
    /// Multiply, shift, saturate, in 32 bits.
    Rescale(Box<Rescale>),
    /// The same in 64 bits, also for buffers that saturate and means.
    Map(Box<Map>),
    /// Two operands become one; their zero points are taken off.
    Join(Join, (i64, i64)),
    /// The greatest or the sum of a window.
    Pool(Pool),
    /// `|x − zero|`.
    Magnitude(i64),
    /// The sum of each row of so many integers, their zero point taken off.
    Total(usize, i64),
    /// A softmax of powers of two of each row.
    Shiftmax(Shifts),
    /// Elements of the operands, which lie one behind the other, in another order.
    Gather(Vec<u32>, i64),
    /// For each 8-bit code the entry of a table whose first is that of the least code.
    Table(Vec<i64>, i64),
}

/// A step with what it reads and makes.
#[derive(Debug)]
pub struct Line {
    /// What is done.
    pub step: Step,
    /// Read.
    pub from: Vec<Register>,
    /// Made.
    pub to: Register,
    /// The width of what is made.
    pub width: Width,
    /// Registers that nobody reads any more.
    pub done: Vec<Register>,
}

/// A list of steps for inputs of fixed sizes.
#[derive(Debug, Default)]
pub struct Program {
    /// In order.
    pub lines: Vec<Line>,
    /// The registers of the inputs, with the number and width of their integers.
    pub inputs: Vec<(Register, usize, Width)>,
    /// The registers of the results.
    pub outputs: Vec<Register>,
    /// Registers with content from the start.
    pub constants: Vec<(Register, Data)>,
    /// The number of registers.
    pub registers: usize,
}

/// Why a program could not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// An input is not the one that the program was made for.
    #[error("input {index} has {found} integers of another kind than the {expected} expected")]
    Input {
        /// Which.
        index: usize,
        /// Its size.
        found: usize,
        /// The size asked for.
        expected: usize,
    },
    /// A step reads what was not made.
    #[error("register {0} is empty")]
    Empty(Register),
    /// A kernel refuses its operands.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Program {
    /// Runs on one vector of codes per input; gives one per output.
    ///
    /// # Errors
    /// When an input has another size or width.
    pub fn run(&self, exec: &Exec, inputs: Vec<Data>) -> Result<Vec<Data>, RunError> {
        let mut file: Vec<Option<Data>> = vec![None; self.registers];
        for (index, (&(register, expected, width), data)) in self.inputs.iter().zip(inputs).enumerate() {
            if data.len() != expected || data.width() != width {
                return Err(RunError::Input { index, found: data.len(), expected });
            }
            file[register] = Some(data);
        }
        let constants: Vec<Option<&Data>> = {
            let mut all = vec![None; self.registers];
            self.constants.iter().for_each(|(r, data)| all[*r] = Some(data));
            all
        };
        for line in &self.lines {
            let read = |r: &Register| file[*r].as_ref().or(constants[*r]).ok_or(RunError::Empty(*r));
            let from = line.from.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            let made = line.step.run(exec, &from, line.width)?;
            line.done.iter().for_each(|&r| file[r] = None);
            file[line.to] = Some(made);
        }
        let output = |&r: &Register| file[r].clone().or_else(|| constants[r].cloned()).ok_or(RunError::Empty(r));
        self.outputs.iter().map(output).collect()
    }

    /// Fills in which registers each line is the last to read.
    pub(crate) fn finish(&mut self) {
        let mut last = vec![None; self.registers];
        for (i, line) in self.lines.iter().enumerate() {
            line.from.iter().for_each(|&r| last[r] = Some(i));
        }
        self.outputs.iter().for_each(|&r| last[r] = None);
        for (r, line) in last.into_iter().enumerate() {
            if let Some(i) = line {
                self.lines[i].done.push(r);
            }
        }
    }
}

impl Step {
    fn run(&self, exec: &Exec, from: &[&Data], width: Width) -> Result<Data, RunError> {
        Ok(match (self, from) {
            (Step::Dense(p), [x]) => p.run(exec, x)?,
            (Step::Direct(p), [x]) => p.run(exec, x, width),
            (Step::Apart(w), [x]) => product::apart(exec, x, w)?,
            (Step::Pair(p), [a, b]) => p.run(exec, a, b, width)?,
            (Step::Rescale(r), [x]) => map::rescale(exec, x, width, r)?,
            (Step::Map(m), [x]) => map::map(exec, x, width, m),
            (Step::Join(how, zeros), [a, b]) => map::join(exec, (a, b), *zeros, width, *how),
            (Step::Pool(p), [x]) => p.run(exec, x, width),
            (Step::Magnitude(zero), [x]) => rows::magnitude(exec, x, *zero, width),
            (Step::Total(row, zero), [x]) => rows::total(exec, x, *row, *zero, width),
            (Step::Shiftmax(s), [x]) => s.run(exec, x, width),
            (Step::Gather(indices, fill), from) => gather(exec, from, indices, *fill, width),
            (Step::Table(table, first), [x]) => look_up(exec, x, table, *first, width),
            (_, from) => return Err(RunError::Empty(from.len())),
        })
    }
}

fn look_up(exec: &Exec, x: &Data, table: &[i64], first: i64, width: Width) -> Data {
    let mut y = Data::zeros(width, x.len());
    with_ints!(x, x => with_ints!(&mut y, y => parts(exec, y, 1, &|from, y| {
        for (y, x) in y.iter_mut().zip(&x[from..]) {
            *y = Int::low(table.get((x.wide() - first) as usize).copied().unwrap_or_default());
        }
    })));
    y
}

fn gather(exec: &Exec, from: &[&Data], indices: &[u32], fill: i64, width: Width) -> Data {
    let mut y = Data::zeros(width, indices.len());
    if let [x] = from {
        with_ints!(x, x => with_ints!(&mut y, y => gather_one(exec, x, indices, fill, y)));
        return y;
    }
    let all: Vec<i64> = from.iter().flat_map(|x| x.to_i64s()).collect();
    with_ints!(&mut y, y => gather_one(exec, &all, indices, fill, y));
    y
}

fn gather_one<A: Int, B: Int>(exec: &Exec, x: &[A], indices: &[u32], fill: i64, y: &mut [B]) {
    parts(exec, y, 1, &|from, y| {
        for (y, &i) in y.iter_mut().zip(&indices[from..]) {
            *y = B::low(x.get(i as usize).map_or(fill, |x| x.wide()));
        }
    });
}

/// Runs `body` on parts of `y`, each a multiple of `row` long but for the last, with the index of its first element; on
/// all threads where that pays.
fn parts<T: Send>(exec: &Exec, y: &mut [T], row: usize, body: &(dyn Fn(usize, &mut [T]) + Sync)) {
    /// Elements below which waking a thread takes longer than the work.
    const GRAIN: usize = 1 << 14;
    let rows = y.len().div_ceil(row.max(1));
    let len = rows.div_ceil(2 * exec.threads()).max(1) * row.max(1);
    if exec.threads() == 1 || y.len() <= GRAIN || len >= y.len() {
        return body(0, y);
    }
    let parts: Vec<Mutex<&mut [T]>> = y.chunks_mut(len).map(Mutex::new).collect();
    exec.pool().run(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
        body(i * len, &mut part);
    });
}
