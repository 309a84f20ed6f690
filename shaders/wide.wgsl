// Texels stored two words at a time. llvmpipe goes through the lanes of a store one by one, and through the words of
// each: a texel takes it 24.7 ns as four words, 20.9 as two u64, 18.2 where two texels are one store (`NAME_put_pair`;
// benches/NOTES.md).
fn wide(words: vec2<u32>) -> u64 {
    return u64(words.x) | (u64(words.y) << 32u);
}
