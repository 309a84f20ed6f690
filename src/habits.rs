//! What an adapter does where WGSL leaves it open: asked once for each device, before the first plan is made for it.
//! Plans obey it ([`crate::Target`]), `signstep devices -v` shows it. Asking takes milliseconds where the driver has
//! compiled the two kernels before; the program keeps the [`Answers`] for its next start, the library asks in every
//! process unless it is given some.

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Dispatch, Grid, Kernel, MAX_ROUNDS, run_alone};
use crate::tensor::{Kind, Resource};
use std::fmt;
use std::str::FromStr;

/// Rounds of the loop that is tried.
const ROUNDS: u32 = 1 << 17;
const SEED: u32 = 0x9E37_79B9;

/// 1 + 2⁻¹² squared is 1 + 2⁻¹¹ + 2⁻²⁴, and the last of these is lost where the product is rounded.
const FACTOR: f32 = 1.0 + 1.0 / 4096.0;
const MINUS_PRODUCT: f32 = -(1.0 + 1.0 / 2048.0);
/// What is lost.
const FUSED: f32 = 1.0 / 16_777_216.0;

/// A sum that rounds the second number away, and a quotient that 1/b, rounded, does not give.
const LARGE: f32 = 1e8;
const SMALL: f32 = 1.0;
const DIVIDED: (f32, f32) = (5.0, 41.0);

const TINY: f32 = 1e-40;

/// Its square is infinite.
const HUGE: f32 = 1e30;

/// Invocations that share values in a subgroup at least: what a subgroup must have.
pub(crate) const SHARE: u32 = 8;

/// The most that share them: as many lanes as the widest vectors of a processor have.
pub(crate) const SHARE_MOST: u32 = 16;

/// Invocations that share values where a subgroup has `least` or more.
pub(crate) fn share(least: u32) -> u32 {
    if least < SHARE_MOST { SHARE } else { SHARE_MOST }
}

/// Numbers that an adapter writes down when it is asked.
const SEEN: usize = 17;

/// Answers of an adapter. Networks are refused where it does not notice what is no number; kernels are written so that
/// their results do not depend on what else it does, as long as it rounds what is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Habits {
    /// Rounds after which a loop is left without a word; `None` where it is not within 131,072.
    pub loop_cap: Option<u32>,
    /// Whether subnormal products and sums are kept.
    pub keeps_subnormals: bool,
    /// sign(1e-40).
    pub sign_of_subnormal: f32,
    /// max(NaN, 0), min(NaN, 1), clamp(NaN, 0, 1) and sign(NaN).
    pub of_nan: [f32; 4],
    /// Whether NaN ≠ NaN.
    pub nan_differs: bool,
    /// Whether a·b + c is rounded once.
    pub contracts: bool,
    /// Whether `fma` is.
    pub fuses: bool,
    /// Whether (a + b) − a became b.
    pub reassociates: bool,
    /// Whether a quotient is the nearest number.
    pub divides_exactly: bool,
    /// Whether infinity and NaN are noticed in what was just computed. No network is loaded where they are not
    /// ([`crate::Target::of`]): NaN would come out of a ReLU as zero, and nobody would hear of it.
    pub notices_nonfinite: bool,
    /// Whether a product or a sum that a kernel looks at before it goes on is rounded there. Where it is not, attacks in
    /// L2 and by momentum take other steps than on other devices, whatever the batch.
    pub rounds_looked_at: bool,
}

/// All that a device was asked, as text that a later process reads ([`Answers::recall`]). Only answers of a usual
/// device are read: where a loop is left so early that plans have to bow to it, or a subgroup has a size that no kernel
/// relies on, the device itself is asked each time. Plans' own bound on loops ([`crate::Target`]) holds whatever a text
/// says. Whether it is a text of this device is for whoever keeps it to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    seen: Vec<u32>,
    subgroup: u32,
}

impl Answers {
    /// Asks a device, or remembers what it answered.
    ///
    /// # Errors
    /// Those of the device.
    pub fn of(gpu: &Gpu) -> Result<Self> {
        Ok(Answers { seen: gpu.answers_once(|| ask(gpu))?.to_vec(), subgroup: subgroup(gpu)? })
    }

