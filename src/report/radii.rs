//! Many radii in one run: every (sample, radius) pair is a row, those of a sample beside each other. And the ladder of
//! radii on which the smallest that turns a sample is looked for.

use super::config::Config;
use super::statistics::{Statistics, rate, wilson};
use super::{Distance, Rates};
use crate::attack::Outcome;
use serde::{Deserialize, Serialize};

/// One of several radii of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Radius {
    /// Its size.
    pub eps: Distance,
    /// Length of the steps inside it.
    pub step_size: Distance,
}

/// Radii at equal distances: scale·k/of for k from 1 to `rungs`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// 1 where rungs are grey levels, else the largest radius.
    pub scale: f64,
    /// 255 where rungs are grey levels.
    pub of: u32,
    /// How many.
    pub rungs: u32,
}

/// Rungs where these are no grey levels.
const PARTS: u32 = 64;

impl Ladder {
    /// Grey levels up to `eps`; none where not even one fits.
    pub fn levels(eps: f64) -> Option<Self> {
        let rungs = crate::attack::budget(eps as f32) as u32;
        (rungs > 0).then_some(Ladder { scale: 1.0, of: 255, rungs })
    }

    /// A 64th of `eps` and its multiples.
    pub fn parts(eps: f64) -> Option<Self> {
        (eps > 0.0).then_some(Ladder { scale: eps, of: PARTS, rungs: PARTS })
    }

    /// The radius on rung `k` of 1 to `rungs`, written as [`Distance`]s are.
    pub fn radius(&self, k: u32) -> Distance {
        let value = self.scale * f64::from(k) / f64::from(self.of);
        let text = if self.of == 255 { format!("{k}/255") } else { value.to_string() };
        Distance { text, value }
    }

    /// Runs of the attack that a search takes at most, the first at the last rung included.
    pub fn rounds(&self) -> u64 {
        1 + u64::from(u32::BITS - self.rungs.saturating_sub(1).leading_zeros())
    }
}

/// What came of a run or a part of one; figures of two parts make those of both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// At the only radius, or at the largest.
    pub whole: Statistics,
    /// At each of several radii.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub radii: Vec<Statistics>,
    /// How many samples are first turned on each rung.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<usize>,
}

impl Figures {
    /// Of an outcome; `rungs` says where each sample was turned, if that was looked for.
    pub(super) fn new(config: &Config, outcome: &Outcome, rungs: &[Option<usize>]) -> Self {
        let each = config.rows_each();
        let at = |j: usize| Statistics::of(outcome, (j..outcome.len()).step_by(each));
        let radii = if config.radii.is_empty() { Vec::new() } else { (0..each).map(at).collect() };
        let whole = if radii.is_empty() { at(0) } else { radii[config.largest()] };
        let mut counts = vec![0; config.ladder.map_or(0, |l| l.rungs as usize)];
        rungs.iter().flatten().for_each(|&k| counts[k] += 1);
        Figures { whole, radii, rungs: counts }
    }

    /// Those of two parts together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        fn sum<T: Clone>(a: &[T], b: &[T], add: impl Fn(&T, &T) -> T) -> Vec<T> {
            if a.is_empty() { b.to_vec() } else { a.iter().zip(b).map(|(a, b)| add(a, b)).collect() }
        }
        Figures {
            radii: sum(&self.radii, &other.radii, |a, b| a.plus(*b)),
            rungs: sum(&self.rungs, &other.rungs, |a, b| a + b),
            whole: self.whole.plus(other.whole),
        }
    }
}

/// One line of a table of radii.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpsRow {
    /// The radius.
    pub eps: Distance,
    /// Length of the steps inside it.
    pub step_size: Distance,
    /// What came of it.
    #[serde(flatten)]
    pub statistics: Statistics,
    /// Shares that follow.
    #[serde(flatten)]
    pub rates: Rates,
    /// The interval that holds the true robust accuracy with 95 % confidence.
    pub robust_accuracy_95: Option<(f64, f64)>,
    /// The same for the float iterates.
    pub robust_accuracy_float_95: Option<(f64, f64)>,
}

impl EpsRow {
    pub(super) fn all(config: &Config, radii: &[Statistics]) -> Vec<Self> {
        let row = |(radius, s): (&Radius, &Statistics)| EpsRow {
            eps: radius.eps.clone(),
            step_size: radius.step_size.clone(),
            statistics: *s,
            rates: Rates::new(s, config.effective(radius.eps.value)),
            robust_accuracy_95: wilson(s.robust, s.samples),
            robust_accuracy_float_95: wilson(s.robust_float, s.samples),
        };
        config.radii.iter().zip(radii).map(row).collect()
    }
}

