//! signstep itself, by the way that its own attacks go.

use crate::Result;
use crate::case::{Case, EPS, STEP_SIZE};
use crate::worker::{Checked, Memory, Peer, Ready};
use signstep::attack::{Engine as _, Job, Sample};
use signstep::{Adapter, Gpu, Math, Network, Options};

pub struct Engine {
    case: Case,
    net: Network,
}

impl Engine {
    pub fn new(case: Case, math: Math) -> Result<Self> {
        let gpu = Gpu::new(&Adapter::Auto)?;
        let net = Network::with_options(&gpu, case.model.clone(), &Options { math, ..Options::default() })?;
        // What stands in the table then, for nothing is timed twice.
        if math == Math::Fast && !net.plan().is_fast() {
            return Err("as f32".into());
        }
        Ok(Engine { case, net })
    }
}

impl Peer for Engine {
    fn ready(&self) -> Ready {
        let adapter = self.net.gpu().summary();
        Ready {
            name: "signstep".into(),
            device: adapter.name.clone(),
            how: format!("{}, {}, {}", adapter.backend, adapter.driver, adapter.kind),
        }
    }

    fn check(&mut self) -> Result<Checked> {
        let logits = self.net.logits(&self.case.images)?.logits;
        let gradient = self.net.input_gradient(&self.case.images, &self.case.classes)?.gradient;
        let plan = self.net.plan();
        Ok(Checked {
            logits,
            gradient: Some(gradient),
            memory: Memory { bytes: Some(plan.bytes_per_sample() as f64), ..Memory::default() },
            flops_forward: Some(plan.flops_forward() as f64),
        })
    }

    fn step(&mut self, steps: u32) -> Result<f32> {
        let sample = Sample { eps: EPS, step_size: STEP_SIZE, direction: -1.0, ..Sample::default() };
        let samples: Vec<Sample> = self.case.classes.iter().map(|&class| Sample { class, ..sample }).collect();
        let job = Job::new(&self.case.images, &samples, steps);
        let images = self.net.iterate(&job, &mut |_| true)?.images;
        Ok(images.iter().zip(&self.case.images).map(|(x, x0)| (x - x0).abs()).fold(0.0, f32::max))
    }

    fn forward(&mut self, times: u32) -> Result<()> {
        for _ in 0..times {
            self.net.logits(&self.case.images)?;
        }
        Ok(())
    }
}