    /// Takes what the same adapter answered an earlier process of the same program, with the same driver, in the place
    /// of asking. `false`, and nothing is taken, where the device has no such subgroup.
    pub fn recall(&self, gpu: &Gpu) -> bool {
        let matches =
            |least| if [0, least].contains(&self.subgroup) { Ok(self.subgroup) } else { Err(Error::Cancelled) };
        gpu.subgroup_once(matches) == Ok(self.subgroup) && gpu.answers_once(|| Ok(self.seen.clone())).is_ok()
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seen.iter().chain([&self.subgroup]).try_for_each(|word| writeln!(f, "{word:08x}"))
    }
}

impl FromStr for Answers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |detail: &str| Error::Usage(format!("answers of an adapter: {detail}"));
        let word = |line| u32::from_str_radix(line, 16).map_err(|_| bad("no number"));
        let mut seen = text.lines().take(SEEN + 2).map(word).collect::<Result<Vec<_>>>()?;
        let subgroup = seen.pop().filter(|_| seen.len() == SEEN).ok_or_else(|| bad("too few or too many"))?;
        if Habits::read(&seen).loop_cap.is_some_and(|cap| u64::from(cap) / 2 < MAX_ROUNDS) {
            return Err(bad("a loop that is left so early is looked at each time"));
        }
        if !Habits::read(&seen).notices_nonfinite {
            return Err(bad("no network runs on such a device"));
        }
        if ![0, 8, 16, 32, 64].contains(&subgroup) {
            return Err(bad("no size of a subgroup that kernels rely on"));
        }
        Ok(Answers { seen, subgroup })
    }
}

/// The kernel that asks.
pub fn kernel() -> Kernel {
    Kernel::new("habits_check", Vec::new(), Storage::Buffer)
}

/// The kernel that shows what subgroups do that have `least` lanes or more.
pub fn subgroup_kernel(least: u32) -> Kernel {
    Kernel::new("subgroup_check", vec![("SHARE", share(least))], Storage::Buffer)
}

impl Habits {
    /// Asks a device, or remembers what it answered.
    ///
    /// # Errors
    /// Those of the device.
    pub fn of(gpu: &Gpu) -> Result<Self> {
        gpu.answers_once(|| ask(gpu)).map(Self::read)
    }

    fn read(seen: &[u32]) -> Self {
        let number = |i: usize| f32::from_bits(seen[i]);
        let mut walk = SEED;
        // The place of the answer in the row of numbers; a number that is not in it is no count at all.
        let rounds = (0..ROUNDS).position(|_| {
            let here = walk == seen[0];
            walk = step(walk);
            here
        });
        Habits {
            loop_cap: if walk == seen[0] { None } else { Some(rounds.unwrap_or(0) as u32) },
            keeps_subnormals: number(1) == TINY && number(2) == 2.0 * TINY,
            sign_of_subnormal: number(3),
            of_nan: [number(4), number(5), number(6), number(7)],
            nan_differs: seen[8] == 1,
            contracts: number(9) == FUSED,
            fuses: number(10) == FUSED,
            reassociates: number(11) == SMALL,
            divides_exactly: number(12) == DIVIDED.0 / DIVIDED.1,
            notices_nonfinite: seen[13..15] == [1, 1],
            rounds_looked_at: (number(15), number(16)) == (0.0, 0.0),
        }
    }

    /// Each by name, in words.
    pub fn list(&self) -> Vec<(&'static str, String)> {
        let words = |yes: bool, [is, is_not]: [&str; 2]| if yes { is } else { is_not }.to_string();
        let [max, min, clamp, sign] = self.of_nan;
        vec![
            ("loops", self.loop_cap.map_or("whole".into(), |n| format!("left after {n} rounds"))),
            ("subnormals", words(self.keeps_subnormals, ["kept", "flushed"])),
            ("sign(1e-40)", self.sign_of_subnormal.to_string()),
            ("max(NaN, 0)", max.to_string()),
            ("min(NaN, 1)", min.to_string()),
            ("clamp(NaN, 0, 1)", clamp.to_string()),
            ("sign(NaN)", sign.to_string()),
            ("NaN != NaN", self.nan_differs.to_string()),
            ("a * b + c", words(self.contracts, ["contracted", "rounded twice"])),
            ("fma", words(self.fuses, ["fused", "rounded twice"])),
            ("(a + b) - a", words(self.reassociates, ["reassociated", "as written"])),
            ("a / b", words(self.divides_exactly, ["the nearest number", "by the reciprocal"])),
            ("NaN, infinity", words(self.notices_nonfinite, ["noticed", "not noticed: refused"])),
            ("looked at", words(self.rounds_looked_at, ["rounded", "not rounded: other bits in L2"])),
        ]
    }
}

