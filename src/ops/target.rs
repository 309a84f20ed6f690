//! What a plan is made for: a device's limits and class, and what was asked for; and the families of kernels that it is
//! offered.

use super::tile::{Family, Tile, Tuning, Variant, WHOLE};
use super::{Math, workgroup};
use crate::error::{Error, Result};
use crate::gpu::{CoopMatrix, Gpu, Limits, MANY_REGISTERS, Storage};
use crate::habits::{self, Habits, SHARE};
use crate::kernel::MAX_ROUNDS;

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Limits of the device.
    pub limits: Limits,
    /// Where activations lie.
    pub storage: Storage,
    /// Which arithmetic.
    pub math: Math,
    /// Which kernels.
    pub variant: Variant,
    /// The smallest subgroup of the device, where its lanes were found to be in the order of invocations; else 0.
    pub subgroup: u32,
    /// The largest one, 64 at most: workgroups in which values are handed round are multiples of it.
    pub subgroup_most: u32,
    /// Whether the device is a program: memory operations then cost far more than arithmetic, and workgroup memory
    /// most.
    pub is_software: bool,
    /// Whether texels are stored two words at a time, as u64.
    pub wide: bool,
    /// Tiles that were measured on this device, for [`Variant::Fast`].
    pub tuning: Tuning,
    /// Rounds of all loops of one invocation that the device surely takes.
    pub rounds: u64,
    /// Registers of 32 bits that an invocation is taken to have.
    pub registers: u32,
    /// Units that multiply matrices, for [`Math::Coop`].
    pub coop: Option<CoopMatrix>,
}

impl Default for Target {
    /// Hardware with WebGPU's guaranteed limits, activations in buffers, the fast kernels.
    fn default() -> Self {
        Target {
            limits: Limits::default(),
            storage: Storage::Buffer,
            math: Math::default(),
            variant: Variant::default(),
            subgroup: 0,
            subgroup_most: WHOLE,
            is_software: false,
            wide: false,
            tuning: Tuning::default(),
            rounds: MAX_ROUNDS,
            registers: MANY_REGISTERS,
            coop: None,
        }
    }
}

impl Target {
    /// Invocations that share weights ([`Family::Broadcast`]): the more, the fewer each of them loads.
    pub(crate) fn share(&self) -> u32 {
        habits::share(self.subgroup)
    }

    /// Invocations in a workgroup that hands values round, for `items` a sample: whole subgroups, and no more than a
    /// small image fills, for all of them work.
    pub(crate) fn handing_round(&self, items: u32) -> u32 {
        items.next_multiple_of(self.subgroup_most).min(WHOLE)
    }

    /// A device as it is: its limits, its class, and what its loops and subgroups do, which is tried out once.
    ///
    /// # Errors
    /// Those of the device.
    pub fn of(gpu: &Gpu) -> Result<Self> {
        let habits = Habits::of(gpu)?;
        if !habits.notices_nonfinite {
            let why = "does not notice NaN and infinity in what it computes, so nothing that it says could be trusted";
            return Err(Error::NoAdapter(format!("adapter {} {why}", gpu.summary().name)));
        }
        Ok(Target {
            limits: gpu.limits().clone(),
            storage: gpu.storage(),
            subgroup: habits::subgroup(gpu)?,
            subgroup_most: gpu.largest_subgroup().clamp(SHARE, WHOLE),
            is_software: gpu.summary().kind == "software",
            wide: gpu.summary().kind == "software" && gpu.has_u64(),
            registers: gpu.registers(),
            // Half of what it takes: loops of drivers' own making may count, too.
            rounds: habits.loop_cap.map_or(MAX_ROUNDS, |cap| MAX_ROUNDS.min(u64::from(cap) / 2)),
            ..Target::default()
        })
    }
}

