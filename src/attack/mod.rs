//! The attack: what is asked for ([`Attack`]), what runs it ([`Engine`]), what comes out ([`Outcome`]).
//!
//! Everything an image's fate depends on is its own: label, target, eps, step size, schedule, random numbers, best so
//! far, health. Nothing here looks at two samples at once, but for `uap`, whose one perturbation is all samples' own
//! (`fit.rs`).
//!
//! ```text
//! settings ─ check ─► clean images ─ engine ─► logits ─ targets ─► a Sample each ─ request ─► Job ─ engine ─► iterates
//!                                                                      ▲                                         │
//!                                        those that are tried again ───┘                                         │
//!                                                    │                                                           │
//!                          Outcome ◄───────────── judge ◄───────────── logits ◄─ engine ────────── 8 bits ◄──────┘
//! ```
//!
//! Imports run one way; a file imports only from those above it:
//!
//! | file | what it is |
//! |---|---|
//! | `norm.rs`, `loss.rs` | what perturbations are measured by, and what is followed |
//! | `method.rs` | which attacks there are, and what each of them can do |
//! | `random.rs` | random numbers that belong to a sample |
//! | `quantise.rs` | 8 bits |
//! | `logits.rs`, `health.rs` | what is read from a sample's logits, and whether NaN or infinity arose in it |
//! | `sample.rs` | one sample's own parameters |
//! | `rule.rs`, `square.rs` | what is done with a gradient, and what squares are proposed without one |
//! | `perturbation.rs` | one perturbation for all images, as data |
//! | `engine.rs` | what runs it all: what it is asked, and what it answers |
//! | `targets.rs` | which class each sample is led to |
//! | `settings.rs` | what is asked for |
//! | `check.rs` | what makes no sense |
//! | `request.rs` | from settings to samples and jobs |
//! | `clean.rs` | what the network says of clean images |
//! | `outcome.rs` | what comes out |
//! | `pixels.rs` | what a run and whoever has its images say to each other |
//! | `host.rs` | images in the host's memory; those in the device's are `network/buffers.rs` |
//! | `judge.rs` | which attempt of a sample is delivered |
//! | `fit.rs` | one perturbation, fitted |
//! | `run.rs` | one run |
//! | `least.rs` | many runs: the smallest radius that turns a sample |

mod check;
mod clean;
mod engine;
mod fit;
mod health;
mod host;
mod judge;
mod least;
mod logits;
mod loss;
mod method;
mod norm;
mod outcome;
mod perturbation;
mod pixels;
mod quantise;
mod random;
mod request;
mod rule;
mod run;
mod sample;
mod settings;
mod square;
mod targets;

pub(crate) use check::check_labels;
pub use engine::{Engine, Gradient, Iterated, Job, Logits};
pub(crate) use fit::{Entrants, runs};
pub use health::Health;
pub use least::{Least, Rung};
pub use logits::argmax;
#[cfg(feature = "cli")]
pub(crate) use logits::cross_entropy;
pub use loss::Loss;
pub use method::Method;
pub use norm::Norm;
pub use outcome::Outcome;
pub use perturbation::{Fit, Perturbation, Source, put_on};
pub(crate) use pixels::{Pixels, Tried, Verdict};
pub use quantise::{budget, budget_l2, quantise, quantise_l2, snap};
#[cfg(feature = "cli")]
pub(crate) use random::random_target;
pub use random::{Stream, philox};
pub(crate) use rule::{ACCUMULATED, AHEAD, BEST, BEST_GRADIENT, FOUND, KEPT, NEAREST, OLD};
pub use rule::{Rule, State, Trail};
pub use sample::Sample;
pub(crate) use sample::check_samples;
pub use settings::{Attack, Own};
pub(crate) use square::{halvings, hills, sides, tile};
pub use targets::Targets;
