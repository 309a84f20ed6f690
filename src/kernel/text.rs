//! The text of a kernel for one shape. The files in `shaders/` are WGSL with lines that begin with `//#`:
//!
//! | line | meaning |
//! |---|---|
//! | `//# kernel NAME [NAME…]` | what follows, up to the next such line, belongs to these entry points alone; `$entry` is the name. Text before the first such line belongs to all |
//! | `//# include FILE` | the text of `shaders/FILE.wgsl` |
//! | `//# enable NAME` | WGSL's `enable`, which stands before everything else |
//! | `//# NAME: activation read` or `write` | a binding; generates `NAME_at(i)` or `NAME_put(i, v)` over texels, from a buffer or a texture |
//! | `//# NAME: activation write pairs(EXTENT)` | the same; where EXTENT, that of the innermost dimension, is even, texels 2i and 2i + 1 are written together, by `NAME_put_pair(i, a, b)` |
//! | `//# NAME: texels read` | the same for texels that no batch changes |
//! | `//# NAME: storage read T`, `storage update T`, `uniform T` | a binding of that type |
//! | `//# NAME: weights T` | uniform where a slice of weights fits a uniform binding (constant `UNIFORM`), else storage |
//! | `//# for v in A..B` … `//# end` | the lines in between, once for each value; `v` is one letter, `$v` is the value, `$(2*v+1)` is arithmetic |
//! | `//# if A == B` (also `!=`, `<`, `>=`; a number alone: whether it is not zero) … `//# else` … `//# end` | one of the two |
//!
//! Bindings are numbered in the order in which they appear. Shapes enter as `const` lines; the batch size never does.
//! `half.wgsl` and `wide.wgsl` stand in front of a kernel that has [`Kernel::halves`] or is [`Kernel::wide`].

use super::binding::{Access, declared};
use super::expression::Scope;
use super::{Kernel, files};
use crate::error::{Error, Result};
use std::fmt::Write as _;

/// Generated shader text and what it binds, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// WGSL.
    pub text: String,
    /// Names and access; the place is the binding number, the group is 0.
    pub bindings: Vec<(String, Access)>,
}

impl Kernel {
    /// The WGSL of this kernel.
    ///
    /// # Errors
    /// [`Error::Internal`] when the file or the constants are at fault.
    pub fn source(&self) -> Result<Source> {
        let mut lines = Vec::new();
        let mut ours = true;
        for line in files::declaring(self.entry)?.lines() {
            if let Some(mut names) = files::entries(line) {
                ours = names.any(|name| name == self.entry);
            } else if !ours {
                continue;
            } else if let Some(name) = line.strip_prefix("//# include ") {
                lines.extend(files::named(name.trim())?.lines());
            } else {
                lines.push(line);
            }
        }
        let scope = Scope { consts: &self.consts, vars: Vec::new() };
        let mut out = Expander { kernel: self, text: String::new(), bindings: Vec::new(), scope };
        for name in lines.iter().filter_map(|l| l.strip_prefix("//# enable ")) {
            let _ = writeln!(out.text, "enable {name};");
        }
        for (name, value) in &self.consts {
            let _ = writeln!(out.text, "const {name}: u32 = {value}u;");
        }
        if !self.halves.is_empty() {
            out.text.push_str(files::named("half")?);
        }
        if self.wide {
            out.text.push_str(files::named("wide")?);
        }
        let rest = out.block(&lines, true)?;
        if !rest.is_empty() {
            return out.fail(rest[0]);
        }
        Ok(Source { text: out.text, bindings: out.bindings })
    }
}

/// Turns lines with directives into WGSL.
struct Expander<'a> {
    kernel: &'a Kernel,
    text: String,
    bindings: Vec<(String, Access)>,
    scope: Scope<'a>,
}

impl Expander<'_> {
    fn fail<T>(&self, line: &str) -> Result<T> {
        Err(Error::Internal(format!("shader text of {}: {line}", self.kernel.entry)))
    }

    /// Expands lines up to the `//# end` or `//# else` that closes this block, and returns what is left from there on.
    fn block<'l>(&mut self, mut lines: &'l [&'l str], emit: bool) -> Result<&'l [&'l str]> {
        while let Some((&line, rest)) = lines.split_first() {
            let Some(directive) = line.trim_start().strip_prefix("//# ") else {
                if emit {
                    let expanded = self.substitute(line)?;
                    self.text.push_str(&expanded);
                    self.text.push('\n');
                }
                lines = rest;
                continue;
            };
            let words: Vec<&str> = directive.split_whitespace().collect();
            lines = match words[..] {
                ["end" | "else"] => return Ok(lines),
                ["if", ..] => {
                    let yes = emit && self.condition(&words[1..].join(" "))?;
                    let mut after = self.block(rest, yes)?;
                    if after.first().is_some_and(|l| l.trim() == "//# else") {
                        after = self.block(&after[1..], emit && !yes)?;
                    }
                    self.close(after, line)?
                }
                ["for", var, "in", ..] => {
                    let range = words[3..].join("");
                    let (Some((from, to)), Some(name)) = (range.split_once(".."), var.chars().next()) else {
                        return self.fail(line);
                    };
                    let after = self.block(rest, false)?;
                    if emit {
                        for value in self.evaluate(from)?..self.evaluate(to)? {
                            self.scope.vars.push((name, value));
                            self.block(rest, true)?;
                            self.scope.vars.pop();
                        }
                    }
                    self.close(after, line)?
                }
                ["enable", _] => rest,
                [name, ..] if name.ends_with(':') => {
                    if emit {
                        self.binding(name.trim_end_matches(':'), &words[1..])?;
                    }
                    rest
                }
                _ => return self.fail(line),
            };
        }
        Ok(lines)
    }

    fn close<'l>(&self, lines: &'l [&'l str], opened: &str) -> Result<&'l [&'l str]> {
        match lines.split_first() {
            Some((end, rest)) if end.trim() == "//# end" => Ok(rest),
            _ => self.fail(opened),
        }
    }

    fn binding(&mut self, name: &str, words: &[&str]) -> Result<()> {
        let number = self.bindings.len();
        let Some((access, text)) = declared(self.kernel, &self.scope, number, name, words) else {
            return self.fail(name);
        };
        self.text.push_str(&text);
        self.text.push('\n');
        self.bindings.push((name.to_string(), access));
        Ok(())
    }

    fn evaluate(&self, text: &str) -> Result<i64> {
        self.scope.evaluate(text).map_or_else(|| self.fail(text), Ok)
    }

    fn condition(&self, text: &str) -> Result<bool> {
        self.scope.condition(text).map_or_else(|| self.fail(text), Ok)
    }

    /// `$v`, `$(expression)`, `$entry`.
    fn substitute(&self, line: &str) -> Result<String> {
        let mut out = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix("entry") {
                out.push_str(self.kernel.entry);
                rest = tail;
            } else if rest.starts_with('(') {
                let mut depth = 0_i32;
                let close = rest.char_indices().find(|(_, c)| {
                    depth += i32::from(*c == '(') - i32::from(*c == ')');
                    depth == 0
                });
                let Some((close, _)) = close else { return self.fail(line) };
                let _ = write!(out, "{}", self.evaluate(&rest[1..close])?);
                rest = &rest[close + 1..];
            } else {
                let _ = write!(out, "{}", self.evaluate(&rest[..1])?);
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }
}
