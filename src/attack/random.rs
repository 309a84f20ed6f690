//! Random numbers that belong to a sample, never to its place in a batch: Philox4x32-10 (Salmon et al. 2011,
//! "Parallel random numbers: as easy as 1, 2, 3").

/// What a random number is for; each use draws from a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Random start inside the ball.
    Start = 0,
    /// Random target.
    Target = 1,
    /// Places and signs of [`super::Rule::Square`].
    Square = 2,
    /// Weights and images that the study of minibatches draws (`study`, feature `cli`).
    Study = 3,
}

/// Four random words for (seed, counter). The counter is (sample id, restart, element / 4, stream).
pub fn philox(seed: u64, counter: [u32; 4]) -> [u32; 4] {
    let mut key = [seed as u32, (seed >> 32) as u32];
    let mut c = counter;
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// A class uniform over the `classes` that are not `label`, for the sample `id`.
pub(crate) fn random_target(seed: u64, id: u64, label: u32, classes: u32) -> u32 {
    // A data set has fewer than 2^32 samples, and a sample one target: words 1 and 2 stay zero.
    let word = philox(seed, [id as u32, 0, 0, Stream::Target as u32])[0];
    let t = ((u64::from(word) * u64::from(classes - 1)) >> 32) as u32;
    t + u32::from(t >= label)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox(0, [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox(0x299f31d0_a4093822, [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn random_targets_are_never_the_label_and_reach_every_other_class() {
        for label in 0..10 {
            let mut seen = [0_u32; 10];
            for id in 0..9000 {
                seen[random_target(1, id, label, 10) as usize] += 1;
            }
            for (class, &count) in seen.iter().enumerate() {
                if class as u32 == label {
                    assert_eq!(count, 0);
                } else {
                    assert!(
                        (850..1150).contains(&count),
                        "class {class} drawn {count} times of 9000 for label {label}"
                    );
                }
            }
        }
    }
}
