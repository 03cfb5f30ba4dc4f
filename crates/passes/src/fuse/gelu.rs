//! The pass [`Gelu`].

use std::f64::consts::{PI, SQRT_2};
use std::sync::LazyLock;

use narrowbit_ir::{AttrMap, NodeId, Patch};

use crate::View;
use crate::pass::{Found, Miss, OrNo, pass, when};
use crate::pattern::{Expr, any, num, op, var};

pass! {
    /// **What it does:** writes the Gaussian error linear unit as one Gelu: `x/2 · (1 + erf(x/√2))`, or with
    /// `approximate="tanh"`: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`, factors in any order.
    ///
    /// **When it applies:** where nobody else reads the inner values; the model is raised to opset 20.
    ///
    /// **Numerical effect:** none but rounding: constants within 1e-5 are taken for the exact ones.
    ///
    /// **Example:** `d = Div(x, 1.41421)`, `e = Erf(d)`, `a = Add(e, 1)`, `m = Mul(x, a)`, `y = Mul(m, 0.5)` → `y = Gelu(x)`.
    Gelu = "gelu", Fuse @ 20, rule
}

/// `x · 0.5 · f`, factors in any order.
fn halves(f: &Expr) -> Expr {
    let x = || var("x");
    any([(x() * f.clone()) * 0.5, (x() * 0.5) * f.clone(), x() * (f.clone() * 0.5)])
}

static ERF: LazyLock<Expr> = LazyLock::new(|| {
    let halved = any([(var("x") / SQRT_2).erf(), (var("x") / op("Sqrt", [num(2.0)])).erf()]);
    halves(&(halved + 1.0))
});

static TANH: LazyLock<Expr> = LazyLock::new(|| {
    let x = || var("x");
    let cube = any([op("Pow", [x(), num(3.0)]), (x() * x()) * x()]);
    // x + 0.044715·x³, or x·(1 + 0.044715·x²).
    let square = any([x() * x(), op("Pow", [x(), num(2.0)])]);
    let coefficient = 0.044_715;
    let scaled_cube =
        any([cube * coefficient, x() * (square.clone() * coefficient), x() * (x() * (x() * coefficient))]);
    let inner = any([x() + scaled_cube, x() * ((square * coefficient) + 1.0)]);
    let factor = (2.0 / PI).sqrt();
    let scaled = any([
        inner.clone() * factor,
        x() * ((any([x() * x(), op("Pow", [x(), num(2.0)])]) * (factor * coefficient)) + factor),
    ]);
    halves(&(scaled.tanh() + 1.0))
});

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Mul", "Div"])?;
    let (found, attrs) = match ERF.find(view, id) {
        Ok(found) => (found, AttrMap::new()),
        Err(Miss::Skip(reason)) => return Err(Miss::Skip(reason)),
        Err(Miss::No) => (TANH.find(view, id)?, AttrMap::new().with("approximate", "tanh")),
    };
    let x = found.value("x")?;
    when(view.dtype(x).or_no()?.is_float())?;
    let mut patch = view.patch();
    let y = patch.node(&view.node(id).name, view.make("Gelu", attrs)?, &[Some(x)]);
    patch.replace(view.output(id)?, y);
    Ok(patch)
}
