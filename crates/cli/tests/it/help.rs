//! What the command says about itself.

use crate::home::Home;

const COMMANDS: [&str; 17] = [
    "demo",
    "inspect",
    "sanitize",
    "calibrate",
    "quantize",
    "run",
    "eval",
    "compare",
    "analyze",
    "check",
    "config",
    "bench",
    "convert",
    "explain",
    "export-encodings",
    "insert-rescaling",
    "completions",
];

#[test]
fn shows_help_of_every_command() {
    let home = Home::new();
    insta::assert_snapshot!("help", home.ok("--help").text());
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help-{command}"), home.ok(&format!("{command} --help")).text());
    }
    insta::assert_snapshot!("help-bench-kernels", home.ok("bench kernels --help").text());
}

#[test]
fn lists_every_command_in_the_help() {
    let help = Home::new().ok("--help").stdout;
    for command in COMMANDS {
        assert!(help.lines().any(|l| l.trim_start().starts_with(command)), "{command}\n{help}");
    }
}

#[test]
fn prints_version() {
    let version = Home::new().ok("--version").stdout;
    assert_eq!(version, format!("narrowbit {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn exits_with_2_on_wrong_usage() {
    let home = Home::new();
    let runs = ["", "frobnicate", "quantize", "run model.onnx --frobnicate", "eval model.onnx --target 0.9"];
    let texts: Vec<String> = runs.iter().map(|line| home.run(line).expect(2).text()).collect();
    insta::assert_snapshot!("usage", texts.join("\n"));
}

#[test]
fn completes_in_every_shell() {
    let home = Home::new();
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef narrowbit"), ("fish", "complete -c narrowbit")] {
        let script = home.ok(&format!("completions {shell}")).stdout;
        assert!(script.contains(mark), "{shell}: {script}");
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn survives_a_reader_that_goes_away() {
    // `| head -1` closes the pipe before everything is printed.
    let home = Home::new();
    for line in ["completions bash", "inspect --all model.onnx"] {
        if line.contains("model") {
            crate::models::save_linear(&home.path("model.onnx"));
        }
        let script = format!("{{ {} {line}; echo $? >code; }} 2>err | true", crate::home::binary());
        home.command("sh").args(["-c", &script]).status().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&home.read("code")).trim(), "0", "{line}");
        assert_eq!(String::from_utf8_lossy(&home.read("err")), "", "{line}");
    }
}
