//! Whether int8 pays: the float and the quantized model timed in turns, as a whole and by node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use narrowbit_ir::{Fact, Graph, NodeId, TensorType, ValueType};
use narrowbit_runtime::{ProfileRow, Session};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use crate::timing::{Profiled, median, median_steps};
use crate::{data, interrupt, macs, model, output};

/// When to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Where it takes no more than a tenth of the job, and --no-check is not given
    Auto,
    /// However long it takes
    Yes,
    /// Never
    No,
}

/// Multiply-accumulates of a run, per second of a bounded measurement, above which it does not begin: loading the
/// float model again would take the time already.
const MACS_PER_SECOND: f64 = 2.5e9;
/// Seconds that a bounded measurement may take: a share of the job, within limits.
const SHARE: f64 = 0.1;
const BOUNDS: (f64, f64) = (0.3, 1.5);
/// Seconds of runs that an unbounded one takes, beyond the least rounds.
const UNBOUND: f64 = 10.0;
/// Rounds, each a run and a profiled run of both models.
const LEAST: usize = 3;
const MOST: usize = 25;
/// A quantized model pays below this share of the float model's time.
const PAYS: f64 = 0.95;
/// A node is slower above this multiple of its float time …
const SLOWER: f64 = 1.1;
/// … if it costs this share of the float model's time.
const MATTERS: f64 = 0.01;
/// Slow nodes that the text names.
const SHOWN: usize = 5;

/// What is measured.
pub struct Job {
    /// Names of the nodes that compute on integers.
    pub integer: BTreeSet<String>,
    /// What the quantized model is in, for messages: int8.
    pub format: String,
    /// What to run on; random samples without.
    pub inputs: Option<Vec<Tensor>>,
    /// Threads; 0 for one per core.
    pub threads: usize,
    /// The seconds that all else took, where no more than a share of them may be spent.
    pub beside: Option<f64>,
}

/// What came of it.
pub enum Outcome {
    /// It was not asked for.
    NotAsked,
    /// It would take too long.
    TooSlow,
    /// It was measured.
    Measured(Speed),
}

/// Times of both models.
#[derive(Debug, Serialize)]
pub struct Speed {
    #[serde(skip)]
    format: String,
    threads: usize,
    /// The instruction set.
    isa: String,
    /// Runs of each model.
    runs: usize,
    float_ms: f64,
    int8_ms: f64,
    /// Int8 over float: below 1 is faster.
    ratio: f64,
    /// Whether int8 is faster by more than what varies between runs.
    pays: bool,
    /// Groups of nodes that are slower on integers, the most costly first.
    slower: Vec<Slower>,
}

/// Nodes that run together in one of the models, slower on integers than on floats.
#[derive(Debug, PartialEq, Serialize)]
struct Slower {
    /// The integer nodes among them.
    nodes: Vec<String>,
    op: String,
    float_ms: f64,
    int8_ms: f64,
}

impl Outcome {
    /// The times, if there are any.
    pub fn measured(self) -> Option<Speed> {
        match self {
            Outcome::Measured(speed) => Some(speed),
            _ => None,
        }
    }

    /// A warning where int8 does not pay.
    pub fn warning(&self) -> Option<String> {
        let Outcome::Measured(s) = self else { return None };
        let what = if s.ratio > 2.0 - PAYS { "slower than" } else { "no faster than" };
        let help = match s.slower.is_empty() {
            true => "it is worth its size only",
            false => &format!("keep the nodes float that are slower {}, or use it for its size only", on(&s.format)),
        };
        (!s.pays)
            .then(|| format!("{} does not pay in time here: it is {what} float ({:.2}×); {help}", s.format, s.ratio))
    }
}

impl Job {
    /// Times both models in turns.
    pub fn run(&self, float: &Path, int8: &Path) -> Result<Outcome> {
        let quantized = model::session(int8, self.threads)?;
        let inputs = match &self.inputs {
            Some(inputs) => inputs.clone(),
            None => random(quantized.graph())?,
        };
        let bound = self.beside.map(|seconds| (SHARE * seconds).clamp(BOUNDS.0, BOUNDS.1));
        if bound.is_some_and(|s| macs(quantized.graph(), &inputs) as f64 > s * MACS_PER_SECOND) {
            return Ok(Outcome::TooSlow);
        }
        let plain = model::session(float, self.threads)?;
        let sessions = [&plain, &quantized];
        let inputs = [model::fed(plain.graph(), &inputs)?, model::fed(quantized.graph(), &inputs)?];
        let mut once = 0.0;
        for (s, inputs) in sessions.into_iter().zip(&inputs) {
            // The first run packs the weights.
            s.run(inputs)?;
            once += 2.0 * seconds(s, inputs)?;
        }
        let rounds = (bound.unwrap_or(UNBOUND) / f64::max(once, 1e-9)) as usize;
        if bound.is_some() && rounds < LEAST {
            return Ok(Outcome::TooSlow);
        }
        self.turns(sessions, &inputs, rounds.clamp(LEAST, MOST))
    }

