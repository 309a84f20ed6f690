//! From a dispatch as data to commands: its pipeline, its memory bound, and the order in which parts of a batch are
//! recorded.

use super::{Access, Dispatch};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Held, Pipeline};
use crate::tensor::{Allocated, Lent, Staged};
use std::ops::Range;
use std::sync::Arc;

/// A dispatch that needs only memory to be bound.
#[derive(Debug)]
pub(crate) struct Ready {
    pipeline: Arc<Pipeline>,
    bindings: Vec<(String, Access)>,
}

/// What a run of a dispatch needs on the device.
#[derive(Debug)]
pub(crate) struct Bound {
    pipeline: Arc<Pipeline>,
    /// Bindings and workgroups of each part of the batch.
    parts: Vec<(Held<wgpu::BindGroup>, [u32; 3])>,
    /// To where the texels go that it writes.
    staged: Option<Held<Staged>>,
    /// Whether what it writes is of a part, for the dispatch behind it.
    hands_on: bool,
}

impl Dispatch {
    /// Binds this dispatch to memory for a batch of `n`, which `lent` gives for each resource.
    pub(crate) fn bind<'a>(&self, gpu: &Gpu, n: u32, lent: impl Fn(usize) -> Lent<'a>) -> Result<Bound> {
        self.bind_ready(gpu, n, &self.ready(gpu, None)?, lent)
    }

    /// What binding this dispatch takes, however often; with a pipeline of other text ([`Dispatch::pipeline_of`]) where
    /// one is given.
    pub(crate) fn ready(&self, gpu: &Gpu, other: Option<Arc<Pipeline>>) -> Result<Ready> {
        let source = self.kernel.source()?;
        let types = self.kernel.types(&source);
        let make = || gpu.pipeline(self.kernel.key(), || Ok((self.kernel.entry, source.text, types)));
        Ok(Ready { pipeline: other.map_or_else(make, Ok)?, bindings: source.bindings })
    }

    /// Binds this dispatch, once it is ready, to memory.
    pub(crate) fn bind_ready<'a>(
        &self,
        gpu: &Gpu,
        n: u32,
        ready: &Ready,
        lent: impl Fn(usize) -> Lent<'a>,
    ) -> Result<Bound> {
        let fail = |what: String| Error::Internal(format!("{}: {what}", self.kernel.entry));
        let mut bound = Vec::with_capacity(ready.bindings.len());
        let (mut staged, mut hands_on) = (None, false);
        for (name, access) in &ready.bindings {
            let Some((_, id)) = self.bindings.iter().find(|(given, _)| given == name) else {
                return Err(fail(format!("nothing is bound to {name}")));
            };
            let Lent { mut memory, bytes, stage, is_passing } = lent(*id);
            hands_on |= is_passing && *access == Access::ActivationWrite;
            if let (Access::ActivationWrite, Allocated::Texture(texels)) = (access, memory) {
                let stage = stage.ok_or_else(|| fail(format!("no stage for {name}")))?;
                // What it writes may be smaller than the largest that ever lies there.
                let bytes = self.kernel.writes(name).map_or(bytes, |each| bytes.min(each * u64::from(n)));
                staged = Some(gpu.hold(Staged::new(stage, texels, bytes)));
                memory = stage;
            }
            bound.push((name, memory, bytes));
        }
        let part = |part: Range<u32>| {
            let mut entries = Vec::with_capacity(bound.len());
            for (binding, (name, memory, bytes)) in (0..).zip(&bound) {
                let bytes = if *name == "health" { 4 * u64::from(part.end) } else { *bytes };
                entries.push(wgpu::BindGroupEntry { binding, resource: memory.binding(bytes) });
            }
            let group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(self.kernel.entry),
                layout: &ready.pipeline.layout,
                entries: &entries,
            });
            (gpu.hold(group), self.grid.workgroups(part.len() as u32))
        };
        Ok(Bound { pipeline: ready.pipeline.clone(), parts: self.grid.parts(n).map(part).collect(), staged, hands_on })
    }

    /// A pipeline of someone else's text that takes the bindings of this dispatch.
    pub(crate) fn pipeline_of(&self, gpu: &Gpu, entry: &str, text: &str) -> Result<Arc<Pipeline>> {
        let types = self.kernel.types(&self.kernel.source()?);
        let make = || Pipeline::new(gpu.device(), gpu.submits_and_waits(), None, entry, text.into(), &types);
        gpu.scope(entry, || Ok(Arc::new(make())))
    }
}

impl Bound {
    /// Whether a copy follows it.
    pub fn is_staged(&self) -> bool {
        self.staged.is_some()
    }

    /// How often it runs.
    pub fn runs(&self) -> usize {
        self.parts.len()
    }
}

/// Records dispatches, and behind each the copy of what it leaves on the stage. Those that hand on a part of the batch
/// wait for the one that ends with it, and are recorded part by part.
pub(crate) struct Recorder<'r> {
    encoder: &'r mut wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    waiting: Vec<&'r Bound>,
    /// Timestamps for the next pass.
    stamps: Option<wgpu::ComputePassTimestampWrites<'r>>,
}

impl<'r> Recorder<'r> {
    /// One whose first pass writes `stamps`.
    pub fn new(encoder: &'r mut wgpu::CommandEncoder, stamps: Option<wgpu::ComputePassTimestampWrites<'r>>) -> Self {
        Recorder { encoder, pass: None, waiting: Vec::new(), stamps }
    }

    /// Records one dispatch.
    pub fn dispatch(&mut self, bound: &'r Bound) {
        self.waiting.push(bound);
        if !bound.hands_on {
            self.parts();
        }
    }

    /// Whether a dispatch waits for others.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records what waits, one part of the batch after the other.
    pub fn parts(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let parts = waiting.iter().map(|bound| bound.parts.len()).max().unwrap_or(0);
        for part in 0..parts {
            for bound in &waiting {
                self.part(bound, part);
            }
        }
    }

    fn part(&mut self, bound: &Bound, part: usize) {
        let Some((group, [x, y, z])) = bound.parts.get(part) else { return };
        let mut pass = self.pass.take().unwrap_or_else(|| self.begin());
        pass.set_pipeline(&bound.pipeline.pipeline);
        pass.set_bind_group(0, &**group, &[]);
        pass.dispatch_workgroups(*x, *y, *z);
        match &bound.staged {
            // What is of the whole batch is copied when it is whole.
            Some(staged) if bound.hands_on || part + 1 == bound.parts.len() => {
                drop(pass);
                staged.record(self.encoder);
            }
            _ => self.pass = Some(pass),
        }
    }

    fn begin(&mut self) -> wgpu::ComputePass<'static> {
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: self.stamps.take() };
        self.encoder.begin_compute_pass(&descriptor).forget_lifetime()
    }

    /// Ends it; where there are `stamps`, with a pass of its own for them.
    pub fn end(mut self, stamps: Option<wgpu::ComputePassTimestampWrites<'r>>) {
        self.parts();
        self.pass = None;
        if stamps.is_some() {
            self.stamps = stamps;
            self.begin();
        }
    }
}

/// Records and submits dispatches.
pub(crate) fn submit<'b>(gpu: &Gpu, all: impl IntoIterator<Item = &'b Bound>) -> Result<wgpu::SubmissionIndex> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut recorder = Recorder::new(&mut encoder, None);
    all.into_iter().for_each(|bound| recorder.dispatch(bound));
    recorder.end(None);
    gpu.submit(encoder)
}
