// Texels stored two words at a time. llvmpipe goes through the lanes of a store one by one, and through the words of each: half as
// many take a sixth off.
fn wide(words: vec2<u32>) -> u64 {
    return u64(words.x) | (u64(words.y) << 32u);
}
