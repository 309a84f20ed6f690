//! The attack: what is asked for ([`Attack`]), what runs it ([`Engine`]), what comes out ([`Outcome`]).
//!
//! Everything an image's fate depends on is its own: label, target, eps, step size, schedule, random numbers, best so far,
//! health. Nothing here looks at two samples at once, but for `uap`, whose one perturbation is all samples' own (`shared.rs`).

mod check;
mod engine;
mod health;
mod least;
mod logits;
mod loss;
mod method;
mod norm;
mod outcome;
mod quantise;
mod random;
mod rule;
mod run;
mod sample;
mod settings;
mod shared;
mod square;
mod targets;

pub use engine::{Engine, Gradient, Iterated, Job, Logits};
pub use health::Health;
pub use least::{Least, Rung};
pub use logits::argmax;
#[cfg(feature = "cli")]
pub(crate) use logits::cross_entropy;
pub use loss::Loss;
pub use method::Method;
pub use norm::Norm;
pub use outcome::Outcome;
pub use quantise::{budget, budget_l2, quantise, quantise_l2, snap};
#[cfg(feature = "cli")]
pub(crate) use random::random_target;
pub use random::{Stream, philox};
pub(crate) use rule::{AHEAD, BEST, BEST_GRADIENT, FOUND, GATHERED, KEPT, NEAREST, OLD};
pub use rule::{Rule, State, Trail};
pub(crate) use run::{Pixels, Tried, Verdict, check_labels};
pub use sample::Sample;
pub use settings::{Attack, Own};
pub(crate) use shared::{Entrants, runs};
pub use shared::{Fit, Perturbation, Source, put_on};
pub(crate) use square::{halvings, hills, sides, tile};
pub use targets::Targets;
