//! Batches that are run at the same time, each on threads of its own.
//!
//! Two runs on a core each never wait for each other, where two cores on one run meet at the end of each operator.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, PoisonError};

use narrowbit_ir::ValueId;
use narrowbit_kernels::{Exec, KernelError, calibrate};
use narrowbit_runtime::{RunError, Session, View};
use narrowbit_tensor::{DType, Tensor};

use super::mask::Mask;
use super::{Batch, ByChannel, CalibrateError, Calibrator, ChannelAxis, Observed, observe};
use crate::observe::{Histogram, Means, Spread, Summary, channel_sums};

/// Bytes that the tensors of the runs beside the first one may take.
const ARENAS: usize = 256 << 20;

/// The batches that are still to run.
struct Source<I> {
    batches: I,
    /// Batches taken.
    taken: u64,
    /// Samples in them, and in those before.
    samples: u64,
    ended: bool,
}

/// A batch with the model's outputs and the summaries by place, or what went wrong.
type Outcome<E> = Result<(Batch, Vec<Tensor>, Vec<Summary>), E>;

/// One run at a time.
struct Lane<'a> {
    session: Session,
    observed: &'a BTreeMap<ValueId, Observed>,
    /// By place; empty without histograms.
    histograms: Vec<Histogram>,
    /// The bits of codes whose fix positions are searched.
    positions: Option<u8>,
    /// The input that is the mask.
    mask: Option<usize>,
}

/// As [`Calibrator::add`].
pub fn run<E: From<CalibrateError> + Send>(
    calibrator: &mut Calibrator,
    mut batches: impl Iterator<Item = Result<Batch, E>> + Send,
    mut seen: impl FnMut(Batch, Vec<Tensor>),
) -> Result<(), E> {
    let Some(first) = batches.next().transpose()? else { return Ok(()) };
    let samples = calibrator.ranges.samples;
    let failure = |error| E::from(CalibrateError::Run { sample: samples, error });
    let sessions = sessions(&calibrator.session, &first.0).map_err(failure)?;
    let Calibrator { observed, ranges, histograms, positions, mask, .. } = calibrator;
    let counted = if *histograms { observed.len() } else { 0 };
    let lane = |session| Lane {
        session,
        observed,
        histograms: vec![Histogram::default(); counted],
        positions: *positions,
        mask: *mask,
    };
    let mut lanes: Vec<Lane> = sessions.into_iter().map(lane).collect();
    let batches = std::iter::once(Ok(first)).chain(batches);
    let source = Mutex::new(Source { batches, taken: 0, samples, ended: false });
    let mut failed = None;
    std::thread::scope(|scope| {
        let (send, outcomes) = mpsc::sync_channel(lanes.len());
        for lane in &mut lanes {
            let (source, send) = (&source, send.clone());
            scope.spawn(move || lane.work(source, &send));
        }
        drop(send);
        // Batches come back in any order, but are recorded in theirs.
        let (mut early, mut next) = (BTreeMap::new(), 0);
        for (number, outcome) in outcomes {
            early.insert(number, outcome);
            while let Some(outcome) = early.remove(&next) {
                next += 1;
                match outcome {
                    Ok((batch, outputs, summaries)) if failed.is_none() => {
                        super::record(ranges, observed, &summaries, batch.1);
                        seen(batch, outputs);
                    }
                    Ok(_) => {}
                    Err(e) => failed = failed.take().or(Some(e)),
                }
            }
        }
    });
    lanes.iter().for_each(|lane| super::count(ranges, observed, &lane.histograms));
    failed.map_or(Ok(()), Err)
}

/// A session for each run at a time, the threads shared out among them.
fn sessions(session: &Session, inputs: &[Tensor]) -> Result<Vec<Session>, RunError> {
    let threads = session.exec().threads();
    let arena = session.arena_bytes(inputs)?;
    let lanes = match arena {
        // Nothing is compiled beforehand: what a run takes is not known.
        0 => 1,
        _ => (1 + ARENAS / arena).min(threads),
    };
    Ok((0..lanes).map(|i| session.fork(threads * (i + 1) / lanes - threads * i / lanes)).collect())
}

