//! A folder of its own for each test, and the command run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use narrowbit_testkit::paths;
use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

/// The networks of the folder `examples`.
pub const EXAMPLES: [&str; 3] = ["digits-cnn", "digits-vit", "diabetes-mlp"];

/// What a command gave.
#[derive(Debug)]
pub struct Ran {
    pub args: Vec<String>,
    /// The exit code; negative: the signal that ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// All of it as text for a snapshot, with what changes from run to run masked.
    pub fn text(&self) -> String {
        let masked = mask(&format!("--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr));
        format!("$ narrowbit {}\nexit code {}\n{masked}", self.args.join(" "), self.code)
    }

    /// Its result.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}\n{}", self.text()))
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{}", self.text());
        self
    }
}

/// Measured times differ from run to run, and the last digits of errors from processor to processor.
fn mask(text: &str) -> String {
    static MASKS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let all = [
            (r"\d+\.\d+ s for", "[TIME] s for"),
            (r"-?\d+\.\d+ dB", "[DB]"),
            (r"cosine \d\.\d+", "cosine [COSINE]"),
            (r"(pearson|spearman|mse|top1|top5) \d+\.\d+", "${1} [SCORE]"),
            (r"max (error )?\d\.\d+e-?\d+", "max ${1}[ERROR]"),
        ];
        all.into_iter().map(|(r, to)| (Regex::new(r).expect("a regular expression"), to)).collect()
    });
    let repo = text.replace(&paths::repo().display().to_string(), "[REPO]");
    MASKS.iter().fold(repo, |t, (r, to)| r.replace_all(&t, *to).into_owned())
}

/// The command itself.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_narrowbit")
}

/// A temporary folder in which commands run.
pub struct Home(TempDir);

impl Home {
    /// An empty one.
    pub fn new() -> Home {
        Home(tempfile::tempdir().expect("a temporary folder"))
    }

    /// One with the files of an example: `model.onnx`, `calib.npz`, `test.npz`, `case.json`.
    pub fn with_example(name: &str) -> Home {
        let home = Home::new();
        for file in ["model.onnx", "calib.npz", "test.npz", "case.json"] {
            fs::copy(example(name).join(file), home.path(file)).expect("the example is copied");
        }
        home
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of its files, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder is read");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Writes a text file.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("the file is written");
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("the file is read")
    }

    /// The command, ready to run here with an environment that does not reach into its output.
    pub fn command(&self, program: &str) -> Command {
        let mut c = Command::new(program);
        c.current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["COLUMNS", "LINES", "RUST_LOG", "RUST_BACKTRACE", "CLICOLOR_FORCE", "NARROWBIT_ISA"] {
            c.env_remove(name);
        }
        c
    }

    /// Runs the command with arguments that blanks separate.
    pub fn run(&self, line: &str) -> Ran {
        self.run_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs the command.
    pub fn run_args(&self, args: &[&str]) -> Ran {
        let out = self.command(binary()).args(args).output().expect("the command starts");
        Ran {
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            code: code(out.status),
            stdout: String::from_utf8(out.stdout).expect("UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("UTF-8"),
        }
    }

    /// Runs the command, which must succeed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> Ran {
        self.run(line).expect(0)
    }

    /// Runs the command with `--json`, which must succeed.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        self.ok(&format!("{line} --json")).json()
    }
}

/// The exit code, or minus the signal.
pub fn code(status: std::process::ExitStatus) -> i32 {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal: Option<i32> = None;
    status.code().unwrap_or_else(|| -signal.unwrap_or(i32::MAX))
}

/// The folder of an example.
pub fn example(name: &str) -> PathBuf {
    paths::repo().join("examples").join(name)
}

/// The flags that an example's images need.
pub fn preprocess(name: &str) -> &'static str {
    if name == "diabetes-mlp" { "" } else { "--preprocess case.json" }
}

/// Runs a Python script of the folder `tests` with the environment that has ONNX Runtime; none without it.
pub fn python(script: &str, args: &[&Path]) -> Option<Ran> {
    let python = paths::python()?;
    let script = paths::repo().join("tests").join(script);
    let out = Command::new(python).arg(script).args(args).stdin(Stdio::null()).output().expect("Python starts");
    Some(Ran {
        args: args.iter().map(|a| a.display().to_string()).collect(),
        code: code(out.status),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}
