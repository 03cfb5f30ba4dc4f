use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use narrowbit_quant::check::{Checked, Finding, Limits, check};
use serde::Serialize;

use crate::args::Global;
use crate::{fixed, model, output};

/// Check the integers of a quantized model: scales, sums that may saturate, coarse multipliers
///
/// Works on QuantizeLinear and DequantizeLinear of any tool. Reports tensors whose scale no calibration gave (0, not finite,
/// or 1 where no value can come near the range of the codes, or where nothing in the model has another scale); products
/// whose sums can leave the register for some input (interval arithmetic on the actual weights and code ranges: what is
/// neither reported nor listed as not checked can't happen); products whose multipliers a mantissa of 8 bits misses by 5 % in the mean; biases that 32 bits cut off. Exit code 1
/// when something is found.
#[derive(Debug, Args)]
pub struct CheckIntegers {
    /// The quantized model (.onnx)
    model: PathBuf,
    /// Bits of the register that products are summed up in [default: as the model was quantized for, or 32]
    #[arg(short = 'b', long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=64))]
    buffer_bits: Option<u8>,
    /// Bits of the mantissa of multipliers
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=24))]
    scale_bits: u8,
    /// The mean relative error of a node's multipliers to report, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    scale_error: f64,
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    buffer_bits: u8,
    #[serde(flatten)]
    checked: Checked,
}

impl CheckIntegers {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let model = model::load_runnable(&self.model)?;
        let own = fixed::settings(&model).map(|o| o.buffer_bits());
        let buffer_bits = self.buffer_bits.or(own).unwrap_or(32);
        let scale_error = self.scale_error / 100.0;
        let checked = check(&model.graph, Limits { buffer_bits, scale_bits: self.scale_bits, scale_error });
        if checked.tensors == 0 {
            bail!(
                "{}: there is no QuantizeLinear to check\nhelp: `narrowbit quantize` makes a quantized model",
                self.model.display()
            );
        }
        let sound = checked.findings.is_empty();
        let summary = Summary { model: self.model.clone(), buffer_bits, checked };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&text(&summary))?;
        }
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn text(s: &Summary) -> String {
    let c = &s.checked;
    let mut out = format!(
        "{}: {} quantized tensors, {} products; sums take {} bits at the most, the register has {}\n",
        s.model.display(),
        c.tensors,
        c.products,
        c.most_bits,
        s.buffer_bits
    );
    for f in &c.findings {
        let line = match f {
            Finding::Uncalibrated { tensor, why } => format!("uncalibrated: \"{tensor}\" {why}"),
            Finding::Saturation { node, channel, sums, bits, channels } => format!(
                "saturation possible: \"{node}\" in {channels} channels; channel {channel} sums up to {} … {} ({bits} bits)",
                sums.0, sums.1
            ),
            Finding::ClippedBias { node, channels } => {
                format!("biases cut off at the end of 32 bits: \"{node}\" in {channels} channels")
            }
            Finding::ScaleError { node, mean } => {
                format!("coarse multipliers: \"{node}\" is off by {:.1} % in the mean", mean * 100.0)
            }
            other => format!("{other:?}"),
        };
        out.push_str(&format!("  {line}\n"));
    }
    if c.findings.is_empty() {
        out.push_str("  nothing found\n");
    }
    if !c.unseen.is_empty() {
        let some = c.unseen.iter().take(5).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
        let more = if c.unseen.len() > 5 {
            format!(" and {} more (--json lists all)", c.unseen.len() - 5)
        } else {
            String::new()
        };
        out.push_str(&format!(
            "  sums not checked, because their data have no format of their own: {some}{more}\n  \
             (`narrowbit inspect --integer-only` bounds those of fixed-point models)\n"
        ));
    }
    out
}
