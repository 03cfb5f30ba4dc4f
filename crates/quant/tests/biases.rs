//! A bias that an Add gives a MatMul is stored as int32, where no rule of the plan forbids it.

use std::collections::BTreeMap;

use narrowbit_ir::{Model, text};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::observe::Stats;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::QuantPlan;
use narrowbit_quant::quantize;

/// The plan for a graph that reads `x` and has the weight `w`; `x` lies in [-1, 1].
fn plan(body: &str) -> (Model, QuantPlan) {
    let head = "input %x: f32[n, 8, 4] const %w: f32[4, 3] = random(1) const %b: f32[3] = [0.5, -0.25, 4]";
    let text = format!("model opset=17 graph \"g\" {{ {head} {body} output %y }}");
    let model: Model = text::parse_model(&text, &Registry).unwrap();
    let options = QuantOptions::default();
    let layout = quantize::layout(&model, &options).unwrap();
    let mut stats = Stats::new(false);
    stats.add_sample(&[-1.0, 1.0]);
    let stats = BTreeMap::from([("x".to_owned(), stats)]);
    let exec = Exec::new(Isa::detect(), 1);
    let plan = QuantPlan::new(&model.graph, layout, &stats, &options, &exec).unwrap();
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
