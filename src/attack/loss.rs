//! Losses: what an attack follows. Each is a function of the logits z of one sample, of the class it is followed for,
//! and, with a target, of the true label. Untargeted attacks climb the loss of the label, targeted ones descend that of
//! the target.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Cross-entropy: −log softmax(z)\[class\].
    #[default]
    CrossEntropy,
    /// The margin of Carlini & Wagner 2017 (arXiv:1608.04644): the highest other logit minus that of the class.
    Margin,
    /// Difference of logits ratio (Croce & Hein 2020, arXiv:2003.01690), z sorted into z₁ ≥ z₂ ≥ …: untargeted
    /// (z_o − z_y) / (z₁ − z₃ + 10⁻¹²) with z_o the highest logit but the label's; targeted (descended)
    /// (z_y − z_t) / (z₁ − ½(z₃ + z₄) + 10⁻¹²). Gradients run through the denominator.
    Dlr,
    /// z_class − z_label: zero where the two change places. What [`super::Rule::Fab`] needs, and no other rule.
    Difference,
}

impl Loss {
    /// All there are.
    pub const ALL: [Loss; 4] = [Loss::CrossEntropy, Loss::Margin, Loss::Dlr, Loss::Difference];

    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Loss::CrossEntropy => "ce",
            Loss::Margin => "margin",
            Loss::Dlr => "dlr",
            Loss::Difference => "difference",
        }
    }

    /// Whether a network of `classes` has enough of them.
    ///
    /// # Errors
    /// [`Error::Usage`] saying how many are needed.
    pub fn check(self, classes: usize, is_targeted: bool) -> Result<()> {
        let (needed, how) = match (self, is_targeted) {
            (Loss::Dlr, false) => (3, "the loss dlr"),
            (Loss::Dlr, true) => (4, "the loss dlr with a target"),
            (Loss::Margin, _) => (2, "the loss margin"),
            (Loss::Difference, _) => (2, "fab-t"),
            (Loss::CrossEntropy, _) => return Ok(()),
        };
        if classes >= needed {
            return Ok(());
        }
        Err(Error::Usage(format!("{how} needs {needed} classes, but the network has {classes}: follow another loss")))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        // The difference comes with its method: nobody has to name it.
        let names = || Loss::ALL.into_iter().filter(|l| *l != Loss::Difference).map(Loss::name).collect::<Vec<_>>();
        let wrong = || Error::Usage(format!("no loss {name:?}; there are {}", names().join(", ")));
        Loss::ALL.into_iter().find(|l| l.name() == name).ok_or_else(wrong)
    }
}
