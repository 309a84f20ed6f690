//! `--fail-under NAME=VALUE`: what an evaluation must reach.

use crate::error::{Error, Result};
use crate::report::Evaluation;

/// Rates that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    CleanAccuracy,
    RobustAccuracy,
}

const NAMES: [(&str, Name); 2] = [("clean_accuracy", Name::CleanAccuracy), ("robust_accuracy", Name::RobustAccuracy)];

/// A rate, and what it must be at least.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Threshold {
    name: Name,
    least: f64,
}

impl Threshold {
    /// Reads `robust_accuracy=0.45`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let fail = |why: String| Err(Error::Usage(format!("--fail-under {text}: {why}")));
        let Some((name, value)) = text.split_once('=').map(|(name, value)| (name.trim(), value.trim())) else {
            return fail("name=value, such as robust_accuracy=0.45".into());
        };
        let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == name) else {
            return fail(format!("no rate {name:?}; there are {}", NAMES.map(|(name, _)| name).join(", ")));
        };
        match value.parse::<f64>() {
            Ok(least) if (0.0..=1.0).contains(&least) => Ok(Threshold { name: *name, least }),
            _ => fail("a fraction from 0 to 1 is expected".into()),
        }
    }

    /// Why it is not met; `None` where it is. An evaluation that is incomplete has only an upper bound of its robust
    /// accuracy, which meets nothing.
    pub(super) fn missed_by(&self, e: &Evaluation) -> Option<String> {
        let (name, found) = match self.name {
            Name::CleanAccuracy => ("clean_accuracy", e.clean_accuracy.rate),
            Name::RobustAccuracy => ("robust_accuracy", e.lower_robust_accuracy()),
        };
        if found < self.least {
            return Some(format!("{name} is {found:.4}, less than {}", self.least));
        }
        let open = self.name == Name::RobustAccuracy && !e.is_complete;
        open.then(|| format!("{name} is at most {found:.4}: the evaluation is incomplete"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_fractions_of_known_rates() {
        let read = Threshold::parse("robust_accuracy = 0.45").unwrap();
        assert_eq!(read, Threshold { name: Name::RobustAccuracy, least: 0.45 });
        // The ends are fractions, too.
        assert!(Threshold::parse("clean_accuracy=1").is_ok() && Threshold::parse("clean_accuracy=0").is_ok());
        for bad in
            ["", "robust_accuracy", "accuracy=0.4", "robust_accuracy=45", "robust_accuracy=nan", "clean_accuracy=-0.1"]
        {
            let e = Threshold::parse(bad).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().starts_with("--fail-under"), "{bad}: {e}");
        }
    }
}
