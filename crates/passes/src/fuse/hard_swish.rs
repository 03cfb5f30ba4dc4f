//! The pass [`HardSwish`].

use std::sync::LazyLock;

use narrowbit_ir::{AttrMap, NodeId, Patch};

use crate::View;
use crate::pass::{Found, OrNo, pass, when};
use crate::pattern::{Expr, any, is_near, num, op, var};

pass! {
    /// **What it does:** writes `x · clip(x + 3, 0, 6) / 6` and `x · HardSigmoid(x)` as one HardSwish.
    ///
    /// **When it applies:** to HardSigmoid with `alpha = 1/6`, `beta = 1/2`; where nobody else reads the inner values;
    /// the model is raised to opset 14.
    ///
    /// **Numerical effect:** none but rounding.
    ///
    /// **Example:** `h = HardSigmoid(x) {alpha=0.16666667, beta=0.5}`, `y = Mul(x, h)` → `y = HardSwish(x)`.
    HardSwish = "hard-swish", Fuse @ 14, rule
}

static CLIPPED: LazyLock<Expr> = LazyLock::new(|| {
    let x = || var("x");
    let clip = op("Clip", [x() + 3.0, num(0.0), num(6.0)]);
    any([(x() * clip.clone()) / 6.0, x() * (clip.clone() / 6.0), (x() / 6.0) * clip])
});

static SIGMOID: LazyLock<Expr> = LazyLock::new(|| var("x") * op("HardSigmoid", [var("x")]).label("sigmoid"));

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Mul", "Div"])?;
    let found = match SIGMOID.find(view, id) {
        Ok(found) => {
            let sigmoid = found.node("sigmoid")?;
            let attr = |name, default| f64::from(view.float(sigmoid, name, default));
            when(is_near(attr("alpha", 0.2), 1.0 / 6.0) && is_near(attr("beta", 0.5), 0.5))?;
            found
        }
        Err(crate::Miss::No) => CLIPPED.find(view, id)?,
        Err(skip) => return Err(skip),
    };
    let x = found.value("x")?;
    when(view.dtype(x).or_no()?.is_float())?;
    let mut patch = view.patch();
    let y = patch.node(&view.node(id).name, view.make("HardSwish", AttrMap::new())?, &[Some(x)]);
    patch.replace(view.output(id)?, y);
    Ok(patch)
}
