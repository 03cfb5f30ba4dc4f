//! `bench` and `quantize --measure`: the figures agree with each other. How large they are is nobody's business here.

use serde_json::Value;

use crate::home::{Home, preprocess};

fn number(v: &Value, name: &str) -> f64 {
    v[name].as_f64().unwrap_or_else(|| panic!("{name} of {v}"))
}

fn rows<'a>(v: &'a Value, name: &str) -> &'a Vec<Value> {
    v[name].as_array().unwrap_or_else(|| panic!("{name} of {v}"))
}

/// The example with its int8 model.
fn quantized(example: &str, flags: &str) -> Home {
    let home = Home::with_example(example);
    let p = preprocess(example);
    home.ok(&format!("quantize model.onnx --data calib.npz {p} {flags} --measure=no -o int8.onnx"));
    home
}

#[test]
fn measures_models_side_by_side() {
    let home = quantized("digits-cnn", "");
    let v = home.json("bench model.onnx int8.onnx --runs 5 --threads 1,2 --batch 1,3");
    let all = v.as_array().expect("rows");
    assert_eq!(all.len(), 8);
    for pair in all.chunks(2) {
        assert_eq!((&pair[0]["threads"], &pair[0]["batch"]), (&pair[1]["threads"], &pair[1]["batch"]));
        assert_eq!(pair[0]["latency_ratio"], 1.0);
        let ratio = number(&pair[1], "median_ms") / number(&pair[0], "median_ms");
        assert!((number(&pair[1], "latency_ratio") - ratio).abs() <= 1e-9 * ratio);
        assert!(number(&pair[1], "bytes_ratio") < 0.5, "int8 is smaller: {v}");
        for r in pair {
            assert!(number(r, "min_ms") <= number(r, "median_ms") && number(r, "median_ms") <= number(r, "p90_ms"));
            let load = number(r, "parse_ms") + number(r, "session_ms") + number(r, "first_run_ms");
            assert!((number(r, "load_ms") - load).abs() <= 1e-6 * load);
            let throughput = number(r, "batch") / number(r, "median_ms") * 1e3;
            assert!((number(r, "samples_per_second") - throughput).abs() <= 1e-6 * throughput);
            assert!(r["profile"].is_null() && r["peaks"].is_null(), "nobody asked for a profile");
        }
    }
    // One model has nothing to be held against.
    let alone = home.json("bench model.onnx --runs 1 --threads 1");
    assert!(alone[0]["latency_ratio"].is_null());
    let text = home.ok("bench model.onnx int8.onnx --runs 1 --threads 1 --batch 1,2").stdout;
    for part in ["ratios are to model.onnx", "+ first run", "threads 1  batch 1", "int8.onnx: 100.0 % of"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn profiles_every_step_once() {
    let home = quantized("digits-vit", "--exclude-type Gemm");
    let v = home.json("bench model.onnx int8.onnx --runs 2 --threads 1 --profile");
    for r in v.as_array().expect("rows") {
        let (ops, nodes) = (rows(r, "profile"), rows(r, "profile_nodes"));
        let sum = |rows: &[Value], name: &str| rows.iter().map(|x| number(x, name)).sum::<f64>();
        assert!((sum(ops, "ms") - sum(nodes, "ms")).abs() < 1e-9 * sum(ops, "ms") + 1e-9);
        for rows in [ops, nodes] {
            assert!((sum(rows, "share") - 1.0).abs() < 1e-9);
            assert!(rows.windows(2).all(|w| number(&w[0], "ms") >= number(&w[1], "ms")), "longest first");
        }
        // The steps are parts of the run, and most of it: between them is little but copying results.
        let part = sum(ops, "ms") / number(r, "profile_ms");
        assert!(part > 0.3 && part <= 1.0, "{part} of the run");
        assert_eq!(sum(ops, "nodes"), nodes.len() as f64);
        let mut names: Vec<&str> = nodes
            .iter()
            .filter(|n| n["kernel"] != "change_layout")
            .flat_map(|n| n["fused"].as_array().into_iter().flatten().chain([&n["node"]]))
            .map(|n| n.as_str().expect("a name"))
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a node runs once");
        assert_profiled_rates(r);
    }
    // What ran on integers is the same by either count.
    let integers = |r: &Value| -> u64 {
        rows(r, "profile_nodes").iter().filter(|n| n["on_integers"] == true).filter_map(|n| n["macs"].as_u64()).sum()
    };
    assert_eq!(integers(&v[0]), 0);
    assert_eq!(Some(integers(&v[1])), v[1]["integers"]["integer_macs"].as_u64());
    assert!(v[1]["integers"]["integer_macs"].as_u64() < v[1]["integers"]["macs"].as_u64());
    let float: Vec<&Value> = rows(&v[1]["integers"], "float_nodes").iter().map(|n| &n["op"]).collect();
    assert!(!float.is_empty() && float.iter().all(|op| **op == "Gemm"), "{float:?}");
}

#[track_caller]
fn assert_profiled_rates(r: &Value) {
    let peak = |n: &Value| {
        let bf16 = n["kernel"].as_str().is_some_and(|k| k.contains("bf16")) && !r["peaks"]["bf16"].is_null();
        let name = if n["on_integers"] == true {
            "int8"
        } else if bf16 {
            "bf16"
        } else {
            "f32"
        };
        number(&r["peaks"][name], "gops")
    };
    for n in rows(r, "profile_nodes") {
        let macs = number(n, "macs");
        if macs == 0.0 {
            assert!(n["gops"].is_null() && n["peak_share"].is_null(), "{n}");
            continue;
        }
        let gops = macs * 2e-6 / number(n, "ms");
        assert!((number(n, "gops") - gops).abs() <= 1e-6 * gops, "{n}");
        let share = gops / peak(n);
        assert!((number(n, "peak_share") - share).abs() <= 1e-6 * share, "{n}");
    }
}

#[test]
fn cuts_long_profiles_unless_asked_for_all() {
    let home = quantized("digits-vit", "");
    let lines = |flags: &str| home.ok(&format!("bench int8.onnx --runs 1 --threads 1 --profile {flags}")).stdout;
    let (some, all) = (lines("--top 3"), lines("--top 0"));
    assert!(some.contains("more (--top 0 shows all)") && !all.contains("more (--top"), "{some}\n{all}");
    assert!(some.lines().count() + 10 < all.lines().count());
    assert!(some.contains("peak on 1 thread: int8 "), "{some}");
}

#[test]
fn measures_kernels_against_the_machine() {
    let home = Home::new();
    let v = home.json("bench kernels --only MiniLM --seconds 0 --threads 1");
    let peaks = rows(&v, "peaks");
    assert!(!peaks.is_empty());
    for p in peaks {
        assert!(number(&p["int8"], "gops") > 0.0 && number(&p["f32"], "gops") > 0.0, "{p}");
    }
    let kernels = rows(&v, "kernels");
    // Two shapes, by the panels of integers and floats and the float product, on each tier, and by those of bfloat16 where
    // it multiplies that.
    let bf16 = peaks.iter().filter(|p| !p["bf16"].is_null()).count();
    assert_eq!(kernels.len(), 6 * peaks.len() + 2 * bf16);
    assert_eq!(kernels.iter().filter(|k| k["family"] == "bf16 product").count(), 2 * bf16);
    for k in kernels {
        assert_eq!(k["network"], "MiniLM");
        assert!(number(k, "min_us") <= number(k, "median_us") && number(k, "runs") >= 3.0);
        assert!(k["bound"] == "compute" || k["bound"] == "memory");
        let share = number(k, "bound_us") / number(k, "median_us");
        assert!((number(k, "share") - share).abs() <= 1e-6 * share);
    }
    let text = home.ok("bench kernels --only softmax --seconds 0 --threads 1 --tier scalar").stdout;
    assert!(text.starts_with("scalar, 1 thread; peak on 1 thread: int8 "), "{text}");
    assert!(text.contains("softmax_f32_to_u8") && text.contains("2364×197"), "{text}");
}

#[test]
fn refuses_kernels_that_are_not_there() {
    let home = Home::new();
    let only = home.run("bench kernels --only frobnicate --seconds 0 --threads 1 --tier scalar").expect(2);
    assert!(only.stderr.contains("without --only"), "{}", only.text());
    let tier = home.run("bench kernels --tier sse9").expect(2);
    assert!(tier.stderr.contains("use scalar, neon"), "{}", tier.text());
    home.run("bench kernels --threads 99999 --only frobnicate").expect(2);
    // A model of that name is found by its path.
    crate::models::save_linear(&home.path("kernels"));
    home.ok("bench ./kernels --runs 1 --threads 1");
}

#[test]
fn says_whether_int8_pays() {
    let home = Home::with_example("digits-vit");
    let quantize = format!("quantize model.onnx --data calib.npz {} -o int8.onnx", preprocess("digits-vit"));
    let v = home.json(&format!("{quantize} --measure --threads 1"));
    let speed = &v["speed"];
    let ratio = number(speed, "int8_ms") / number(speed, "float_ms");
    assert!((number(speed, "ratio") - ratio).abs() <= 1e-9 * ratio, "{speed}");
    assert_eq!(speed["pays"], ratio < 0.95, "{speed}");
    assert_eq!(speed["threads"], 1);
    let warned = rows(&v, "warnings").iter().any(|w| w.as_str().is_some_and(|w| w.starts_with("int8 does not pay")));
    assert_eq!(warned, speed["pays"] == false, "{v}");
    let integer: Vec<&Value> =
        rows(&v, "node_list").iter().filter(|n| n["integer"] == true).map(|n| &n["node"]).collect();
    for s in rows(speed, "slower") {
        assert!(number(s, "int8_ms") > number(s, "float_ms"), "{s}");
        assert!(rows(s, "nodes").iter().all(|n| integer.contains(&n)), "only these can be kept float: {s}");
    }
    assert!(home.ok(&format!("{quantize} --measure=yes")).stdout.contains("ms int8 ("));
    assert!(home.json(&format!("{quantize} --measure=no"))["speed"].is_null());
    // Unasked, it is not run where the check is not wanted either.
    assert!(home.json(&format!("{quantize} --no-check"))["speed"].is_null());
    assert!(home.json(&quantize)["speed"].is_object(), "a small model is measured unasked");
}

#[test]
fn measures_a_model_that_was_quantized_from_ranges() {
    let home = Home::with_example("diabetes-mlp");
    home.ok("calibrate model.onnx --data calib.npz -o ranges.json");
    let v = home.json("quantize model.onnx --ranges ranges.json --measure --threads 1 -o int8.onnx");
    assert!(number(&v["speed"], "float_ms") > 0.0, "{v}");
}
