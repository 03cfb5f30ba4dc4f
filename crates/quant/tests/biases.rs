//! A bias that an Add gives a MatMul is stored as int32, where no rule of the plan forbids it.

use std::collections::BTreeMap;

use narrowbit_ir::{Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::observe::{Means, Stats};
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::{PlanError, QuantPlan};
use narrowbit_quant::quantize;
use narrowbit_quant::scheme::NumberFormat;

/// The plan for a graph that reads `x` and has the weight `w`; `x` lies in [-1, 1].
fn plan(body: &str) -> (Model, QuantPlan) {
    let (model, plan) = plan_with(body, &QuantOptions::default(), None);
    (model, plan.unwrap())
}

/// As [`plan`], with settings and the means of the columns of `x`.
fn plan_with(body: &str, options: &QuantOptions, means: Option<[f64; 4]>) -> (Model, Result<QuantPlan, PlanError>) {
    let head = "input %x: f32[n, 8, 4] const %w: f32[4, 3] = random(1) const %b: f32[3] = [0.5, -0.25, 4]";
    let text = format!("model opset=17 graph \"g\" {{ {head} {body} output %y }}");
    let model: Model = text::parse_model(&text, &Registry).unwrap();
    let layout = quantize::layout(&model, options).unwrap();
    let mut stats = Stats::new(false);
    stats.add_sample(&[-1.0, 1.0]);
    stats.means = means.map(|m| {
        let mut record = Means::default();
        record.add(1, &m);
        record
    });
    let stats = BTreeMap::from([("x".to_owned(), stats)]);
    let exec = Exec::new(Isa::detect(), 1);
    let plan = QuantPlan::new(&model.graph, layout, &stats, options, &exec);
    (model, plan)
}

/// The names of the nodes with a bias of int32.
fn biased(body: &str) -> Vec<String> {
    let (model, plan) = plan(body);
    plan.biases.keys().map(|k| model.graph.node(k.0).name.clone()).collect()
}

#[test]
fn stores_the_bias_of_an_add_with_the_scale_of_the_product() {
    for add in ["Add(%p, %b)", "Add(%b, %p)"] {
        let (_, plan) = plan(&format!("%p = MatMul(%x, %w) %y = {add}"));
        let (weight, bias) = (plan.weights.values().next().unwrap(), plan.biases.values().next().unwrap());
        let input = plan.activations.values().next().unwrap().point.scale;
        let expected: Vec<f32> = weight.points.iter().map(|p| input * p.scale).collect();
        assert!(bias.per_channel);
        assert_eq!(bias.scales, expected);
    }
    assert_eq!(biased("%p = MatMul(%x, %w) %y = Add(%p, %b) @\"sum\""), ["sum"]);
}

#[test]
fn leaves_an_add_alone_that_is_no_bias_of_a_product() {
    assert!(biased("%p = MatMul(%x, %w) %y = Sub(%p, %b)").is_empty());
    assert!(biased("%p = MatMul(%x, %w) %y = Add(%p, %b) %z = Relu(%p) output %z").is_empty());
    assert!(biased("const %c: f32[1] = [2] %p = MatMul(%x, %w) %y = Add(%p, %c)").is_empty());
    assert!(biased("const %c: f32[3] = [1, inf, 2] %p = MatMul(%x, %w) %y = Add(%p, %c)").is_empty());
    assert!(biased("const %c: f32[1, 1, 1, 3] = [1, 2, 3] %p = MatMul(%x, %w) %y = Add(%p, %c)").is_empty());
    assert!(biased("input %c: f32[3] %p = MatMul(%x, %w) %y = Add(%p, %c)").is_empty());
}

#[test]
fn corrects_the_float_bias_of_an_fp8_product() {
    let body = "%p = MatMul(%x, %w) %y = Add(%p, %b) @\"sum\"";
    let mut options = QuantOptions::default();
    (options.weights.format, options.activations.format) = (NumberFormat::Fp8E4m3, NumberFormat::Fp8E4m3);
    let means = [0.5, -0.25, 1.0, 0.125];
    let (_, plain) = plan_with(body, &options, Some(means));
    assert!(plain.unwrap().float_biases.is_empty());
    options.bias_correction = true;
    let (model, plan) = plan_with(body, &options, Some(means));
    let plan = plan.unwrap();
    assert!(plan.biases.is_empty(), "sums of fp8 products are floats");
    let ((_, params), (key, bias)) = (plan.weights.iter().next().unwrap(), plan.float_biases.iter().next().unwrap());
    assert_eq!(model.graph.node(key.0).name, "sum");
    let w = model.graph.constant(model.graph.value_named("w").unwrap()).unwrap();
    let codes = params.tensor(&Exec::new(Isa::detect(), 1), w).unwrap().to_f64s().unwrap();
    let floats = w.to_f64s().unwrap();
    let changed = |j: usize| -> f64 {
        let scale = f64::from(params.points[j].scale);
        (0..4).map(|i| means[i] * (codes[i * 3 + j] * scale - floats[i * 3 + j])).sum()
    };
    let expected: Vec<f32> = [0.5, -0.25, 4.0].iter().enumerate().map(|(j, b)| (b - changed(j)) as f32).collect();
    assert_eq!(bias.to_f32s().unwrap(), expected);
    assert_ne!(expected, [0.5, -0.25, 4.0]);
}

#[test]
fn asks_for_the_means_that_a_correction_needs() {
    let mut options = QuantOptions::default();
    (options.weights.format, options.activations.format) = (NumberFormat::Fp8E4m3, NumberFormat::Fp8E4m3);
    options.bias_correction = true;
    let (_, plan) = plan_with("%p = MatMul(%x, %w) %y = Add(%p, %b)", &options, None);
    assert_eq!(plan.unwrap_err(), PlanError::NoMeans("x".into()));
}
