//! A network in training mode: batch norm takes the statistics of the batch that it is given, as PyTorch's `train()`
//! does.
//!
//! This is the mode that attacks must *not* run in, and it is here to show why. The loss of one sample depends on all
//! images of the batch, and so does its gradient: what is promised of [`Network`](crate::Network), the same bits alone
//! and in any batch, cannot hold. So it is a type of its own that is no [`Engine`](crate::attack::Engine): no attack
//! takes it.

use crate::attack::{Gradient, Health, Logits, Loss, Sample, check_samples};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Bound, Dispatch, compile};
use crate::model::{Arch, Dims, Layer, Model};
use crate::network::{Memory, Options, append, mark, run};
use crate::plan::{Math, Target, TrainingPlan};
use crate::tensor::{Allocated, Kind};
use crate::weights::{self, Tensors};
use std::cell::OnceCell;
use std::sync::{Mutex, PoisonError};

/// A network in training mode: batch norm with the statistics of the batch it is given. The whole slice of images is
/// *one* batch, and samples are coupled.
///
/// Mean and variance (biased) are taken over all pixels of all images, and the gradient goes through them.
/// Running statistics are neither used nor updated. Nothing else depends on the mode: a network without any batch norm
/// gives the bits of [`Network`](crate::Network).
///
/// Results are the same from run to run on one device, in one order of the images. A value that is not finite in one
/// image reaches all of them, and all are marked.
///
/// ```no_run
/// # use signstep::{Adapter, Gpu, Training, attack::{Loss, Sample}};
/// # fn main() -> signstep::Result<()> {
/// # let (images, weights) = (vec![0.0_f32; 8 * 3072], Vec::new());
/// let gpu = Gpu::new(&Adapter::Auto)?;
/// let net = Training::load(&gpu, &weights)?;
/// // images: [8, 3, 32, 32]; the sum of eight losses, differentiated by every pixel of every image
/// let samples: Vec<Sample> = (0..8).map(|i| Sample { class: i, label: i, direction: 1.0, ..Sample::default() }).collect();
/// let gradient = net.loss_gradient(&images, &samples, Loss::CrossEntropy)?;
/// # Ok(())
/// # }
/// ```
///
/// No attack runs on it:
///
/// ```compile_fail,E0277
/// # use signstep::{Attack, Training};
/// fn attack(net: &Training, images: &[f32], labels: &[i64]) {
///     let _ = Attack::ifgsm(0.3).run(net, images, labels);
/// }
/// ```
#[derive(Debug)]
pub struct Training {
    gpu: Gpu,
    model: Model,
    plan: TrainingPlan,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    constants: Vec<Option<Allocated>>,
    batch: Option<Batch>,
}

/// Memory and bindings for the batch that ran last.
#[derive(Debug)]
struct Batch {
    n: usize,
    memory: Vec<Option<Allocated>>,
    bound: BoundPlan,
}

#[derive(Debug)]
struct BoundPlan {
    forward: Vec<Bound>,
    backward: Vec<Bound>,
    logits: Bound,
    /// Bound when they are first needed.
    losses: Vec<OnceCell<Bound>>,
}

impl Training {
    /// Reads the files that [`Network::load`](crate::Network::load) reads, and keeps batch norm apart.
    ///
    /// # Errors
    /// As there.
    pub fn load(gpu: &Gpu, safetensors: &[u8]) -> Result<Self> {
        Self::load_with(gpu, safetensors, &Options::default())
    }

    /// The same as `options` say. A batch is never cut: one larger than [`Options::batch`] or [`Options::memory`]
    /// allows is refused when it comes.
    ///
    /// # Errors
    /// As [`Training::load`], and [`Error::Usage`] for an arithmetic other than f32 ([`Options::math`]).
    pub fn load_with(gpu: &Gpu, safetensors: &[u8], options: &Options) -> Result<Self> {
        Self::new(gpu, weights::load_training(safetensors)?, options)
    }

    /// The weights of a network of one's own ([`weights::load_training_as`]).
    ///
    /// # Errors
    /// As [`Training::load`].
    pub fn load_as(gpu: &Gpu, safetensors: &[u8], arch: &Arch, options: &Options) -> Result<Self> {
        Self::new(gpu, weights::load_training_as(safetensors, arch)?, options)
    }

    /// A network of one's own, as [`Network::from_layers`](crate::Network::from_layers).
    ///
    /// # Errors
    /// As there.
    pub fn from_layers(gpu: &Gpu, layers: Vec<Layer>, input: Dims, tensors: Tensors) -> Result<Self> {
        Self::from_layers_with(gpu, layers, input, tensors, &Options::default())
    }