/// The smallest radii that turn samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MinEps {
    /// How many samples are first turned on each rung of the ladder.
    pub counts: Vec<usize>,
    /// Radii at which a quarter, a half and three quarters of the attacked samples are turned; `None` where the largest
    /// is not enough.
    pub quartiles: [Option<f64>; 3],
}

impl MinEps {
    pub(super) fn new(ladder: &Ladder, counts: Vec<usize>, attacked: usize) -> Self {
        let quartiles = [1, 2, 3].map(|q| rung(&counts, (q * attacked).div_ceil(4)).map(|k| ladder.radius(k).value));
        MinEps { counts, quartiles }
    }

    /// The quartiles as distances are written.
    pub(super) fn words(&self, ladder: &Ladder, attacked: usize) -> [String; 3] {
        [1, 2, 3].map(|q| match rung(&self.counts, (q * attacked).div_ceil(4)) {
            _ if attacked == 0 => "-".into(),
            Some(k) => ladder.radius(k).text,
            None => format!("> {}", ladder.radius(ladder.rungs).text),
        })
    }

    /// Share of the attacked samples that are turned at all.
    pub(super) fn turned(&self, attacked: usize) -> Option<f64> {
        rate(self.counts.iter().sum(), attacked)
    }
}

/// The first rung, from 1, by which `samples` are turned.
fn rung(counts: &[usize], samples: usize) -> Option<u32> {
    let mut sum = 0;
    let reached = |n: &usize| {
        sum += n;
        sum >= samples
    };
    if samples == 0 {
        return None;
    }
    counts.iter().position(reached).map(|k| k as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_grey_levels_or_parts() {
        let levels = Ladder::levels(8.0 / 255.0).unwrap();
        assert_eq!((levels.rungs, levels.radius(3).text.as_str(), levels.radius(3).value), (8, "3/255", 3.0 / 255.0));
        assert_eq!(Ladder::levels(0.3).unwrap().rungs, 76);
        assert_eq!(Ladder::levels(0.9 / 255.0), None);
        let parts = Ladder::parts(0.5).unwrap();
        assert_eq!((parts.radius(64).value, parts.radius(32).text.as_str()), (0.5, "0.25"));
        assert_eq!(Ladder::parts(0.0), None);
        let rounds = |rungs| Ladder { scale: 1.0, of: 255, rungs }.rounds();
        assert_eq!([rounds(1), rounds(2), rounds(3), rounds(4), rounds(5), rounds(64)], [1, 2, 3, 3, 4, 7]);
    }

    #[test]
    fn a_line_of_the_table_is_of_its_own_radius() {
        let radius = |k: u32| {
            let eps = Distance { text: format!("{k}.5/255"), value: (f64::from(k) + 0.5) / 255.0 };
            Radius { step_size: eps.clone(), eps }
        };
        let config = Config { radii: vec![radius(1), radius(9), radius(4)], ..super::super::config::tests::config() };
        let s = Statistics {
            samples: 40,
            clean_correct: 30,
            attacked: 30,
            robust: 20,
            robust_float: 10,
            ..Statistics::default()
        };
        let rows = EpsRow::all(&config, &[s; 3]);
        for (row, whole_levels) in rows.iter().zip([1.0, 9.0, 4.0]) {
            assert_eq!(row.rates, Rates::new(&s, whole_levels / 255.0));
        }
        assert_eq!((rows[1].robust_accuracy_95, rows[1].robust_accuracy_float_95), (wilson(20, 40), wilson(10, 40)));
        assert_eq!((config.largest(), config.rows_each()), (1, 3));
    }

    #[test]
    fn quartiles_are_of_all_that_were_attacked() {
        let ladder = Ladder { scale: 1.0, of: 255, rungs: 4 };
        let least = MinEps::new(&ladder, vec![1, 0, 3, 1], 8);
        assert_eq!(least.quartiles, [Some(3.0 / 255.0), Some(3.0 / 255.0), None]);
        assert_eq!(least.words(&ladder, 8), ["3/255", "3/255", "> 4/255"]);
        assert_eq!(least.turned(8), Some(0.625));
        let nobody = MinEps::new(&ladder, vec![0; 4], 0);
        assert_eq!((nobody.quartiles, nobody.words(&ladder, 0)), ([None; 3], ["-", "-", "-"].map(String::from)));
        // A quarter of three is the first of them, and the half the second.
        let least = MinEps::new(&ladder, vec![1, 1, 1, 0], 3);
        assert_eq!(least.quartiles, [Some(1.0 / 255.0), Some(2.0 / 255.0), Some(3.0 / 255.0)]);
        assert_eq!(least.words(&ladder, 3), ["1/255", "2/255", "3/255"]);
    }
}
