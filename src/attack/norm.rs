//! Norms: what the size of a perturbation is measured by. Imports only `error`.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What the size of a perturbation is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Norm {
    /// The largest change of any pixel value.
    #[default]
    Linf,
    /// The Euclidean length of the change.
    L2,
}

impl Norm {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Norm::Linf => "linf",
            Norm::L2 => "l2",
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Norm {
    type Err = Error;

    /// In any case.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_lowercase().as_str() {
            "linf" => Ok(Norm::Linf),
            "l2" => Ok(Norm::L2),
            _ => Err(Error::Usage(format!("no norm {name:?}; there are linf and l2"))),
        }
    }
}
