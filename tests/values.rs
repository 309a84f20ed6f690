//! Quotients, roots, logarithms and cosines that kernels make by hand, where WGSL leaves an adapter's own open: on the device, by
//! bits, over every digit pattern that there is.

mod common;

use common::gpu;
use signstep::Storage;
use signstep::attack::Sample;
use signstep::kernel::Kernel;
use signstep::reference::normal::{cosine, squares_of_two};
use signstep::wgpu::{self, BufferUsages as Usage};

/// `function` of so many words, every `stride`-th from the first, on the device.
fn on_device(function: &str, first: u32, stride: u32, count: u32) -> Vec<f32> {
    // Any kernel that has all of them.
    let consts = vec![("LEN", 1), ("LANES", 256), ("WG", 256), ("KIND", 2), ("HALVES", 0)];
    let mut kernel = Kernel::new("ball_start", consts, Storage::Buffer);
    // And what those have whose texels are of f16.
    kernel.halves = vec!["none of its own"];
    let source = kernel.source().unwrap();
    // All ask for their number.
    let samples_at = source.bindings.iter().position(|(name, _)| name == "samples").unwrap() as u32;
    let text = format!(
        "{}
        @group(0) @binding(10) var<uniform> words: vec4<u32>;
        @group(0) @binding(11) var<storage, read_write> values: array<f32>;
        @compute @workgroup_size(256) fn check(@builtin(global_invocation_id) id: vec3<u32>) {{
            let i = id.x + (id.y << 16u);
            if (i < arrayLength(&values) && arrayLength(&samples) > 0u) {{
                values[i] = {function};
            }}
        }}",
        source.text
    );
    let (device, queue) = (gpu().device(), gpu().queue());
    let source = wgpu::ShaderSource::Wgsl(text.replace("WORD", "(words.x + i * words.y)").into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(function), source });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(function),
        layout: None,
        module: &module,
        entry_point: Some("check"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let size = 4 * u64::from(count);
    let (words, values) =
        (buffer(16, Usage::UNIFORM | Usage::COPY_DST), buffer(size, Usage::STORAGE | Usage::COPY_SRC));
    let samples = buffer(size_of::<Sample>() as u64, Usage::STORAGE);
    let read = buffer(size, Usage::MAP_READ | Usage::COPY_DST);
    queue.write_buffer(&words, 0, bytemuck::cast_slice(&[first, stride, 0, 0]));
    let entries = [(samples_at, &samples), (10, &words), (11, &values)]
        .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() });
    let layout = &pipeline.get_bind_group_layout(0);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(256, count.div_ceil(1 << 16), 1);
    drop(pass);
    encoder.copy_buffer_to_buffer(&values, 0, &read, 0, size);
    queue.submit([encoder.finish()]);
    read.slice(..).map_async(wgpu::MapMode::Read, Result::unwrap);
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let bytes = read.slice(..).get_mapped_range().unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

fn is_the_twins(function: &str, twin: impl Fn(u32) -> f32, (first, stride, count): (u32, u32, u32)) {
    let got = on_device(function, first, stride, count);
    for (i, got) in (0..count).zip(got) {
        let word = first + i * stride;
        let want = twin(word);
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
        assert!(same, "{function} of {word:#010x}: {got:e} and {want:e}");
    }
}

/// Of a power of two and of four, one by one; all positive numbers, every 509th; where numbers end.
const OCTAVE: (u32, u32, u32) = (0x3f80_0000, 1, 1 << 23);
const TWO_OCTAVES: (u32, u32, u32) = (0x3f80_0000, 1, 1 << 24);
const ALL: (u32, u32, u32) = (0, 509, 1 << 22);
const ENDS: [(u32, u32, u32); 3] = [(0x007f_ff00, 1, 512), (0x7e7f_ff00, 1, 512), (0x7f7f_ff00, 1, 512)];

/// What is below the smallest normal number is zero.
fn flushed(v: f32) -> f32 {
    if v.is_subnormal() { 0.0 } else { v }
}

#[test]
fn quotients_are_the_nearest_numbers() {
    for some in [OCTAVE, ALL].into_iter().chain(ENDS) {
        let inverse = |v: f32| if v.is_normal() { flushed(1.0 / v) } else { 0.0 };
        is_the_twins("inverse_of(bitcast<f32>(WORD))", |word| inverse(f32::from_bits(word)), some);
    }
}

#[test]
fn roots_are_the_nearest_numbers() {
    for some in [TWO_OCTAVES, ALL].into_iter().chain(ENDS) {
        is_the_twins("root(bitcast<f32>(WORD))", |word| flushed(f32::from_bits(word)).sqrt(), some);
    }
}

/// As the `half` crate rounds; beyond the largest f16, and of NaN, infinity.
#[test]
fn halves_are_the_nearest_ones() {
    let half = |word: u32| {
        let v = f32::from_bits(word);
        let fits = v.abs() <= 65_504.0;
        f32::from(if fits { half::f16::from_f32(v).to_bits() } else { (word >> 16) as u16 & 0x8000 | 0x7c00 })
    };
    // Both signs; where f16 ends, where its subnormals begin and where they end.
    let ends = [0x477f_0000, 0x387f_0000, 0x32ff_0000, 0x337f_0000].map(|first| (first, 1, 1 << 18));
    for some in [ALL, (1 << 31, 509, 1 << 22)].into_iter().chain(ends) {
        is_the_twins("f32(to_half(vec4<f32>(0.0, bitcast<f32>(WORD), 0.0, 0.0)).x >> 16u)", half, some);
        is_the_twins("f32(to_half(vec4<f32>(0.0, 0.0, bitcast<f32>(WORD), 0.0)).y)", half, some);
    }
}

#[test]
fn logarithms_and_cosines_have_the_bits_of_their_twins() {
    is_the_twins("squares_of_two(WORD)", squares_of_two, (0, 256, 1 << 24));
    is_the_twins("cosine(WORD)", cosine, (0, 256, 1 << 24));
}
