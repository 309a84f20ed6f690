// Texels stored two words at a time. llvmpipe goes through the lanes of a store one by one, and through the words of each: half as
// many take a sixth off. Two texels in one store (`NAME_put_pair`) share the rest of it, an eighth of what is left.
fn wide(words: vec2<u32>) -> u64 {
    return u64(words.x) | (u64(words.y) << 32u);
}
