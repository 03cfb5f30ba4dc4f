//! The approaches that need no calibration.

use anyhow::{Context, Result, bail};
use narrowbit_data::Split;
use narrowbit_ir::Model;
use narrowbit_passes::sanitize::upgrade_opset;
use narrowbit_quant::fill::Rates;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize;
use narrowbit_runtime::{Options, Session};

use super::{Made, Quantize, unmatched};
use crate::check::{Check, Kept};
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
        let check = self.float_outputs(model)?;
        let mut warnings = unmatched(model, options)?;
        upgrade_opset::upgrade(model, quantize::opset(options))
            .map_err(|e| anyhow::Error::new(*e))
            .context("the model can't be brought to the operator set that this needs")?;
        let done = quantize::convert(model, options, &self.threads.exec()?)?;
        warnings.extend(done.warnings);
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
        })
    }

    /// What the float model makes of the first samples.
    fn float_outputs(&self, model: &Model) -> Result<Option<Check>> {
        let given = self.data.data.is_some() || self.data.random.is_some();
        if !given || self.no_check {
            return Ok(None);
        }
        let dataset = self.data.open(&model.graph, Split::Calibration)?;
        let options = Options { threads: self.threads.threads, ..Options::default() };
        let session = Session::new(model.graph.clone(), options)?;
        let mut kept = Kept::new(true);
        for batch in dataset.batches(self.data.batch()) {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C; nothing was written");
            }
            let batch = batch?;
            let samples = batch.indices.len();
            let inputs = data::tensors(batch);
            let outputs = session.run(&inputs)?;
            kept.offer(&model.graph, inputs, outputs, samples);
            if kept.is_full() {
                break;
            }
        }
        Check::new(kept, &dataset)
    }
}
