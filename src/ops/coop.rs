//! Convolutions on units that multiply whole matrices: `shaders/coop.wgsl`. f16 by f16, added up in f32 in an order of
//! the unit's own, so only for [`Math::Coop`].

use super::gather::{Gather, Pass};
use super::workgroup::taps;
use super::{Build, Consts, Epilogue, Math, Target};
use crate::gpu::CoopMatrix;
use crate::kernel::{Dispatch, Grid, Kernel};
use half::f16;

/// Channels, read and written, from which matrices are filled.
const CHANNELS: usize = 16;

/// Subgroups in a workgroup.
const SUBGROUPS: u32 = 4;

/// Numbers along a slab: channels of all its steps.
const SLAB: u32 = 32;

/// Whether a layer is computed so: a question of its shape and weights, not of the batch, nor of the variant.
pub(super) fn is_chosen(target: &Target, g: &Gather) -> bool {
    let is_wide = g.x.dims.c.min(g.y.dims.c) >= CHANNELS;
    target.math == Math::Coop && is_wide && Cut::new(target, g).is_some() && weights_fit(g)
}

/// Whether f16 holds every weight.
fn weights_fit(g: &Gather) -> bool {
    let (i4, o4) = g.blocks();
    let all = (0..o4).flat_map(|b| (0..4 * i4).map(move |i| (b, i)));
    let mut taps = all.flat_map(|(b, i)| (0..g.kernel * g.kernel).map(move |k| (b, i, k)));
    taps.all(|(b, i, k)| g.weights(b, i, k / g.kernel, k % g.kernel).iter().all(|w| rounded(*w).is_finite()))
}

/// A weight as such a unit takes it.
pub(super) fn rounded(weight: f32) -> f32 {
    f16::from_f32(weight).to_f32()
}

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    matrix: CoopMatrix,
    /// Subgroups along the pixels, and along the channels.
    sp: u32,
    sc: u32,
    /// Matrices of a subgroup: the same.
    mp: u32,
    mc: u32,
    /// Steps in a slab.
    steps: u32,
}

impl Cut {
    /// The largest that the device's workgroups hold, if there is one.
    fn new(target: &Target, g: &Gather) -> Option<Self> {
        let matrix = target.coop?;
        let (sc, mc) = match (g.y.dims.c as u32).div_ceil(matrix.side) {
            1 => (1, 1),
            2 | 3 => (1, 2),
            _ => (2, 2),
        };
        let all = [(SUBGROUPS / sc, 2), (SUBGROUPS / sc, 1), (1, 1)];
        let mut cuts = all.map(|(sp, mp)| Cut { matrix, sp, sc, mp, mc, steps: SLAB / matrix.side }).into_iter();
        let limits = &target.limits;
        cuts.find(|cut| cut.storage() <= limits.workgroup_storage && cut.invocations() <= limits.workgroup_size)
    }

    fn pixels(&self) -> u32 {
        self.sp * self.mp * self.matrix.side
    }

    fn channels(&self) -> u32 {
        self.sc * self.mc * self.matrix.side
    }

    fn invocations(&self) -> u32 {
        self.sp * self.sc * self.matrix.lanes
    }

    /// Bytes of workgroup memory, as the shader declares it.
    fn storage(&self) -> u32 {
        self.pixels() * (8 * (SLAB / 4 + 2) + 16 * (self.channels() / 4 + 1))
    }
}

