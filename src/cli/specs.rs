//! Lists of attacks: `fgsm,pgd:steps=40:restarts=5,apgd:loss=dlr`, and the suites known by name.

use super::defaults::default_step;
use super::flags::distance;
use super::tell::counted;
use crate::attack::{Attack, Loss, Method, Norm, Targets};
use crate::error::{Error, Result};
use crate::report::Distance;
use clap::ValueEnum;
use std::fmt::{self, Display};
use std::str::FromStr;

/// Of methods that have it, unless it is given.
const MOMENTUM: f32 = 1.0;

/// A list of attacks under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Suite {
    /// The standard version of AutoAttack (Croce & Hein 2020)
    Autoattack,
}

impl Suite {
    /// Its attacks, each with every setting that AutoAttack has for it.
    fn text(self) -> &'static str {
        match self {
            Suite::Autoattack => {
                "apgd:loss=ce:steps=100:restarts=1,apgd-t:loss=dlr:classes=9:steps=100:restarts=1,\
                 fab-t:classes=9:steps=100:restarts=1,square:steps=5000:schedule=10000:restarts=1"
            }
        }
    }

    /// The list.
    pub(super) fn specs(self) -> Result<Vec<Spec>> {
        // Its settings are its own: the names say all.
        let named = |spec: Spec| Spec { text: spec.method.name().into(), ..spec };
        Ok(list("--suite", self.text())?.into_iter().map(named).collect())
    }
}

/// One attack of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spec {
    /// As it was asked for.
    pub(super) text: String,
    pub(super) method: Method,
    pub(super) steps: u32,
    step_size: Option<Distance>,
    restarts: u32,
    loss: Loss,
    momentum: Option<f32>,
    targets: Rule,
    classes: Option<u32>,
    schedule: Option<u32>,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    None,
    Random,
    Next,
    LeastLikely,
    Second,
    Class(usize),
}

impl Rule {
    const ALL: [(&'static str, Rule); 5] = [
        ("none", Rule::None),
        ("random", Rule::Random),
        ("next", Rule::Next),
        ("least-likely", Rule::LeastLikely),
        ("second", Rule::Second),
    ];

    pub(super) fn targets(self) -> Targets {
        match self {
            Rule::None => Targets::None,
            Rule::Random => Targets::Random,
            Rule::Next => Targets::Next,
            Rule::LeastLikely => Targets::LeastLikely,
            Rule::Second => Targets::Second,
            Rule::Class(class) => Targets::Class(class),
        }
    }

    /// Refuses a class that a network of so many does not have.
    pub(super) fn check(self, classes: usize) -> Result<()> {
        match self {
            Rule::Class(class) if class >= classes => {
                Err(Error::Usage(format!("targets: class {class}; the network has 0 to {}", classes.saturating_sub(1))))
            }
            _ => Ok(()),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, Rule::ALL.iter().find(|(_, rule)| rule == self)) {
            (Rule::Class(class), _) => write!(f, "{class}"),
            (_, named) => f.write_str(named.map_or("none", |(name, _)| name)),
        }
    }
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(class) = text.parse() {
            return Ok(Rule::Class(class));
        }
        let known = Rule::ALL.iter().find(|(name, _)| *name == text);
        let names = || Rule::ALL.map(|(name, _)| name).join(", ");
        known.map(|(_, rule)| *rule).ok_or_else(|| {
            Error::Usage(format!("no rule {text:?}; there are {}, and classes by their numbers", names()))
        })
    }
}

/// The attacks where none are named: those that AutoAttack begins with, or what a network with few classes allows.
pub(super) fn default_list(classes: usize) -> Result<Vec<Spec>> {
    list("--attacks", if classes >= 4 { "apgd:loss=ce,apgd-t" } else { "apgd:loss=ce,apgd:loss=margin" })
}

/// Reads a list of attacks; `flag` is what errors name.
pub(super) fn list(flag: &str, text: &str) -> Result<Vec<Spec>> {
    text.split(',').map(|one| spec(one).map_err(|e| Error::Usage(format!("{flag} {}: {e}", one.trim())))).collect()
}