    /// The same as `options` say ([`Training::load_with`]).
    ///
    /// # Errors
    /// As [`Training::load`].
    pub fn from_layers_with(
        gpu: &Gpu,
        layers: Vec<Layer>,
        input: Dims,
        tensors: Tensors,
        options: &Options,
    ) -> Result<Self> {
        Self::new(gpu, weights::from_layers_training(layers, input, tensors)?, options)
    }

    /// Not for everybody: a model whose batch norm was folded when it was loaded would run, in evaluation mode.
    fn new(gpu: &Gpu, model: Model, options: &Options) -> Result<Self> {
        if options.math != Math::F32 {
            let detail = format!("math {}: training mode computes in {} alone", options.math, Math::F32);
            return Err(Error::Usage(detail));
        }
        let target = Target {
            storage: options.storage.unwrap_or(gpu.storage()),
            variant: options.variant,
            tuning: options.tuning.clone(),
            ..Target::of(gpu)?
        };
        let plan = TrainingPlan::new(&model, &target)?;
        let most = plan.largest_batch(options.memory)?.min(options.batch.unwrap_or(usize::MAX));
        let constants = gpu.scope("uploading weights", || {
            let constant = |r: &crate::tensor::Resource| matches!(r.kind, Kind::Constant(_) | Kind::Texels(_));
            let all = plan.resources.iter();
            all.map(|r| constant(r).then(|| Allocated::new(gpu, r, 1, target.storage)).transpose()).collect()
        })?;
        let state = Mutex::new(State { constants, batch: None });
        Ok(Training { gpu: gpu.clone(), model, plan, most, state })
    }

    /// The network that runs, batch norm among its layers.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The dispatches that run.
    pub fn plan(&self) -> &TrainingPlan {
        &self.plan
    }

    /// Logits `[N, K]` of images `[N, C, H, W]`, all of them one batch.
    ///
    /// # Errors
    /// Those of the device; [`Error::Data`] when the length is no multiple of an image, or where a batch norm would
    /// have one value a channel, which has no variance; [`Error::OutOfMemory`] for a batch that does not fit, for it
    /// cannot be cut.
    pub fn logits(&self, images: &[f32]) -> Result<Logits> {
        let mut out = Logits { logits: Vec::new(), health: Vec::new() };
        self.on_batch(images, |run| {
            run.forward([(&run.bound.logits, &self.plan.logits)].into_iter())?;
            let [z, health] = run.read([self.plan.ids.logits, self.plan.ids.health])?;
            append(&mut out.logits, &z);
            append(&mut out.health, &health);
            Ok(())
        })?;
        mark(&mut out.health, &out.logits, self.model.logits(), Health::LOGITS);
        Ok(out)
    }

