//! The program in a folder of its own, as a user runs it.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A command in a folder of its own.
pub struct Bench {
    pub folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signstep"));
        command.args(line.split_whitespace()).current_dir(self.folder.path()).stdin(Stdio::null());
        // Not the user's.
        command.env("SIGNSTEP_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
        command
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs what must succeed, and gives its standard output.
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "signstep {line}: {}\n{errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What must have failed with `code` and an error that holds each of `words`.
#[allow(dead_code, reason = "not every program of tests refuses")]
pub fn refused(output: &Output, line: &str, code: i32, words: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "signstep {line}: {errors}");
    let told = errors.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
    for word in words {
        assert!(told.contains(word), "signstep {line}: `{word}` is missing from\n{errors}");
    }
}

/// What lies in a folder, in order.
#[allow(dead_code, reason = "not every program of tests looks into folders")]
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A file in a folder, as messages have it: with what parts paths on this system.
#[allow(dead_code, reason = "not every program of tests looks for paths in messages")]
pub fn within(folder: &str, name: &str) -> String {
    Path::new(folder).join(name).display().to_string()
}

#[allow(dead_code, reason = "not every program of tests reads JSON")]
pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}:\n{text}"))
}