impl Tile {
    /// Every tile that is offered on a device, for benches and tuning. Not every layer can be served by each.
    pub fn all(target: &Target) -> Vec<Tile> {
        let mut all = vec![Tile::new(Family::Register, 4, 8), Tile::new(Family::Register, 4, 4)];
        all.extend([Tile::new(Family::Register, 2, 8), Tile::new(Family::Register, 2, 4)]);
        let broadcast = [(4, 4), (4, 8), (8, 4), (2, 8), (2, 4), (1, 8), (1, 4)];
        all.extend(broadcast.map(|(blocks, pixels)| Tile::new(Family::Broadcast, blocks, pixels)));
        all.extend(workgroup::tiles());
        all.retain(|tile| tile.family.is_offered(target));
        all
    }
}

impl Family {
    /// Whether a device can run this family.
    pub fn is_offered(self, target: &Target) -> bool {
        match self {
            Family::Register => true,
            // A smaller subgroup would silently hand out other weights than were asked for; and all must be whole.
            Family::Broadcast => target.subgroup >= SHARE && target.limits.workgroup_size >= WHOLE,
            // What WebGPU guarantees is what the tiles are made for.
            Family::Workgroup | Family::Lean => {
                target.limits.workgroup_size >= workgroup::INVOCATIONS
                    && target.limits.workgroup_storage >= workgroup::STORAGE
            }
        }
    }

    /// Whether it may be the fastest on a device of this class. (Where it cannot be, it is not even compiled: Mesa 25's
    /// compiler for Intel crashes on some of [`Family::Broadcast`].)
    pub(crate) fn suits(self, target: &Target) -> bool {
        match self {
            Family::Register => true,
            Family::Broadcast => target.is_software,
            Family::Workgroup | Family::Lean => !target.is_software,
        }
    }

    /// The family that serves a device of this class best.
    pub(crate) fn best(target: &Target) -> Self {
        let wanted = match (target.is_software, target.storage) {
            (false, _) if target.registers >= MANY_REGISTERS => Family::Workgroup,
            (false, _) => Family::Lean,
            (true, Storage::Texture) => Family::Broadcast,
            // Other lanes' weights from a buffer are as dear as one's own from a uniform.
            (true, Storage::Buffer) => Family::Register,
        };
        if wanted.is_offered(target) { wanted } else { Family::Register }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_gets_workgroup_tiles_where_its_limits_allow() {
        let mut target = Target::default();
        assert_eq!(Family::best(&target), Family::Workgroup);
        target.registers = 128;
        assert_eq!(Family::best(&target), Family::Lean);
        target.limits.workgroup_storage = 8 << 10;
        assert_eq!(Family::best(&target), Family::Register);
    }

    /// A device may be asked for as little as its host likes.
    #[test]
    fn workgroups_too_small_are_offered_no_tiles_that_need_larger_ones() {
        let offered = |size: u32| {
            let mut target = Target { subgroup: 8, ..Target::default() };
            target.limits.workgroup_size = size;
            [Family::Register, Family::Broadcast, Family::Workgroup, Family::Lean]
                .map(|family| family.is_offered(&target))
        };
        assert_eq!(offered(256), [true; 4]);
        assert_eq!([offered(255), offered(64)], [[true, true, false, false]; 2]);
        assert_eq!(offered(63), [true, false, false, false]);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let target = Target { subgroup: 8, ..Target::default() };
        for variant in
            [Variant::Naive, Variant::Fast].into_iter().chain(Tile::all(&target).into_iter().map(Variant::Only))
        {
            assert_eq!(variant.to_string().parse::<Variant>().unwrap(), variant);
        }
        for wrong in ["", "register", "register-4", "register-0x4", "register-4x", "other-4x4", "register-4x4x4"] {
            assert!(wrong.parse::<Variant>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_subgroup_too_small_is_offered_no_broadcast() {
        for subgroup in [0, 1, 4, 7] {
            let target = Target { subgroup, storage: Storage::Texture, is_software: true, ..Target::default() };
            assert!(Tile::all(&target).iter().all(|tile| tile.family != Family::Broadcast));
            assert_eq!(Family::best(&target), Family::Register);
        }
        let target = Target { subgroup: 8, storage: Storage::Texture, is_software: true, ..Target::default() };
        assert_eq!(Family::best(&target), Family::Broadcast);
    }
}
