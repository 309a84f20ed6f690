//! Adversarial examples for whole minibatches on any GPU: a small, hand-written engine that runs fixed convolutional
//! networks forward and backward in WGSL compute shaders, and moves every sample of a batch along the sign of *its own*
//! gradient, clamped to *its own* ball, in one dispatch.
//!
//! ```no_run
//! use signstep::{Adapter, Attack, Gpu, Network};
//!
//! # fn main() -> signstep::Result<()> {
//! # let (images, labels) = (vec![0.0_f32; 2 * 64], vec![3_i64, 5]);
//! let gpu = Gpu::new(&Adapter::Auto)?;
//! let weights = std::fs::read("weights/digits-cnn.safetensors").expect("a file");
//! let net = Network::load(&gpu, &weights)?;
//! // images: [N, C, H, W] f32 in [0, 1]; labels: [N] i64
//! let out = Attack::ifgsm(0.3).steps(10).untargeted().run(&net, &images, &labels)?;
//! println!("robust accuracy {:.1} %", 100.0 * out.robust_accuracy());
//! # Ok(())
//! # }
//! ```
//!
//! # The front door
//! [`Gpu::new`] opens an adapter, [`Gpu::from_device`] takes the device that a host program has already. A [`Network`]
//! is loaded from safetensors, those of a known network or of one's own ([`weights::load_as`]), or built from layers
//! ([`Network::from_layers`]); it answers [`logits`](attack::Engine::logits) and
//! [`input_gradient`](attack::Engine::input_gradient), and [`Attack`] runs on it. All three block; every one has a
//! second form:
//!
//! | | from slices | from and to buffers of the device |
//! |---|---|---|
//! | blocking | [`Attack::run`], [`Attack::run_with`] | [`Attack::run_buffers`], [`Network::logits_buffer`], [`Network::input_gradient_buffer`] |
//! | async | [`Attack::spawn`], [`Task::spawn`] | [`Task::spawn`] |
//!
//! ```no_run
//! # use signstep::{Attack, Network, Norm, Task};
//! # use std::sync::Arc;
//! # async fn f(net: Arc<Network>, images: wgpu::Buffer, labels: Vec<i64>, out: wgpu::Buffer) -> signstep::Result<()> {
//! # use signstep::wgpu;
//! // images: [N, C, H, W] f32 on the network's device, COPY_SRC; out: as large, COPY_DST
//! let attack = Attack::pgd(Norm::Linf, 8.0 / 255.0).restarts(5);
//! let task = Task::spawn(move |control| {
//!     attack.run_buffers_with(&net, &images, &labels, &out, &mut |n| control.advance(n))
//! });
//! println!("{} sample-steps so far", task.done()); // task.cancel() stops it, and so does dropping it
//! let outcome = task.await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Gpu`], [`Network`], [`Reference`], [`Attack`] and [`Task`] are `Send` and `Sync`. A progress callback cancels by
//! answering `false`. `examples/robustness_gate.rs` is a threshold on robust accuracy as a test, to be copied.
//!
//! # What stays
//! [`kernel`], [`plan`], [`probe`], [`trial`], [`tune`], [`coop`] and [`habits`] are there for benches and tests of
//! kernels: what is in them may change in any version. [`wgpu`] is re-exported, for its types are in signatures here:
//! its major version is part of this crate's, and a new one of it is a new one of ours.
//!
//! # How data flows
//!
//! ```text
//! safetensors ─ weights ─► Model (layers as data, batch norm folded) ─ plan ─► Plan: [Dispatch]
//!                                                                       │
//! images, labels ─ attack ─► Job (x0, one Sample each) ─ network ───────┴─► steps × (forward, loss, backward, rule)
//!                   ▲                                                        │
//!                   └─ logits of what is delivered ◄── 8-bit rounding ◄──────┘ ─► Outcome
//! ```
//!
//! Imports run one way; a file imports only from those above it:
//!
//! | file | what it is |
//! |---|---|
//! | [`error`] | the error type |
//! | [`model`] | layers as data, shape inference, the networks known by name |
//! | [`weights`] | safetensors → [`Model`], batch norm folded, or a layer for training mode |
//! | [`attack`] (types) | [`Attack`], [`Outcome`], and [`attack::Engine`], what an attack runs on |
//! | `reference` | [`Reference`]: the same network on the CPU in f64 |
//! | `gpu`, `tensor`, `kernel` | the device, its memory, its kernels; the only files that name `wgpu` besides `network` and `trial` |
//! | [`habits`] | what an adapter does where WGSL leaves it open, asked once in a process; the program keeps the answers |
//! | `ops` | each layer's forward and input gradient as [`kernel::Dispatch`]es |
//! | [`plan`] | the order of dispatches and the memory they share, as data |
//! | [`trial`], [`probe`] | dispatches of a plan alone, on random data, between canaries; what a device can do at most |
//! | [`coop`] | units that multiply matrices, tried before anything relies on them |
//! | `network` | [`Network`]: a plan on a device; images from slices or from the host program's buffers |
//! | `training` | [`Training`]: a network in training mode, whose samples are coupled; no engine for attacks |
//! | [`tune`] | which tiles are fastest on a device, each checked before it is timed |
//! | [`task`] | [`Task`]: work on a thread of its own, as a future |
//! | `data`, `report`, `study`, `cli` | feature `cli`: files, tables and pictures, the minibatch question measured, the program |
//!
//! # Letters
//! N batch, C input channels, K output channels or classes, H×W input, P×Q output, R×S kernel. Images are NCHW in [0,
//! 1], eps and step size are in the same unit; mean and deviation are a layer of the model.
//!
//! # What is promised
//! A sample's logits, gradient and adversarial image are the same bits alone, at any place of any batch, beside any
//! neighbours. Every accumulation runs in one fixed order (`shaders/conv2d.wgsl`), losses are summed and never
//! averaged, the sign is decided from bits (`shaders/step.wgsl`), and success is measured on the bytes that are
//! delivered. The one attack whose samples depend on each other, [`Attack::uap`], adds their gradients up in their
//! order: its bits depend on which samples there are, but not on how they are cut into chunks and batches. [`Training`]
//! promises none of this: there batch norm looks at the whole batch.
//!
//! # Decisions
//!
//! **Memory**
//! - An activation is one row of texels of four channels, `[N, ⌈C/4⌉, H, W]`, without a border. It lies in a storage
//!   buffer or in a plain 2D texture 2,048 texels wide, chosen by the adapter's class; kernels see an index (`x_at(i)`,
//!   `y_put(i, v)`), so one slot serves tensors of any shape. A pixel outside is *chosen* to be zero, without a branch.
//!   Textures are only read: what is written goes to a buffer first, and is copied behind the dispatch
//!   (`kernel/record.rs`).
//! - A ReLU's mask is applied where a gradient is stored, not where it is read: once for a value instead of nine times.
//! - The ball's edges are computed from the clean pixel in the step itself: the same bits in every step, and no memory.
//! - Max-pool keeps one byte for each output, for windows up to 15×15.
//!
//! **Arithmetic**
//! - Arithmetic ([`Math`]) changes bits and is the user's choice; a variant or a tuning never does. [`Math::Fast`] is
//!   Winograd's convolution where it was measured to be faster (`ops/winograd.rs`), in one order in each of its
//!   kernels, decided by shape and device; elsewhere f32. [`Math::F16`] is f32's kernels and sums, with activations and
//!   gradients kept as f16 between them (`shaders/half.wgsl`); each sample's gradients are scaled by a power of two on
//!   their way back (`ops/scale.rs`). [`Math::Coop`] is that with convolutions on units that multiply matrices
//!   (`ops/coop.rs`): a matrix never holds pixels of two samples, so what a sample's numbers are multiplied with is the
//!   same in any batch.
//! - Sums begin at a zero that compilers cannot see, for some move one that they see.
//! - The seed of cross-entropy at the class itself is −Σ of the other probabilities, not p − 1, which would lose its
//!   digits.
//! - In rules a product is looked at before it is added (`times` in `shaders/values.wgsl`): fused or not, the bits are
//!   the same, and those of the CPU twin ([`reference::Walk`]). WGSL leaves the last digits of quotients, roots,
//!   logarithms and cosines to the adapter: there the first two are taken digit by digit in whole numbers, the others
//!   (`shaders/normal.wgsl`) by their series.
//! - Rounding within an L2 ball moves the threshold from a half upwards until the bytes fit; cutting fractions off
//!   always does.
//!
//! **Kernels**
//! - Four families of kernels with the same bits ([`plan::Family`]): register tiles anywhere, weights handed round in
//!   subgroups on software adapters, tiles of whole workgroups on hardware, lean ones where an invocation has but 128
//!   registers. A tuning ([`tune`]) chooses otherwise where that is faster.
//! - Register tiles read their weights from slices that fit a uniform binding; where one tile does not fit, from a
//!   storage buffer, slower. The other families read them as texels of any number.
//! - A projection on a shortcut is a dispatch of its own, added as a residual: its own accumulator, as the canonical
//!   order asks.
//! - Batch norm is folded into the convolution right before it; where there is none, it is a gain and a bias for each
//!   channel in one `fma`, and the ReLU behind it is done there. Nothing is kept for the way back but that ReLU's bits.
//!   At the head of a residual body its gradient takes what came round the body into the same `fma`.
//! - Training mode is a type of its own ([`Training`], planned by [`plan::TrainingPlan`]): batch norm with the
//!   statistics of the batch couples samples, so it is no [`attack::Engine`], and a model that was loaded for it is
//!   refused by [`Network`] and [`Reference`]. A batch is never cut there. Sums take two steps, within a sample and
//!   over the samples, each in one order (`shaders/batch_norm.wgsl`); what entered a batch norm is kept whole:
//!   ResNet-20 takes 933 kB a sample, ResNet-18 3.1 MB.
//!
//! **Rules**
//! - What is done with a gradient is a [`attack::Rule`]: a dispatch for the whole batch. Where a sample has to be
//!   looked at as a whole it has one workgroup (`shaders/rules.wgsl`), a memory of a few images, allocated when such a
//!   rule first runs, and a state of 64 bytes; so schedules, the best so far and success are decided on the device,
//!   each sample for itself. Between calls memory and state can be taken out ([`attack::Trail`]): what has succeeded
//!   leaves the batch there, and the rest go on with the same bits.
//! - A perturbation that all images share ([`Attack::uap`]) is found first ([`Attack::fit`]) and then put on one part
//!   of the data after the other ([`Attack::perturbation`]). It and its sum of gradients stay on the device; one
//!   invocation adds up one value of all images of a chunk and goes on where the chunk before left it
//!   (`shaders/shared.wgsl`). A sample that is marked adds nothing.
//!
//! **Work and what goes wrong**
//! - A submission holds what takes a device about a quarter of a second, as the ones before it have shown
//!   (`gpu/pace.rs`): plans are cut between any two dispatches, which changes no bit. A dispatch is never cut, but
//!   given fewer samples, so that none takes more than a second; not where one perturbation is fitted to all images,
//!   whose chunks stay what they are, and not in training mode.
//! - That work counts as done is not believed: each submission of a network's work ends by handing on a word, and
//!   whoever reads results reads it too (`gpu/witness.rs`).
//! - Every call to the GPU library that can fail asks for the device or the queue first; there tests let the n-th fail
//!   (`gpu/fault.rs`).
//!
//! **Files**
//! - A run is a row of parts, each whole or not there; shards and resumed runs are the same mechanism
//!   (`report/folder.rs`).
//! - A layout is recognised by building it under the names that its checkpoints use and comparing all names and shapes:
//!   no table of renamings, and no guess that is not checked. What shapes do not tell (strides, pools) a layout is
//!   known for ([`model::families`]).
//! - A network of the user's own is data: a file of layers (`data/description.rs`) becomes the same [`model::Arch`]
//!   that known networks are, checked layer by layer with the line it stands in. Its hash is part of what a run is.
//! - Checkpoints of PyTorch are read by a pickle machine and a zip reader of our own (`data/`): the machine knows what
//!   tensors need and calls nothing; the reader takes what PyTorch writes, stored entries without gaps, so that no
//!   entry can unpack to more than it is, and headers that disagree are refused, where general readers of zip choose
//!   one of them.
//! - Pictures are brought to one size in whole numbers (`data/framing.rs`), for pixels that depend on the processor
//!   would be other data.
//!
//! **Known limits**
//! - A residual body begins with a convolution or a batch norm and ends with a convolution; in training mode it begins
//!   with a convolution.
//! - Of activations there is ReLU alone, and none behind the last layer: logits are plain numbers, one for each class.
//!   Flattening comes before a linear layer, or where there is one pixel.
//! - One invocation goes round fewer than 32,000 times, for lavapipe stops at twice that without a word: maps of so
//!   many pixels cannot be averaged, nor a linear layer read so many texels (four channels of a pixel each). `square`
//!   in L2 is not there for images so thin that they would have more than some thousand tiles.
//! - On software adapters the gradient of strides 3 and 4 runs on the naive kernel.
//! - On GL, which waits while work is handed over, a deadline is noticed only when the work has ended, and threads take
//!   turns (`gpu/turns.rs`), for wgpu panics where one waits for 6 s: a host program's own calls have to keep out of
//!   the way ([`Gpu::from_device`]).
//! - On Direct3D 12 without `dxcompiler.dll` shaders go through FXC, which takes seconds for a large kernel, and nothing
//!   keeps what was compiled.
//! - No hardware GPU has run this yet.
//!
//! # Adding a rule
//! 1. A variant of [`attack::Rule`] with the images it remembers, and the method that uses it.
//! 2. Its kernel beside `shaders/rules.wgsl`, with its file in `kernel/files.rs` and its loops in `kernel/rounds.rs`;
//!    its dispatch in `ops/step.rs`, and its place in the list of `Plan::new`; its twin in `reference/walk.rs`.
//! 3. Twin and kernel by bits in `tests/family.rs`; what its authors' code does, recorded, in `tests/libraries.rs`.
//!
//! # Adding a layer
//! 1. A variant of [`model::Layer`] with its shape rule in `Layer::output`.
//! 2. Forward and backward in `reference/layers.rs`, an arm each in `reference/network.rs`, checked by finite
//!    differences in `reference.rs`.
//! 3. A kernel for each direction in a file of `shaders/`, shapes beside the bindings; its file in `kernel/files.rs`,
//!    its loops in `kernel/rounds.rs`.
//! 4. A file in `ops/` that turns the layer into dispatches, and an arm each in `plan::forward` and `plan::backward`.
//! 5. Random shapes against the reference in `tests/kernels.rs`; bits alone and in batches in `tests/invariance.rs`.

// Only the program prints; it answers through a writer of its own.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(not(any(feature = "pipeline-cache", feature = "cooperative-matrix")), forbid(unsafe_code))]

pub mod attack;
#[cfg(feature = "cli")]
pub mod cli;
pub mod coop;
#[cfg(feature = "cli")]
pub mod data;
pub mod error;
mod gpu;
pub mod habits;
pub mod kernel;
pub mod model;
mod network;
mod ops;
pub mod plan;
pub mod probe;
pub mod reference;
#[cfg(feature = "cli")]
pub mod report;
#[cfg(feature = "cli")]
pub mod study;
pub mod task;
mod tensor;
mod training;
pub mod trial;
pub mod tune;
pub mod weights;

pub use attack::{Attack, Engine, Method, Norm, Outcome, Targets};
pub use error::{Error, Result};
#[doc(hidden)]
pub use gpu::fault;
pub use gpu::{Adapter, AdapterSummary, Gpu, Limits, Storage};
pub use model::Model;
pub use network::{Network, Options};
pub use plan::{Math, Plan, Target, Variant};
pub use reference::Reference;
pub use task::Task;
pub use tensor::{Kind, Resource};
pub use training::Training;
pub use wgpu;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