/// One round of the loop that is tried (xorshift).
fn step(mut n: u32) -> u32 {
    n ^= n << 13;
    n ^= n >> 17;
    n ^ (n << 5)
}

fn alone(kernel: Kernel, bindings: Vec<(&'static str, usize)>, groups: u32) -> Dispatch {
    Dispatch { layer: kernel.entry.into(), kernel, bindings, grid: Grid::PerSample(groups, 1), flops: 0 }
}

fn words(label: &str, count: usize) -> Resource {
    Resource { label: label.into(), kind: Kind::Samples, per_sample: 4 * count as u64 }
}

/// What a device is too small for, of what asks it.
fn lacks(gpu: &Gpu, dispatch: &Dispatch, resources: &[Resource]) -> Result<Option<String>> {
    let limits = gpu.limits();
    if let Some(over) = dispatch.kernel.exceeds(limits)? {
        return Ok(Some(over));
    }
    let (entry, allowed) = (dispatch.kernel.entry, limits.storage_binding.min(limits.buffer));
    let largest = resources.iter().filter_map(|r| r.bytes(1, Storage::Buffer)).max().unwrap_or(0);
    Ok((largest > allowed).then(|| format!("{entry} has a binding of {largest} bytes, {allowed} allowed")))
}

fn ask(gpu: &Gpu) -> Result<Vec<u32>> {
    let floats = [1.0, TINY, f32::NAN, FACTOR, MINUS_PRODUCT, LARGE, SMALL, DIVIDED.0, DIVIDED.1, HUGE, 0.0, FACTOR];
    let given: Vec<u32> = [SEED, ROUNDS].into_iter().chain(floats.map(f32::to_bits)).collect();
    let dispatch = alone(kernel(), vec![("given", 0), ("seen", 1)], 1);
    let resources = [words("given", given.len()), words("seen", SEEN)];
    if let Some(why) = lacks(gpu, &dispatch, &resources)? {
        return Err(Error::NoAdapter(format!("adapter {} is too small: {why}", gpu.summary().name)));
    }
    let seen = run_alone(gpu, &dispatch, &resources, 1, &[(0, bytemuck::cast_slice(&given).to_vec())], 1)?;
    Ok(bytemuck::pod_collect_to_vec(&seen[..4 * SEEN]))
}

/// The smallest subgroup of a device, where kernels can rely on its lanes (`shaders/subgroup.wgsl`): tried out once. 0
/// where it has no subgroups, or where they do something else.
///
/// # Errors
/// Those of the device.
pub fn subgroup(gpu: &Gpu) -> Result<u32> {
    const INVOCATIONS: u32 = 256;
    const WG: u32 = 64;
    gpu.subgroup_once(|least| {
        let seen = Resource { label: "subgroup check".into(), kind: Kind::Samples, per_sample: u64::from(INVOCATIONS) };
        let dispatch = alone(subgroup_kernel(least), vec![("seen", 0)], INVOCATIONS / WG);
        let resources = [seen];
        if gpu.limits().workgroup_size < WG || lacks(gpu, &dispatch, &resources)?.is_some() {
            return Ok(0);
        }
        let seen = run_alone(gpu, &dispatch, &resources, 1, &[], 0)?;
        let share = share(least);
        let sound = bytemuck::pod_collect_to_vec::<u8, [u32; 4]>(&seen).iter().zip(0..).all(|(seen, i)| {
            let [lane, wrong, left, right] = *seen;
            let group = i & !7;
            lane % share == i % share
                && wrong == 0
                && left == group | (i.wrapping_sub(1) & 7)
                && right == group | ((i + 1) & 7)
        });
        Ok(if sound { least } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(n: u32) -> Vec<u32> {
        let rest = [TINY, 2.0 * TINY, 1.0, 0.0, 1.0, 0.0, 0.0].map(f32::to_bits);
        let last = [0.0, FUSED, 0.0, DIVIDED.0 / DIVIDED.1].map(f32::to_bits);
        [n].into_iter().chain(rest).chain([1]).chain(last).chain([1, 1, 0, 0]).collect()
    }

    #[test]
    fn a_loop_that_is_left_early_is_counted() {
        let mut walk = SEED;
        for rounds in 0..ROUNDS {
            if [0, 1, 65_535].contains(&rounds) {
                assert_eq!(Habits::read(&answers(walk)).loop_cap, Some(rounds));
            }
            walk = step(walk);
        }
        assert_eq!(Habits::read(&answers(walk)).loop_cap, None);
        assert_eq!(Habits::read(&answers(0)).loop_cap, Some(0), "no number of the row");
    }

    #[test]
    fn answers_are_read_as_they_were_written_and_no_others() {
        let mut whole = SEED;
        (0..ROUNDS).for_each(|_| whole = step(whole));
        let sound = Answers { seen: answers(whole), subgroup: 8 };
        assert_eq!(sound.to_string().parse(), Ok(sound.clone()));
        let refused = |answers: &Answers| assert!(answers.to_string().parse::<Answers>().is_err(), "{answers:?}");
        // No loop is left so late that a number of rounds would be one that plans have not.
        let mut walk = SEED;
        for rounds in 0..ROUNDS {
            if [0, 1, 20, 63_999, 64_000, 65_535].contains(&rounds) {
                let kept = Answers { seen: answers(walk), ..sound.clone() };
                assert_eq!(kept.to_string().parse::<Answers>().is_ok(), rounds >= 64_000, "{rounds}");
            }
            walk = step(walk);
        }
        refused(&Answers { seen: answers(0), ..sound.clone() });
        for subgroup in [1, 4, 7, 12, 128, u32::MAX] {
            refused(&Answers { subgroup, ..sound.clone() });
        }
        for unseen in [13, 14] {
            let mut blind = sound.clone();
            blind.seen[unseen] = 0;
            refused(&blind);
        }
        refused(&Answers { seen: sound.seen[1..].to_vec(), subgroup: 8 });
        refused(&Answers { seen: [&sound.seen[..], &[8]].concat(), subgroup: 8 });
    }

    #[test]
    fn what_is_asked_can_be_told_apart() {
        assert_eq!(FACTOR * FACTOR + MINUS_PRODUCT, 0.0);
        assert_eq!(FACTOR.mul_add(FACTOR, MINUS_PRODUCT), FUSED);
        assert_eq!((LARGE + SMALL) - LARGE, 0.0);
        assert_ne!(DIVIDED.0 * (1.0 / DIVIDED.1), DIVIDED.0 / DIVIDED.1);
        let habits = Habits::read(&answers(0));
        assert!(habits.keeps_subnormals && habits.nan_differs && habits.fuses && habits.divides_exactly);
        assert!(!habits.contracts && !habits.reassociates);
        assert!((HUGE * HUGE).is_infinite() && habits.notices_nonfinite);
        for flushed in [1, 2] {
            let mut seen = answers(0);
            seen[flushed] = 0;
            assert!(!Habits::read(&seen).keeps_subnormals, "a product or a sum is flushed");
        }
        for unseen in [13, 14] {
            let mut seen = answers(0);
            seen[unseen] = 0;
            assert!(!Habits::read(&seen).notices_nonfinite);
        }
        for (unrounded, value) in [(15, FUSED), (16, SMALL)] {
            let mut seen = answers(0);
            assert!(Habits::read(&seen).rounds_looked_at);
            seen[unrounded] = value.to_bits();
            assert!(!Habits::read(&seen).rounds_looked_at);
        }
    }
}