/// Weights as matrices, in the order in which workgroups read them: T channels read × T written, one after the other
/// along the channels of a tile. Column by column, for a lane of the units holds numbers of one column.
fn matrices(g: &Gather, cut: &Cut, tiles: u32) -> Vec<u8> {
    let side = cut.matrix.side as usize;
    let (i4, _) = g.blocks();
    let inputs = (4 * i4).div_ceil(side);
    let taps = |phase| taps(g.kernel, g.padding, g.dilate, phase);
    let mut values: Vec<f16> = Vec::new();
    for tile in 0..tiles as usize {
        for (h, w) in (0..g.dilate).flat_map(|h| (0..g.dilate).map(move |w| (h, w))) {
            for (c, r) in (0..inputs).flat_map(|c| taps(h).map(move |r| (c, r))) {
                for (s, m) in taps(w).flat_map(|s| (0..(cut.sc * cut.mc) as usize).map(move |m| (s, m))) {
                    let first = tile * cut.channels() as usize + m * side;
                    for (o, i) in (first..first + side).flat_map(|o| (c * side..(c + 1) * side).map(move |i| (o, i))) {
                        values.push(f16::from_f32(g.weights(o / 4, i, r, s)[o % 4]));
                    }
                }
            }
        }
    }
    // The last slab is read whole.
    let slab = (cut.steps * cut.channels() * cut.matrix.side) as usize;
    values.extend(std::iter::repeat_n(f16::ZERO, slab));
    bytemuck::cast_slice(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).to_vec()
}

pub(super) fn emit(build: &mut Build, g: &Gather, epilogue: Epilogue) {
    let cut = Cut::new(build.target, g).expect("chosen");
    let CoopMatrix { side, lanes } = cut.matrix;
    let size = cut.sp * cut.sc * lanes;
    let (i4, o4) = g.blocks();
    let tiles = (4 * o4 as u32).div_ceil(cut.channels());
    let mut consts: Consts = vec![
        ("T", side),
        ("IC4", i4 as u32),
        ("ICT", (4 * i4 as u32).div_ceil(side)),
        ("IH", g.x.dims.h as u32),
        ("IW", g.x.dims.w as u32),
        ("R", g.kernel as u32),
        ("S", g.kernel as u32),
        ("STRIDE", g.stride as u32),
        ("STEP", g.dilate as u32),
        ("PAD", g.padding.cast_unsigned()),
        ("SC", cut.sc),
        ("MP", cut.mp),
        ("MC", cut.mc),
        ("PIXELS", cut.pixels()),
        ("CHANNELS", cut.channels()),
        ("LS", cut.steps),
        ("WORDS", cut.pixels() / 4 * (cut.channels() / 8)),
        ("X_TURNS", (cut.pixels() * SLAB / 4).div_ceil(size)),
        ("WG", size),
    ];
    let mut bindings = vec![("x", g.x.id), ("y", g.y.id)];
    epilogue.apply(build, g.y.dims, &mut consts, &mut bindings);
    if epilogue.relu.is_none() {
        bindings.push(("health", build.health));
    }
    bindings.push(("w", build.constant(format!("{} weights", g.layer), matrices(g, &cut, tiles))));
    let biases: Vec<[f32; 4]> = (0..(tiles * cut.channels() / 4) as usize).map(|b| g.biases(b)).collect();
    bindings.push(("b", build.texels(format!("{} biases", g.layer), bytemuck::cast_slice(&biases).to_vec())));
    let phase = |side: usize| side.div_ceil(g.dilate);
    let groups = (phase(g.y.dims.h) * phase(g.y.dims.w).div_ceil(4)) as u32;
    let entry = match g.pass {
        Pass::Forward => "conv2d_forward_coop",
        Pass::InputGrad => "conv2d_input_grad_coop",
    };
    build.push(Dispatch {
        kernel: Kernel::new(entry, consts, build.target.storage),
        layer: g.layer.into(),
        bindings,
        grid: Grid::Flat {
            items: groups.div_ceil(side / 4),
            samples: 1,
            size: cut.pixels() / side,
            y: tiles * (g.dilate * g.dilate) as u32,
        },
        flops: g.flops,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_rounded_to_f16() {
        assert_eq!(rounded(1.0 + 1.0 / 4096.0), 1.0);
        assert_eq!(rounded(-0.5), -0.5);
        assert!(rounded(1e6).is_infinite());
    }
}
