//! The approaches that need no calibration.

use anyhow::{Context, Result, bail};
use narrowbit_data::{Dataset, Fill, Split};
use narrowbit_ir::Model;
use narrowbit_passes::sanitize::upgrade_opset;
use narrowbit_quant::fill::Rates;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize;
use narrowbit_runtime::{Float, Options, Session};

use super::{Made, Quantize, rounding, unmatched};
use crate::check::{Check, Kept};
use crate::runs::{Runs, repeated_text};
use crate::{data, interrupt};

impl Quantize {
    /// Quantizes a sanitized model; samples, where there are any, only show what is lost.
    pub(super) fn without_ranges(&self, model: &mut Model, options: &QuantOptions) -> Result<Made> {
        if self.ranges.is_some() {
            bail!("--ranges are for static quantization\nhelp: leave them out, or use --approach static");
        }
        if self.encodings.is_some() {
            bail!("--encodings are for static quantization\nhelp: leave them out, or use --approach static");
        }
        if let Some(decided) = self.scheme.decided()?.filter(|d| !d.given.tensors.is_empty()) {
            bail!(
                "{}: \"tensors\" has scales for static quantization, which this approach has no use for\nhelp: take \"nodes\", \"tensors\" and \"scales-for\" out, or leave --approach as the file has it",
                decided.path.display()
            );
        }
        let rounds = self.rounds(options)?;
        let given = self.data.data.is_some() || self.data.random.is_some();
        let open = || self.data.open(&model.graph, Split::Calibration);
        let dataset = (given && (rounds || !self.no_check)).then(open).transpose()?;
        let runs = dataset.as_ref().map(|d| self.data.runs(&model.graph, d)).transpose()?;
        let check = match dataset.as_ref().zip(runs.as_ref()).filter(|_| !self.no_check) {
            Some((dataset, runs)) => self.float_outputs(model, dataset, runs.clone(), Fill::Last)?,
            None => None,
        };
        let mut warnings = unmatched(model, options)?;
        warnings.extend(rounding::unmet(options, rounds));
        let repeated = dataset.as_ref().zip(runs.as_ref()).filter(|_| rounds).map_or(0, |(d, r)| r.repeated(d.len()));
        if repeated > 0 {
            warnings.push(repeated_text(repeated));
        }
        upgrade_opset::upgrade(model, quantize::opset(options))
            .map_err(|e| anyhow::Error::new(*e))
            .context("the model can't be brought to the operator set that this needs")?;
        let (exec, samples) = (self.threads.exec()?, dataset.as_ref().zip(runs.as_ref()).filter(|_| rounds));
        let running = (self.mask.input(&model.graph)?, Float::F32);
        let done =
            self.with_rounder(samples, running, |rounder| Ok(quantize::convert_with(model, options, rounder, &exec)?))?;
        warnings.extend(done.warnings);
        warnings.extend(rounding::left(done.rounding.as_ref()));
        let (fates, ranges, encodings, equalized) = (done.fates, None, None, None);
        Ok(Made {
            fates,
            ranges,
            check,
            warnings,
            encodings,
            equalized,
            rates: Rates::new(),
            by_channel: 0,
            batch: None,
            rounding: done.rounding,
        })
    }

    /// What the float model makes of the first samples.
    pub(super) fn float_outputs(
        &self,
        model: &Model,
        dataset: &Dataset,
        runs: Runs,
        fill: Fill,
    ) -> Result<Option<Check>> {
        let options = Options { threads: self.threads.threads, ..Options::default() };
        let session = Session::new(model.graph.clone(), options)?;
        let mut kept = Kept::new(true);
        for batch in runs.batches(dataset, 0, fill) {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C; nothing was written");
            }
            let batch = batch?;
            let samples = batch.indices.len();
            let inputs = data::tensors(batch);
            let outputs = runs.outputs(session.run(&inputs)?, samples)?;
            kept.offer(&model.graph, inputs, outputs, (samples, runs.rows(samples)));
            if kept.is_full() {
                break;
            }
        }
        Check::new(kept, dataset, runs)
    }
}
