//! Why isn't iterative targeted FGSM effective on minibatches? Every explanation that is given for it, run: `signstep
//! study`.
//!
//! The gradient of a mean loss with respect to one image is (1/N) times that image's own, for nobody else's loss
//! depends on it, and a sign does not see the factor. So the mean cannot be the reason, and the table says what can.
//!
//! Correct attacks are the engine's ([`crate::Attack`]). What is wrong elsewhere is a function each in [`mistakes`].
//! Sentences about numbers follow from them ([`verdict`]).

pub mod batch;
pub mod examples;
mod figures;
mod folder;
mod lines;
pub mod mistakes;
mod numbers;
mod report;
mod rows;
pub mod verdict;

pub use batch::Net;
pub(crate) use folder::NAMES;
pub use folder::{Folder, Opened, Repeatable, open, write};
pub use lines::{Curve, Line, Point};
pub use numbers::{Effect, Numbers, Row};
pub use report::{Config, Findings, Identity, Timing, markdown};
pub use rows::{Bench, Found};
