//! Pipelines that a driver compiled earlier (feature `pipeline-cache`): given back to it they change no bit.
#![allow(unsafe_code, reason = "the driver is given what it gave")]

mod common;

use common::*;
use signstep::attack::Engine;
use signstep::{Adapter, Gpu, Network, weights};

fn logits(gpu: &Gpu) -> Vec<f32> {
    let model = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let images = Rng::new(1).images(3 * 64);
    Network::new(gpu, model).unwrap().logits(&images).unwrap().logits
}

#[test]
fn what_was_compiled_is_taken_back() {
    let want = logits(gpu());
    assert_eq!(gpu().pipeline_cache_data(), None, "no cache was asked for");
    // SAFETY: there are no data.
    let first = unsafe { Gpu::with_pipeline_cache(&Adapter::Auto, None) }.unwrap();
    assert_bits("with an empty cache", &logits(&first), &want);
    let Some(data) = first.pipeline_cache_data() else {
        assert_ne!(first.summary().backend, "vulkan", "Vulkan has pipeline caches");
        return;
    };
    assert!(!data.is_empty());
    // SAFETY: as they were given.
    let second = unsafe { Gpu::with_pipeline_cache(&Adapter::Auto, Some(&data)) }.unwrap();
    assert_bits("with what was compiled before", &logits(&second), &want);
}