    fn turns(&self, sessions: [&Session; 2], inputs: &[Vec<Tensor>; 2], rounds: usize) -> Result<Outcome> {
        let (mut times, mut profiles) = ([vec![], vec![]], [vec![], vec![]]);
        let bar = output::progress("timing", rounds);
        for _ in 0..rounds {
            if interrupt::requested() {
                return Ok(Outcome::NotAsked);
            }
            for (i, s) in sessions.into_iter().enumerate() {
                times[i].push(seconds(s, &inputs[i])?);
            }
            for (i, s) in sessions.into_iter().enumerate() {
                profiles[i].push(Profiled::new(s, &inputs[i])?);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let [float_ms, int8_ms] = times.map(|t| median(t) * 1e3);
        let [float, int8] = profiles.map(median_steps);
        let groups = Groups::new([sessions[0].graph(), sessions[1].graph()], [&float, &int8]);
        let (exec, ratio) = (sessions[0].exec(), int8_ms / float_ms);
        Ok(Outcome::Measured(Speed {
            format: self.format.clone(),
            threads: exec.threads(),
            isa: exec.isa().to_string(),
            runs: rounds,
            float_ms,
            int8_ms,
            ratio,
            pays: ratio < PAYS,
            slower: groups.slower(&self.integer, float_ms),
        }))
    }
}

/// Where nodes compute that are quantized to a format.
fn on(format: &str) -> String {
    match format {
        "int8" => "on integers".into(),
        "mixed" => "quantized".into(),
        _ => format!("in {format}"),
    }
}

fn seconds(session: &Session, inputs: &[Tensor]) -> Result<f64> {
    let start = Instant::now();
    session.run(inputs)?;
    Ok(start.elapsed().as_secs_f64())
}

/// One random sample, or as many as the file fixes.
fn random(graph: &Graph) -> Result<Vec<Tensor>> {
    let (dataset, batch) = data::random_run(graph, None)?;
    Ok(data::tensors(dataset.batch(0..batch)?))
}

fn macs(graph: &Graph, inputs: &[Tensor]) -> u64 {
    let fact = |t: &Tensor| Fact { ty: ValueType::Tensor(TensorType::of(t)), ..Fact::default() };
    macs::of_graph(graph, &graph.inputs().iter().copied().zip(inputs.iter().map(fact)).collect())
}

/// The nodes of the float model, in groups that share a step in either model, with the times of both.
struct Groups {
    /// By name: the operator, and a member of the same group, or itself for the group's first.
    nodes: BTreeMap<String, (String, String)>,
    /// By first member: milliseconds of the float and of the quantized model.
    ms: BTreeMap<String, [f64; 2]>,
}

impl Groups {
    fn new(graphs: [&Graph; 2], steps: [&[ProfileRow]; 2]) -> Groups {
        let named = |n: &narrowbit_ir::Node| (n.name.clone(), (n.op.name().to_owned(), n.name.clone()));
        let nodes = graphs[0].nodes().filter(|(_, n)| !n.name.is_empty()).map(|(_, n)| named(n)).collect();
        let mut all = Groups { nodes, ms: BTreeMap::new() };
        let owners = |all: &Groups, i: usize| -> Vec<Vec<String>> {
            steps[i].iter().map(|step| all.owners(graphs[i], step)).collect()
        };
        let owners = [owners(&all, 0), owners(&all, 1)];
        for names in owners.iter().flatten() {
            names.iter().skip(1).for_each(|n| all.join(&names[0], n));
        }
        for i in 0..2 {
            for (step, names) in steps[i].iter().zip(&owners[i]) {
                if let Some(name) = names.first() {
                    all.ms.entry(all.first(name)).or_default()[i] += step.seconds * 1e3;
                }
            }
        }
        all
    }

    /// The nodes of the float model that a step computes or converts for.
    fn owners(&self, graph: &Graph, step: &ProfileRow) -> Vec<String> {
        let name = |n: &NodeId| Some(graph.node(*n).name.clone()).filter(|name| self.nodes.contains_key(name));
        let own: Vec<String> = step.nodes.iter().filter_map(name).collect();
        if !own.is_empty() {
            return own;
        }
        self.beyond(graph, step.node).into_iter().collect()
    }

    /// Whom a conversion serves: a DequantizeLinear belongs to what made its integers, a QuantizeLinear to who reads them.
    fn beyond(&self, graph: &Graph, mut id: NodeId) -> Option<String> {
        let back = graph.node(id).op.name() == "DequantizeLinear";
        for _ in 0..CHAIN {
            let node = graph.node(id);
            let moves = MOVES.contains(&node.op.name());
            if self.nodes.contains_key(&node.name) && !moves {
                return Some(node.name.clone());
            }
            id = match back {
                true => graph.producer(node.input(0)?)?.0,
                false => graph.uses(node.output(0)?).first()?.node,
            };
        }
        None
    }

    fn first(&self, name: &str) -> String {
        let mut at = name;
        while let Some((_, next)) = self.nodes.get(at).filter(|(_, next)| next != at) {
            at = next;
        }
        at.to_owned()
    }

    fn join(&mut self, a: &str, b: &str) {
        let (a, b) = (self.first(a), self.first(b));
        if let Some(entry) = self.nodes.get_mut(&b).filter(|_| a != b) {
            entry.1 = a;
        }
    }

    /// The groups with nodes among `integer` that lose a visible part of `whole` milliseconds, most first.
    fn slower(&self, integer: &BTreeSet<String>, whole: f64) -> Vec<Slower> {
        let mut members: BTreeMap<String, Vec<&String>> = BTreeMap::new();
        // What only moves elements goes with what it moves them for.
        let moves = |op: &str| MOVES.contains(&op);
        for (name, _) in self.nodes.iter().filter(|(n, (op, _))| integer.contains(*n) && !moves(op)) {
            members.entry(self.first(name)).or_default().push(name);
        }
        let loses = |&[float, int8]: &[f64; 2]| int8 > float * SLOWER && int8 - float > whole * MATTERS;
        let mut slower: Vec<Slower> = members
            .into_iter()
            .filter_map(|(first, names)| {
                let [float_ms, int8_ms] = *self.ms.get(&first).filter(|ms| loses(ms))?;
                let op = self.nodes.get(names[0]).map_or(String::new(), |(op, _)| op.clone());
                Some(Slower { nodes: names.into_iter().cloned().collect(), op, float_ms, int8_ms })
            })
            .collect();
        slower.sort_by(|a, b| (b.int8_ms - b.float_ms).total_cmp(&(a.int8_ms - a.float_ms)));
        slower
    }
}

/// Conversions and movements that are looked through.
const CHAIN: usize = 8;
/// Operators that hand on integers as they are.
const MOVES: [&str; 8] = ["Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split"];

impl Speed {
    /// Lines of the summary.
    pub fn text(&self) -> String {
        let threads = if self.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", self.threads) };
        let mut out = format!(
            "  speed   {:.3} ms float, {:.3} ms {} ({:.2}×) on {threads}, the medians of {} runs in turns\n",
            self.float_ms, self.int8_ms, self.format, self.ratio, self.runs
        );
        if self.slower.is_empty() {
            return out;
        }
        out.push_str(&format!("          slower {}:\n", on(&self.format)));
        for s in self.slower.iter().take(SHOWN) {
            let more = if s.nodes.len() > 1 { format!(" and {} with it", s.nodes.len() - 1) } else { String::new() };
            let head = format!("{} ({}){more}", s.nodes[0], s.op);
            out.push_str(&format!("            {head}: {:.3} → {:.3} ms\n", s.float_ms, s.int8_ms));
        }
        if self.slower.len() > SHOWN {
            out.push_str(&format!("            and {} more (--json lists all)\n", self.slower.len() - SHOWN));
        }
        let shown = self.slower.iter().take(SHOWN).flat_map(|s| &s.nodes);
        let flags: Vec<String> = shown.map(|name| format!("--exclude '{}'", glob(name))).collect();
        out.push_str(&format!("          to keep them float: {}\n", flags.join(" ")));
        out
    }
}

/// A glob that matches just this name.
pub fn glob(name: &str) -> String {
    let letter = |c: char| match c {
        '[' | ']' | '*' | '?' | '{' | '}' => format!("[{c}]"),
        c => c.to_string(),
    };
    name.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::text;
    use narrowbit_ops::Registry;

    fn graph(body: &str) -> Graph {
        text::parse_graph(&format!("graph \"g\" {{\n{body}\n}}"), &Registry, 20).expect("a graph")
    }

    fn step(graph: &Graph, names: &[&str], ms: f64) -> ProfileRow {
        let find = |name: &&str| graph.nodes().find(|(_, n)| n.name == **name).expect("a node").0;
        let nodes: Vec<NodeId> = names.iter().map(find).collect();
        let (node, seconds) = (nodes[0], ms / 1e3);
        ProfileRow {
            node,
            nodes,
            kernel: "k".into(),
            on_integers: false,
            operands: narrowbit_runtime::Operands::F32,
            bytes: 0,
            seconds,
        }
    }

    fn speed(ratio: f64, slower: Vec<Slower>) -> Speed {
        let (float_ms, int8_ms, pays) = (10.0, 10.0 * ratio, ratio < PAYS);
        Speed { format: "int8".into(), threads: 1, isa: "avx2".into(), runs: 9, float_ms, int8_ms, ratio, pays, slower }
    }

    const FLOAT: &str = "input %x: f32[2,2]\nconst %w: f32[2,2] = random(1)\n\
        %m = MatMul(%x, %w) @\"m\"\n%a = Relu(%m) @\"a\"\n%y = Neg(%a) @\"y\"\noutput %y";
    const INT8: &str = "input %x: f32[2,2]\nconst %s: f32[] = [0.5]\nconst %z: u8[] = [3]\nconst %w: f32[2,2] = random(1)\n\
        %xq = QuantizeLinear(%x, %s, %z) @\"xq\"\n%xd = DequantizeLinear(%xq, %s, %z) @\"xd\"\n\
        %m = MatMul(%xd, %w) @\"m\"\n%a = Relu(%m) @\"a\"\n%aq = QuantizeLinear(%a, %s, %z) @\"aq\"\n\
        %ad = DequantizeLinear(%aq, %s, %z) @\"ad\"\n%y = Neg(%ad) @\"y\"\noutput %y";

    #[test]
    fn counts_conversions_with_the_nodes_that_they_serve() {
        let (f, q) = (graph(FLOAT), graph(INT8));
        // Fused in one model only: they are one group all the same.
        let float = [step(&f, &["m"], 1.0), step(&f, &["a"], 1.0), step(&f, &["y"], 1.0)];
        let int8 =
            [step(&q, &["xq"], 2.0), step(&q, &["m", "a", "aq"], 3.0), step(&q, &["ad"], 4.0), step(&q, &["y"], 9.0)];
        let groups = Groups::new([&f, &q], [&float, &int8]);
        assert_eq!(groups.first("m"), groups.first("a"));
        assert_eq!(groups.ms[&groups.first("m")], [2.0, 9.0]);
        assert_eq!(groups.ms["y"], [1.0, 9.0]);
        // A float node may be slower by chance: nothing can be done about it.
        let integer = BTreeSet::from(["m".to_owned()]);
        let found = groups.slower(&integer, 3.0);
        assert_eq!(found, [Slower { nodes: vec!["m".into()], op: "MatMul".into(), float_ms: 2.0, int8_ms: 9.0 }]);
        assert_eq!(groups.slower(&integer, 1000.0), [], "seven of a thousand do not matter");
    }

    #[test]
    fn warns_only_where_int8_does_not_pay() {
        let warning = |ratio, slower| Outcome::Measured(speed(ratio, slower)).warning();
        assert_eq!(warning(0.5, vec![]), None);
        assert!(warning(1.0, vec![]).is_some_and(|w| w.contains("no faster than float (1.00×)") && w.contains("size")));
        let slow = Slower { nodes: vec!["m".into()], op: "MatMul".into(), float_ms: 1.0, int8_ms: 2.0 };
        assert!(
            warning(1.5, vec![slow]).is_some_and(|w| w.contains("slower than float") && w.contains("keep the nodes"))
        );
        assert_eq!(Outcome::TooSlow.warning(), None);
    }

    #[test]
    fn says_how_to_keep_slow_nodes_float() {
        let slow = Slower { nodes: vec!["/a[0]/m".into()], op: "MatMul".into(), float_ms: 1.0, int8_ms: 2.0 };
        let text = speed(0.8, vec![slow]).text();
        assert!(text.contains("/a[0]/m (MatMul): 1.000 → 2.000 ms"), "{text}");
        assert!(text.contains("to keep them float: --exclude '/a[[]0[]]/m'"), "{text}");
        let glob = globs(&glob("/a[0]/m*"));
        assert!(glob.0 && !glob.1);
    }

    /// Whether a glob matches the name that it was made of, and another one.
    fn globs(pattern: &str) -> (bool, bool) {
        use narrowbit_quant::options::{Matcher, Override};
        let o = Override { name: Some(pattern.to_owned()), float: Some(true), ..Override::default() };
        let overrides = [o];
        let matcher = Matcher::new(&overrides).expect("a glob");
        let has = |name: &str| {
            let g = graph(&FLOAT.replace("@\"m\"", &format!("@\"{name}\"")));
            matcher.unmatched(&g).is_empty()
        };
        (has("/a[0]/m*"), has("/a0/mm"))
    }
}