impl Lane<'_> {
    /// Runs batches until there are no more, or one fails.
    fn work<E: From<CalibrateError> + Send>(
        &mut self,
        source: &Mutex<Source<impl Iterator<Item = Result<Batch, E>> + Send>>,
        send: &SyncSender<(u64, Outcome<E>)>,
    ) {
        loop {
            let (number, sample, batch) = {
                let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(batch) = source.next() else { return };
                batch
            };
            let outcome = batch.and_then(|batch| self.run(batch, sample).map_err(E::from));
            if outcome.is_err() {
                source.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            }
            if send.send((number, outcome)).is_err() {
                return;
            }
        }
    }

    fn run(&mut self, batch: Batch, sample: u64) -> Result<(Batch, Vec<Tensor>, Vec<Summary>), CalibrateError> {
        let Lane { session, observed, histograms, positions, mask } = self;
        let mask = mask.and_then(|i| Mask::new(batch.0.get(i)?));
        let mut summaries = vec![Summary::EMPTY; observed.len()];
        let outputs = session.run_observed(&batch.0, &mut |v, view: View| {
            let Some(o) = observed.get(&v).filter(|_| view.dtype == DType::F32) else { return Ok(()) };
            let place = o.place;
            let all = view.slice::<f32>().map_err(|e| e.to_string())?;
            // Values with their channels last in memory are images, which have no such positions.
            let kept = mask.as_ref().filter(|_| !view.channels_last).and_then(|m| m.kept(view.shape, all));
            let values = kept.as_deref().unwrap_or(all);
            summaries[place] =
                observe(session.exec(), values, histograms.get_mut(place), *positions).map_err(|e| e.to_string())?;
            if let Some(ByChannel { axis, means: wanted, .. }) = o.channels {
                let values = if axis == ChannelAxis::Last { values } else { all };
                let split = split(&view, values.len(), axis);
                summaries[place].means = split.filter(|_| wanted).map(|s| means(values, s));
                summaries[place].spread = match split {
                    Some(s) => Some(spread(session.exec(), values, s).map_err(|e| e.to_string())?),
                    None => None,
                };
            }
            Ok(())
        });
        match outputs {
            Ok(outputs) => Ok((batch, outputs, summaries)),
            Err(error) => Err(CalibrateError::Run { sample, error }),
        }
    }
}

/// How the channels of a value of `len` elements lie in memory: `[outer, channels, inner]`.
fn split(view: &View, len: usize, axis: ChannelAxis) -> Option<[usize; 3]> {
    let last = view.shape.len().checked_sub(1)?;
    let axis = match axis {
        ChannelAxis::Second => 1,
        ChannelAxis::Last => last,
    };
    let channels = view.shape.get(axis).copied().filter(|&c| c > 0)?;
    let after = |from: usize| view.shape.get(from..).unwrap_or_default().iter().product::<usize>();
    let inner = match (view.channels_last, axis) {
        (true, 1) => 1,
        // The second axis lies behind all others.
        (true, _) => after(axis + 1) * view.shape.get(1).copied().unwrap_or(1),
        (false, _) => after(axis + 1),
    };
    Some([len / (channels * inner).max(1), channels, inner])
}

/// The sums by channel.
fn means(values: &[f32], [_, channels, inner]: [usize; 3]) -> Means {
    let mut means = Means::default();
    means.add((values.len() / channels) as u64, &channel_sums(values, channels, inner));
    means
}

/// The extremes by channel.
fn spread(exec: &Exec, values: &[f32], split: [usize; 3]) -> Result<Spread, KernelError> {
    let mut found = vec![calibrate::Range::EMPTY; split[1]];
    calibrate::channel_min_max(exec, values, split, &mut found)?;
    Ok(Spread::new(found.iter().map(|r| (r.min, r.max))))
}

impl<E, I: Iterator<Item = Result<Batch, E>>> Source<I> {
    /// The next batch with its number and the number of its first sample.
    fn next(&mut self) -> Option<(u64, u64, Result<Batch, E>)> {
        if self.ended {
            return None;
        }
        let batch = self.batches.next()?;
        let (number, sample) = (self.taken, self.samples);
        self.taken += 1;
        self.samples += batch.as_ref().map_or(0, |b| b.1);
        Some((number, sample, batch))
    }
}
