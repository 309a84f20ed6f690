//! Methods: which attacks there are, what each of them can do, and what its authors' code does unless told otherwise.
//! Imports only `error` and the losses.

use super::loss::Loss;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Which attack of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// One step of length eps (Goodfellow et al. 2015, arXiv:1412.6572).
    Fgsm,
    /// Iterative FGSM, also called BIM (Kurakin et al. 2017, arXiv:1607.02533): no random start.
    Ifgsm,
    /// Projected gradient descent (Madry et al. 2018, arXiv:1706.06083): as `ifgsm`, from a random place of the ball,
    /// as often as there are restarts.
    Pgd,
    /// Momentum iterative FGSM (Dong et al. 2018, arXiv:1710.06081).
    Mifgsm,
    /// Nesterov iterative FGSM (Lin et al. 2020, arXiv:1908.06281): the gradient is taken where momentum will have led.
    Nifgsm,
    /// Auto-PGD (Croce & Hein 2020, arXiv:2003.01690): the step size halves by itself, and the best point is
    /// remembered.
    Apgd,
    /// Auto-PGD aimed at one class after the other, the most likely first (same paper); any class but the label is a
    /// success.
    ApgdT,
    /// The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search that looks at losses alone. What
    /// it turns and gradients do not was hidden from them.
    Square,
    /// FAB (Croce & Hein 2020, arXiv:1907.02044), aimed at one class after the other, the most likely first: the
    /// smallest perturbation that it finds; any class but the label is a success.
    FabT,
    /// One perturbation for all images (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), by steps along the sign of the
    /// sum of their gradients (Shafahi et al. 2020, arXiv:1811.11304).
    Uap,
}

impl Method {
    /// All there are.
    pub const ALL: [Method; 10] = [
        Method::Fgsm,
        Method::Ifgsm,
        Method::Pgd,
        Method::Mifgsm,
        Method::Nifgsm,
        Method::Apgd,
        Method::ApgdT,
        Method::Square,
        Method::FabT,
        Method::Uap,
    ];

    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Fgsm => "fgsm",
            Method::Ifgsm => "ifgsm",
            Method::Pgd => "pgd",
            Method::Mifgsm => "mifgsm",
            Method::Nifgsm => "nifgsm",
            Method::Apgd => "apgd",
            Method::ApgdT => "apgd-t",
            Method::Square => "square",
            Method::FabT => "fab-t",
            Method::Uap => "uap",
        }
    }

    /// Whether it can begin at a random place of the ball.
    pub fn can_start_at_random(self) -> bool {
        matches!(self, Method::Pgd | Method::Apgd | Method::ApgdT | Method::FabT | Method::Square)
    }

    /// Whether its first restart begins at the clean image all the same.
    pub fn begins_clean(self) -> bool {
        self == Method::FabT
    }

    /// Whether it aims at one class after the other by itself.
    pub fn chooses_targets(self) -> bool {
        matches!(self, Method::ApgdT | Method::FabT)
    }

    /// Whether one perturbation serves all images: then it needs all of them, and no image has anything for itself.
    pub fn shares_perturbation(self) -> bool {
        self == Method::Uap
    }

    /// Whether it is told how long its steps are.
    pub fn has_step_size(self) -> bool {
        !matches!(self, Method::FabT | Method::Square)
    }

    /// Whether it accumulates gradients.
    pub fn has_momentum(self) -> bool {
        matches!(self, Method::Mifgsm | Method::Nifgsm)
    }

    /// Steps unless told otherwise, as in the papers' own code.
    pub fn default_steps(self) -> u32 {
        match self {
            Method::Fgsm => 1,
            Method::Ifgsm | Method::Pgd | Method::Mifgsm | Method::Nifgsm | Method::Uap => 10,
            Method::Apgd | Method::ApgdT | Method::FabT => 100,
            Method::Square => 5000,
        }
    }

    /// Step length unless told otherwise, in the unit of `eps`.
    pub fn default_step_size(self, eps: f64, steps: u32) -> f64 {
        match self {
            Method::Fgsm => eps,
            Method::Ifgsm | Method::Pgd | Method::Uap => 2.5 * eps / f64::from(steps.max(1)),
            Method::Mifgsm | Method::Nifgsm => eps / f64::from(steps.max(1)),
            Method::Apgd | Method::ApgdT => 2.0 * eps,
            Method::FabT | Method::Square => 0.0,
        }
    }

    /// The loss unless told otherwise.
    pub fn default_loss(self) -> Loss {
        match self {
            Method::ApgdT => Loss::Dlr,
            Method::Square => Loss::Margin,
            Method::FabT => Loss::Difference,
            _ => Loss::CrossEntropy,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    /// In any case, with or without hyphens; `bim` is what others call `ifgsm`.
    fn from_str(name: &str) -> Result<Self> {
        let plain = |name: &str| name.to_lowercase().replace(['-', '_'], "");
        let asked = if plain(name) == "bim" { "ifgsm".into() } else { plain(name) };
        let names = || Method::ALL.map(Method::name).join(", ");
        let wrong = || Error::Usage(format!("no method {name:?}; there are {}", names()));
        Method::ALL.into_iter().find(|m| plain(m.name()) == asked).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_the_names_that_people_write() {
        for method in Method::ALL {
            for name in [method.name().to_string(), method.name().to_uppercase(), method.name().replace('-', "_")] {
                assert_eq!(name.parse(), Ok(method));
            }
        }
        for (name, method) in [("BIM", Method::Ifgsm), ("I-FGSM", Method::Ifgsm), ("MI-FGSM", Method::Mifgsm)] {
            assert_eq!(name.parse(), Ok(method));
        }
        for name in ["", "-", "pgd2", "bim-2"] {
            assert!(name.parse::<Method>().unwrap_err().to_string().contains("there are fgsm"), "{name}");
        }
    }
}
