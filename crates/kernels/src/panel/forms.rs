//! The forms of the loops of [`super::finish`], and the choice of one.

use std::marker::PhantomData;

use super::epilogue::Residual;
use super::finish::Finish;
use super::target::Kind;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

/// Loops that do all that an epilogue may ask for.
pub(super) const GENERAL: u8 = 0;
/// Without bias, and without factors that are 1.
pub(super) const PLAIN: u8 = 1;
/// With an activation that is more than a clamp, a shift behind it, zero points of weights, or codes of rows with a format of
/// their own.
pub(super) const PASS: u8 = 2;
/// Floats of rows with a format of their own.
pub(super) const ROWS: u8 = 3;

/// The residual is told by [`Constants`]: where a pass dominates, a branch costs nothing.
pub(super) const ANY: u8 = 10;

/// A residual of bfloat16.
pub(super) const BF16: u8 = 11;

/// Whether a residual is added, as floats, to what was rounded before.
pub(super) const fn is_float_sum(residual: u8) -> bool {
    matches!(residual, 4..=6)
}

/// Whether results of a kind are 8-bit integers.
pub(super) const fn is_code(kind: u8) -> bool {
    matches!(kind, 1 | 2)
}

/// Whether nothing but a rounding follows the product's factors.
pub(super) const fn may_be_plain(residual: u8) -> bool {
    matches!(residual, 0 | 4..=9)
}

/// What the loops over a tile are compiled for: a branch in them costs as much as what it saves.
pub(super) trait Form {
    /// Whether the sums are integers.
    const INTS: bool;
    /// Results: 0 floats, 1 u8, 2 i8, 3 bfloat16.
    const KIND: u8;
    /// What is added to them, as [`Finish::residual`] numbers it, or [`ANY`].
    const RESIDUAL: u8;
    /// [`GENERAL`], [`PLAIN`], [`PASS`] or [`ROWS`].
    const MODE: u8;
}

struct Chosen<const INTS: bool, const KIND: u8, const RESIDUAL: u8, const MODE: u8>;

impl<const INTS: bool, const KIND: u8, const RESIDUAL: u8, const MODE: u8> Form for Chosen<INTS, KIND, RESIDUAL, MODE> {
    const INTS: bool = INTS;
    const KIND: u8 = KIND;
    const RESIDUAL: u8 = RESIDUAL;
    const MODE: u8 = MODE;
}

impl Finish<'_> {
    /// Makes the results of the tile. Whoever made `self` vouches for its pointers and lengths.
    ///
    /// The form is chosen here, outside of the code of a tier: compiled into one function, all forms took the compiler
    /// minutes.
    pub fn run(&self, isa: Isa) {
        match (self.ints, self.out.kind) {
            (true, Kind::F32) => self.by_residual::<true, 0>(isa),
            (true, Kind::U8) => self.by_residual::<true, 1>(isa),
            (true, Kind::I8) => self.by_residual::<true, 2>(isa),
            (true, Kind::I32) => isa.dispatch(Sums(self)),
            (false, Kind::I32) => {}
            (false, Kind::F32) => self.by_residual::<false, 0>(isa),
            (false, Kind::Bf16) => self.by_residual::<false, 3>(isa),
            // Refused: only sums of floats become bfloat16.
            (true, Kind::Bf16) => {}
            (false, Kind::U8) => self.by_residual::<false, 1>(isa),
            (false, Kind::I8) => self.by_residual::<false, 2>(isa),
        }
    }

    fn by_residual<const INTS: bool, const KIND: u8>(&self, isa: Isa) {
        let e = self.epilogue;
        let factors = !is_code(KIND) && !e.factors.is_empty() || !e.shifts.is_empty();
        let residual = self.residual();
        if e.activation.needs_pass() || !e.weight_zeros.is_empty() || factors {
            // What dynamic quantization has before a function.
            if INTS && KIND == 0 && residual == 0 {
                return isa.dispatch(Loops::<Chosen<true, 0, 0, PASS>>(self, PhantomData));
            }
            return isa.dispatch(Loops::<Chosen<INTS, KIND, ANY, PASS>>(self, PhantomData));
        }
        if e.rows.is_some() {
            return match (KIND, residual) {
                (0, 0) => isa.dispatch(Loops::<Chosen<true, 0, 0, ROWS>>(self, PhantomData)),
                (0, 1) => isa.dispatch(Loops::<Chosen<true, 0, 1, ROWS>>(self, PhantomData)),
                _ => isa.dispatch(Loops::<Chosen<INTS, KIND, ANY, PASS>>(self, PhantomData)),
            };
        }
        match residual {
            0 => self.by_mode::<INTS, KIND, 0>(isa),
            1 => self.by_mode::<INTS, KIND, 1>(isa),
            2 => self.by_mode::<INTS, KIND, 2>(isa),
            3 => self.by_mode::<INTS, KIND, 3>(isa),
            BF16 if !INTS => self.by_mode::<false, KIND, BF16>(isa),
            // `check` lets no sum of floats have a stage.
            _ if !INTS => {}
            4 => self.by_mode::<true, KIND, 4>(isa),
            5 => self.by_mode::<true, KIND, 5>(isa),
            6 => self.by_mode::<true, KIND, 6>(isa),
            7 => self.by_mode::<true, KIND, 7>(isa),
            8 => self.by_mode::<true, KIND, 8>(isa),
            _ => self.by_mode::<true, KIND, 9>(isa),
        }
    }

    fn by_mode<const INTS: bool, const KIND: u8, const RESIDUAL: u8>(&self, isa: Isa) {
        if INTS && is_code(KIND) && may_be_plain(RESIDUAL) && self.is_plain(RESIDUAL) {
            isa.dispatch(Loops::<Chosen<INTS, KIND, RESIDUAL, PLAIN>>(self, PhantomData));
        } else {
            isa.dispatch(Loops::<Chosen<INTS, KIND, RESIDUAL, GENERAL>>(self, PhantomData));
        }
    }

    /// The number of what is added: nothing, floats, or codes (u8, i8), or [`BF16`]; behind a stage codes or a row as floats (4 to 6), or
    /// as codes (7 to 9).
    pub(super) fn residual(&self) -> u8 {
        let behind = self.epilogue.stage.as_ref().map(|stage| if stage.adds_codes() { 7 } else { 4 });
        match (self.epilogue.residual, behind) {
            (Residual::None, _) => 0,
            (Residual::F32(..), _) => 1,
            (Residual::Bf16(..), _) => BF16,
            (Residual::U8(..), None) => 2,
            (Residual::I8(..), None) => 3,
            (Residual::U8(..), Some(first)) => first,
            (Residual::I8(..), Some(first)) => first + 1,
            (Residual::Row(..), first) => first.unwrap_or(4) + 2,
        }
    }
}

/// The sums alone.
struct Sums<'a>(&'a Finish<'a>);

impl Kernel for Sums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made the `Finish` vouches for its pointers and lengths.
        unsafe { self.0.sums(s) };
    }
}

/// The loops of one form.
struct Loops<'a, F>(&'a Finish<'a>, PhantomData<F>);

impl<F: Form> Kernel for Loops<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: as above.
        unsafe { self.0.rows::<S, F>(s) };
    }
}