fn spec(text: &str) -> Result<Spec> {
    let text = text.trim();
    let mut parts = text.split(':').map(str::trim);
    let method: Method = match parts.next() {
        None | Some("") => return Err(Error::Usage("a name of an attack is missing".into())),
        Some(name) => name.parse().map_err(|_| unknown(name))?,
    };
    if method.shares_perturbation() {
        let why =
            "fits one perturbation to all images, and here each attack is for those that are left: use signstep attack";
        return Err(Error::Usage(format!("{} {why}", method.name())));
    }
    let mut spec = Spec {
        text: text.into(),
        method,
        steps: method.default_steps(),
        step_size: None,
        restarts: 1,
        loss: method.default_loss(),
        momentum: None,
        targets: Rule::None,
        classes: method.chooses_targets().then_some(9),
        schedule: None,
    };
    let mut seen: Vec<&str> = Vec::new();
    for part in parts {
        let Some((key, value)) = part.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            return Err(Error::Usage(format!("`{part}` is not key=value")));
        };
        if seen.contains(&key) {
            return Err(Error::Usage(format!("{key} is there twice")));
        }
        seen.push(key);
        let not_for = || Error::Usage(format!("{key}: {} has none", method.name()));
        match key {
            "steps" => spec.steps = whole(key, value)?,
            "step-size" => spec.step_size = Some(distance(key, value)?),
            "restarts" => spec.restarts = whole(key, value)?,
            "loss" => spec.loss = value.parse()?,
            "momentum" if method.has_momentum() => spec.momentum = Some(number(key, value)?),
            "targets" => spec.targets = value.parse()?,
            "classes" if method.chooses_targets() => spec.classes = Some(whole(key, value)?),
            "schedule" if method == Method::Square => spec.schedule = Some(whole(key, value)?),
            "momentum" | "classes" | "schedule" => return Err(not_for()),
            _ => {
                let keys = "steps, step-size, restarts, loss, momentum, targets, classes, schedule";
                return Err(Error::Usage(format!("no key {key:?}; there are {keys}")));
            }
        }
    }
    Ok(spec)
}

/// What is no method, with those that a list can have.
fn unknown(name: &str) -> Error {
    let names: Vec<&str> = Method::ALL.iter().filter(|m| !m.shares_perturbation()).map(|m| m.name()).collect();
    Error::Usage(format!("no method {name:?}; there are {}", names.join(", ")))
}

fn whole(key: &str, value: &str) -> Result<u32> {
    let n: Option<u32> = value.parse().ok().filter(|n| *n > 0);
    n.ok_or_else(|| Error::Usage(format!("{key}={value}: a whole number of one or more")))
}

fn number(key: &str, value: &str) -> Result<f32> {
    let x: Option<f32> = value.parse().ok().filter(|x: &f32| x.is_finite() && *x >= 0.0);
    x.ok_or_else(|| Error::Usage(format!("{key}={value}: a number of zero or more")))
}

/// What all attacks of a list share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) norm: Norm,
    pub(super) eps: Distance,
    pub(super) bounds: Option<(f32, f32)>,
    /// Whether 8-bit values are delivered, which other bounds than 0 and 1 have none of.
    pub(super) quantise: bool,
    pub(super) seed: u64,
    /// Of the network.
    pub(super) classes: usize,
}

impl Spec {
    /// The attack, checked against a network of so many classes.
    pub(super) fn attack(&self, flag: &str, shared: &Shared) -> Result<Attack> {
        let attack = Attack::new(self.method, shared.norm, shared.eps.value as f32)
            .loss(self.loss)
            .momentum(self.momentum.unwrap_or(if self.method.has_momentum() { MOMENTUM } else { 0.0 }))
            .classes(self.classes.unwrap_or(9))
            .steps(self.steps)
            .restarts(self.restarts)
            .targets(self.targets.targets())
            .bounds(shared.bounds)
            .quantise(shared.quantise)
            .seed(shared.seed);
        // A method without steps of some length is told of none.
        let step = self.step_size(&shared.eps).value as f32;
        let attack = if step > 0.0 || self.step_size.is_some() { attack.step_size(step) } else { attack };
        let attack = self.schedule.map_or(attack.clone(), |steps| attack.schedule_over(steps));
        let aims = self.method.chooses_targets() || self.targets != Rule::None;
        let checked = attack.validate().and_then(|()| self.loss.check(shared.classes, aims));
        let checked = checked.and_then(|()| self.targets.check(shared.classes));
        checked.map_err(|e| Error::Usage(format!("{flag} {}: {e}", self.text)))?;
        Ok(attack)
    }

