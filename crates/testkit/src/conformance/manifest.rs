use std::collections::{BTreeMap, BTreeSet};

use super::case::{Outcome, State};
use super::index::Case;

/// Why certain cases can't pass: lines `pattern: reason`, where a pattern is a case name with `*` for any text.
#[derive(Debug, Default)]
pub struct Reasons(Vec<(String, String)>);

impl Reasons {
    /// Reads the lines of a file; empty lines and those that begin with `#` do not count.
    pub fn parse(text: &str) -> Reasons {
        let lines = lines(text).filter_map(|l| l.split_once(':'));
        Reasons(lines.map(|(p, r)| (p.trim().into(), r.trim().into())).collect())
    }

    /// The reason for a case.
    pub fn of(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(p, _)| matches(p, name)).map(|(_, r)| r.as_str())
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).any(|i| rest.is_char_boundary(i) && matches(tail, &rest[i..]))),
    }
}

/// Operators that narrowbit claims: one name a line, `*` at the end for a family, the domain in front for others
/// than ONNX's own.
#[derive(Debug, Default)]
pub struct Required(Vec<String>);

impl Required {
    /// Reads the lines of a file as [`Reasons::parse`] does.
    pub fn parse(text: &str) -> Required {
        Required(lines(text).map(str::to_owned).collect())
    }

    /// Whether an operator is claimed.
    pub fn has(&self, op: &str) -> bool {
        self.0.iter().any(|p| matches(p, op))
    }

    /// For each claimed operator that occurs in a case: how many cases with it pass, and how many there are.
    pub fn counts<'a>(&self, results: &'a [(Case, Outcome)]) -> BTreeMap<&'a str, (usize, usize)> {
        let mut counts = BTreeMap::new();
        for (case, outcome) in results {
            for op in case.op_types.iter().filter(|op| self.has(op)) {
                let count: &mut (usize, usize) = counts.entry(op.as_str()).or_default();
                count.0 += usize::from(outcome.state == State::Pass);
                count.1 += 1;
            }
        }
        counts
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'))
}

/// The manifest: one line a case, `name state [reason]`.
pub fn render(results: &[(Case, Outcome)]) -> String {
    let mut out = String::new();
    for (case, outcome) in results {
        let state = match &outcome.state {
            State::Pass => "pass".into(),
            State::Fail => "fail".into(),
            State::Unsupported(ops) => format!("unsupported({})", ops.join(",")),
            State::Skipped(reason) => format!("skipped({reason})"),
        };
        let line = format!("{} {state} {}", case.name, outcome.reason);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The lines that differ between two manifests: `- old` and `+ new`.
pub fn differences(old: &str, new: &str) -> Vec<String> {
    let (a, b): (BTreeSet<&str>, BTreeSet<&str>) = (old.lines().collect(), new.lines().collect());
    let gone = a.difference(&b).map(|l| format!("- {l}"));
    let come = b.difference(&a).map(|l| format!("+ {l}"));
    let mut all: Vec<String> = gone.chain(come).collect();
    all.sort_by(|x, y| x[2..].cmp(&y[2..]));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_patterns_with_stars() {
        let r = Reasons::parse("# comment\ntest_bernoulli*: random outputs\n*_training_*_x: why\n");
        assert_eq!(r.of("test_bernoulli_seed"), Some("random outputs"));
        assert_eq!(r.of("a_training_b_x"), Some("why"));
        assert_eq!(r.of("a_training_b_y"), None);
        assert!(Required::parse("Reduce*\nRelu").has("ReduceMax"));
        assert!(!Required::parse("Reduce*\nRelu").has("PRelu"));
    }

    #[test]
    fn lists_differing_lines_side_by_side() {
        let d = differences("a pass\nb pass\n", "a pass\nb fail x\nc pass\n");
        assert_eq!(d, ["+ b fail x", "- b pass", "+ c pass"]);
    }
}