    /// Gradient of the *sum* of all samples' losses with respect to every image, through the statistics of the batch.
    /// Each loss is that of [`Engine::loss_gradient`](crate::attack::Engine::loss_gradient).
    ///
    /// # Errors
    /// As [`Training::logits`]; [`Error::Data`] for samples that do not fit, [`Error::Usage`] where the network has too
    /// few classes for the loss.
    pub fn loss_gradient(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<Gradient> {
        let n = self.samples(images)?;
        check_samples(samples, n, loss, &self.model)?;
        let ids = self.plan.ids;
        let mut out = Gradient { gradient: Vec::new(), loss: Vec::new(), health: Vec::new() };
        self.on_batch(images, |run| {
            run.write(ids.samples, samples)?;
            let backward = run.bound.backward.iter().zip(&self.plan.backward);
            run.forward([run.loss(loss)?].into_iter().chain(backward))?;
            let [gradient, loss, health] = run.read([ids.dx, ids.loss, ids.health])?;
            append(&mut out.gradient, &gradient);
            append(&mut out.loss, &loss);
            append(&mut out.health, &health);
            Ok(())
        })?;
        mark(&mut out.health, &out.gradient, self.model.input.len(), Health::GRADIENT);
        Ok(out)
    }

    /// Number of samples in `images`, which can be a batch.
    fn samples(&self, images: &[f32]) -> Result<usize> {
        let one = self.model.input.len();
        if !images.len().is_multiple_of(one) {
            let detail = format!("{} values are no whole number of {} images", images.len(), self.model.input);
            return Err(Error::data("images", detail));
        }
        let n = images.len() / one;
        if let (1, Some(norm)) = (n, &self.plan.one_value) {
            let detail =
                format!("in a batch of one image {norm} has one value a channel: there is no variance to divide by");
            return Err(Error::data("images", detail));
        }
        if n > self.most {
            return Err(Error::OutOfMemory {
                what: format!("one batch of {n} samples, which training mode cannot cut,"),
                bytes: n as u64 * self.plan.bytes_per_sample(),
                limit: format!("at most {} samples", self.most),
            });
        }
        Ok(n)
    }

    /// Runs `work` on images that are in place; nothing where there are none.
    fn on_batch(&self, images: &[f32], work: impl FnOnce(&Run<'_>) -> Result<()>) -> Result<()> {
        let n = self.samples(images)?;
        if n == 0 {
            return Ok(());
        }
        // Nobody panics between two changes that belong together, so what a panic leaves behind is sound.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { constants, batch } = &mut *state;
        if batch.as_ref().is_none_or(|b| b.n != n) {
            // The old memory goes first: the two must not stand beside each other.
            *batch = None;
            *batch = Some(self.prepare(constants, n)?);
        }
        let Batch { memory, bound, .. } = batch.as_ref().expect("prepared");
        let run = Run { net: self, n, memory: Memory { constants, batch: memory }, bound };
        run.write(self.plan.ids.x, images)?;
        run.write(self.plan.ids.health, &vec![0_u32; n])?;
        work(&run)
    }

    fn prepare(&self, constants: &[Option<Allocated>], n: usize) -> Result<Batch> {
        let (plan, storage) = (&self.plan, self.plan.target().storage);
        let memory: Vec<_> = self.gpu.scope("memory for the batch", || {
            let missing = plan.resources.iter().zip(constants);
            let new = |r| Allocated::new(&self.gpu, r, n as u64, storage);
            missing.map(|(r, constant)| constant.is_none().then(|| new(r)).transpose()).collect()
        })?;
        compile(&self.gpu, plan.forward.iter().chain(&plan.backward).chain([&plan.logits]))?;
        let bound = self.gpu.scope("binding the plan", || {
            let bind = |d: &Dispatch| self.bind(Memory { constants, batch: &memory }, d, n);
            let all = |list: &[Dispatch]| list.iter().map(bind).collect::<Result<Vec<_>>>();
            let (forward, backward, logits) = (all(&plan.forward)?, all(&plan.backward)?, bind(&plan.logits)?);
            Ok(BoundPlan { forward, backward, logits, losses: plan.losses.iter().map(|_| OnceCell::new()).collect() })
        })?;
        Ok(Batch { n, memory, bound })
    }

    fn bind(&self, memory: Memory<'_>, dispatch: &Dispatch, n: usize) -> Result<Bound> {
        dispatch.bind(&self.gpu, n as u32, |id| memory.lent(id, n, &self.plan.resources, &self.plan.stages))
    }
}

/// A batch in place, ready to run.
struct Run<'a> {
    net: &'a Training,
    n: usize,
    memory: Memory<'a>,
    bound: &'a BoundPlan,
}

impl Run<'_> {
    fn write<T: bytemuck::NoUninit>(&self, id: usize, values: &[T]) -> Result<()> {
        self.net.gpu.scope("writing the batch", || {
            self.net.gpu.queue().write_buffer(self.memory.get(id).buffer(), 0, bytemuck::cast_slice(values));
            Ok(())
        })
    }

    /// Runs forward, and `then` what comes behind.
    fn forward<'b>(&'b self, then: impl Iterator<Item = (&'b Bound, &'b Dispatch)>) -> Result<()> {
        let plan = &self.net.plan;
        let work = self.bound.forward.iter().zip(&plan.forward).chain(then);
        run(&self.net.gpu, self.n, work, &plan.logits, |_| Ok(()))
    }

    /// What stands between the logits and the rest of the backward pass.
    fn loss(&self, loss: Loss) -> Result<(&Bound, &Dispatch)> {
        let all = self.net.plan.losses.iter().zip(&self.bound.losses);
        let ((_, dispatch), cell) = all.into_iter().find(|((l, _), _)| *l == loss).expect("a plan has every loss");
        if cell.get().is_none() {
            let bound = self.net.gpu.scope("binding", || self.net.bind(self.memory, dispatch, self.n))?;
            let _ = cell.set(bound);
        }
        Ok((cell.get().expect("set above"), dispatch))
    }

    /// Reads resources of 4 bytes an element.
    fn read<const K: usize>(&self, ids: [usize; K]) -> Result<[Vec<u8>; K]> {
        let size = |id: usize| self.net.plan.resources[id].bytes(self.n as u64, Storage::Buffer).unwrap_or(0);
        let parts: Vec<_> = ids.iter().map(|&id| (self.memory.get(id).buffer(), size(id))).collect();
        Ok(self.net.gpu.read(&parts)?.try_into().expect("as many as asked for"))
    }
}