    /// As it runs on a network of so many classes: no more are aimed at than there are others.
    pub(super) fn among(self, classes: usize) -> Self {
        let others = u32::try_from(classes.saturating_sub(1)).unwrap_or(u32::MAX);
        Spec { classes: self.classes.map(|n| n.min(others)), ..self }
    }

    fn step_size(&self, eps: &Distance) -> Distance {
        self.step_size.clone().unwrap_or_else(|| default_step(self.method, eps, self.steps))
    }

    /// With every parameter written out, so that two that run the same are written the same.
    pub(super) fn canonical(&self, eps: &Distance) -> String {
        let step = self.step_size(eps).text;
        let mut text =
            format!("{}:loss={}:steps={}:step-size={step}", self.method.name(), self.loss.name(), self.steps);
        text += &format!(":restarts={}:targets={}", self.restarts, self.targets);
        if let Some(classes) = self.classes {
            text += &format!(":classes={classes}");
        }
        if self.method == Method::Square {
            text += &format!(":schedule={}", self.schedule.unwrap_or(self.steps));
        }
        if self.method.has_momentum() {
            text += &format!(":momentum={}", self.momentum.unwrap_or(MOMENTUM));
        }
        text
    }
}

impl Display for Spec {
    /// In words, for a paper: `apgd-t (dlr, 9 classes, 100 steps, 1 restart)`. Whatever was asked for in another way
    /// than the method has it is there, so that two that run differently read differently.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.method.name(), self.loss.name())?;
        if let Some(classes) = self.classes {
            write!(f, ", {}", counted(classes.into(), "class", "classes"))?;
        }
        if self.targets != Rule::None {
            write!(f, ", targets {}", self.targets)?;
        }
        let steps = |n: u32| counted(n.into(), "step", "steps");
        write!(f, ", {}", steps(self.steps))?;
        if let Some(step) = &self.step_size {
            write!(f, " of {}", step.text)?;
        }
        if let Some(over) = self.schedule {
            write!(f, ", schedule over {}", steps(over))?;
        }
        if self.method.has_momentum() {
            write!(f, ", momentum {}", self.momentum.unwrap_or(MOMENTUM))?;
        }
        write!(f, ", {})", counted(self.restarts.into(), "restart", "restarts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eps() -> Distance {
        Distance { text: "8/255".into(), value: 8.0 / 255.0 }
    }

    #[test]
    fn a_list_reads_with_defaults_filled_in() {
        let specs = list("--attacks", "fgsm, pgd:steps=40:restarts=5,apgd:loss=dlr").unwrap();
        let written: Vec<String> = specs.iter().map(|s| s.canonical(&eps())).collect();
        assert_eq!(
            written,
            [
                "fgsm:loss=ce:steps=1:step-size=8/255:restarts=1:targets=none",
                "pgd:loss=ce:steps=40:step-size=0.5/255:restarts=5:targets=none",
                "apgd:loss=dlr:steps=100:step-size=16/255:restarts=1:targets=none",
            ]
        );
        assert_eq!(specs[1].to_string(), "pgd (ce, 40 steps, 5 restarts)");
        let same = |a: &str, b: &str| spec(a).unwrap().canonical(&eps()) == spec(b).unwrap().canonical(&eps());
        assert!(same("apgd-t", "apgd-t:classes=9:loss=dlr") && !same("apgd-t", "apgd-t:classes=8"));
        assert_eq!(spec("nifgsm:momentum=0.5").unwrap().momentum, Some(0.5));
    }

    #[test]
    fn what_runs_differently_reads_differently() {
        let words = |text: &str| spec(text).unwrap().to_string();
        assert_eq!(words("mifgsm"), "mifgsm (ce, 10 steps, momentum 1, 1 restart)");
        assert_eq!(words("mifgsm:momentum=0"), "mifgsm (ce, 10 steps, momentum 0, 1 restart)");
        let square = words("square:steps=20:schedule=5");
        assert_eq!(square, "square (margin, 20 steps, schedule over 5 steps, 1 restart)");
        let settings = [
            "square:steps=20",
            "square:steps=20:schedule=5",
            "square:steps=20:restarts=2",
            "nifgsm",
            "nifgsm:momentum=0.5",
            "nifgsm:step-size=0.1",
            "nifgsm:loss=margin",
            "nifgsm:targets=next",
            "apgd-t",
            "apgd-t:classes=3",
        ];
        let mut all = settings.map(words).to_vec();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), settings.len(), "{all:?}");
    }

    #[test]
    fn no_more_classes_are_told_than_there_are_others() {
        let words = |text: &str, classes| spec(text).unwrap().among(classes).to_string();
        assert_eq!(words("fab-t", 2), "fab-t (difference, 1 class, 100 steps, 1 restart)");
        assert_eq!(words("apgd-t", 5), "apgd-t (dlr, 4 classes, 100 steps, 1 restart)");
        assert_eq!(words("apgd-t:classes=20", 10), words("apgd-t", 10));
        assert_eq!(
            spec("apgd-t:classes=20").unwrap().among(10).canonical(&eps()),
            spec("apgd-t").unwrap().canonical(&eps())
        );
        // Of as many as AutoAttack was made for, nothing is another.
        let suite = Suite::Autoattack.specs().unwrap();
        assert!(suite.iter().all(|spec| spec.clone().among(10) == *spec));
    }

    #[test]
    fn what_is_no_attack_is_told_with_its_place() {
        let told = |text: &str| {
            let e = list("--attacks", text).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            e.to_string()
        };
        assert!(told("fgsm,nonsense").starts_with("--attacks nonsense: no method"));
        assert!(told("fgsm,").contains("missing"));
        assert!(!told("nonsense").contains("uap") && told("nonsense").contains("fab-t"));
        assert!(told("uap").contains("one perturbation to all images"));
        assert!(told("pgd:stepz=4").contains("no key \"stepz\""));
        assert!(told("pgd:steps").contains("not key=value"));
        assert!(told("pgd:steps=0").contains("one or more"));
        assert!(told("pgd:steps=4:steps=5").contains("twice"));
        assert!(told("pgd:momentum=1").contains("has none"));
        assert!(told("pgd:classes=3").contains("has none"));
        assert!(told("pgd:loss=l3").contains("l3"));
        assert!(told("pgd:targets=file.txt").contains("no rule"));
        assert!(told("pgd:step-size=x").contains("step-size x"));
    }

    /// Each from its own place: the list, what the list leaves open, and what all attacks share.
    #[test]
    fn an_attack_is_what_the_list_and_the_options_say() {
        let shared =
            Shared { norm: Norm::Linf, eps: eps(), bounds: Some((-1.0, 2.0)), quantise: false, seed: 7, classes: 10 };
        let made = |text: &str| spec(text).unwrap().attack("--attacks", &shared).unwrap();
        // Nobody without momentum is told of any.
        let new = |method| {
            let attack = Attack::new(method, Norm::Linf, 8.0 / 255.0).bounds(shared.bounds);
            attack.quantise(false).seed(7).momentum(0.0)
        };
        let pgd = new(Method::Pgd).steps(40).restarts(5).step_size(0.01).loss(Loss::Margin).targets(Targets::Second);
        assert_eq!(made("pgd:steps=40:restarts=5:step-size=0.01:loss=margin:targets=second"), pgd);
        let step = default_step(Method::Nifgsm, &shared.eps, 4).value as f32;
        assert_eq!(made("nifgsm:steps=4:momentum=0.5"), new(Method::Nifgsm).steps(4).step_size(step).momentum(0.5));
        assert_eq!(made("square:steps=20:schedule=50"), new(Method::Square).steps(20).schedule_over(50));
        assert_eq!(made("fab-t:classes=3:steps=2"), new(Method::FabT).steps(2).classes(3));
        // No step is one of length 0, as long as it is asked for.
        assert_eq!(made("pgd:step-size=0:steps=2"), new(Method::Pgd).steps(2).step_size(0.0));
    }

    #[test]
    fn an_attack_that_makes_no_sense_is_named() {
        let shared =
            Shared { norm: Norm::L2, eps: eps(), bounds: Some((0.0, 1.0)), quantise: true, seed: 0, classes: 3 };
        let told = |text: &str| spec(text).unwrap().attack("--attacks", &shared).unwrap_err().to_string();
        assert!(told("mifgsm").starts_with("--attacks mifgsm: mifgsm is for linf alone"));
        assert!(
            told("apgd-t").contains("needs 4 classes")
                && told("apgd:loss=dlr:targets=next").contains("needs 4 classes")
        );
        assert!(told("fgsm:steps=3").contains("fgsm takes one step"));
        assert!(default_list(3).unwrap().iter().all(|s| s.attack("--attacks", &shared).is_ok()));
    }
}
