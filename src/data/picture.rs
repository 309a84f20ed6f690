//! One PNG or JPEG in memory: what its header says, and its pixels. What 8-bit grey and RGB cannot hold is refused, and
//! so is a picture that is cut off, which decoders like to complete with grey. JPEG has no checksum: that data are
//! spoilt or missing inside is noticed only where they are no longer JPEG.
//!
//! JPEG leaves its decoders some freedom: on 40 images of CIFAR-10 in six flavours (grey; colour in full, half and
//! quarter resolution; progressive; restart markers) these pixels lie within 4/255 of Pillow's, 0.33/255 on average.

use super::records::image_dims;
use crate::model::Dims;
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

type Parsed<T> = std::result::Result<T, String>;

/// Shape of a picture, from its header: one channel or three, `most` values. That it has an end is checked too, not
/// what is between.
pub(super) fn header(bytes: &[u8], most: u64) -> Parsed<Dims> {
    match kind(bytes)? {
        Kind::Png => open_png(bytes, most).map(|(_, dims)| dims),
        Kind::Jpeg => open_jpeg(bytes, most).map(|(_, dims)| dims),
    }
}

/// Shape and bytes of a picture, row by row, the channels of a pixel side by side.
pub(super) fn decode(bytes: &[u8], most: u64) -> Parsed<(Dims, Vec<u8>)> {
    match kind(bytes)? {
        Kind::Png => {
            let (mut reader, dims) = open_png(bytes, most)?;
            if reader.output_buffer_size() != Some(dims.len()) {
                return Err("does not decode to what its header says".into());
            }
            let mut pixels = vec![0; dims.len()];
            reader.next_frame(&mut pixels).and_then(|_| reader.finish()).map_err(|e| format!("broken PNG: {e}"))?;
            Ok((dims, pixels))
        }
        Kind::Jpeg => {
            let (mut decoder, dims) = open_jpeg(bytes, most)?;
            let pixels = decoder.decode().map_err(|e| format!("broken JPEG: {e:?}"))?;
            if pixels.len() != dims.len() {
                return Err("does not decode to what its header says".into());
            }
            Ok((dims, pixels))
        }
    }
}

enum Kind {
    Png,
    Jpeg,
}

/// Told from the first bytes: extensions of pictures are often wrong.
fn kind(bytes: &[u8]) -> Parsed<Kind> {
    match bytes {
        [] => Err("empty file".into()),
        [0x89, b'P', b'N', b'G', ..] => Ok(Kind::Png),
        [0xff, 0xd8, ..] => Ok(Kind::Jpeg),
        _ => Err("neither PNG nor JPEG inside".into()),
    }
}

fn open_png(bytes: &[u8], most: u64) -> Parsed<(png::Reader<Cursor<&[u8]>>, Dims)> {
    let broken = |e: png::DecodingError| format!("broken PNG: {e}");
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    // Palettes become RGB, and fewer than 8 bits of grey are scaled.
    decoder.set_transformations(png::Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(broken)?;
    let (w, h) = (u64::from(info.width), u64::from(info.height));
    let channels = match (info.color_type, info.bit_depth) {
        (_, png::BitDepth::Sixteen) => return Err("16 bits a channel; convert it to 8".into()),
        (png::ColorType::GrayscaleAlpha | png::ColorType::Rgba, _) => return Err(ALPHA.into()),
        (png::ColorType::Grayscale, _) => 1,
        (png::ColorType::Rgb | png::ColorType::Indexed, _) => 3,
    };
    // Before any memory is taken for its rows.
    let dims = image_dims(channels, h, w, most)?;
    let reader = decoder.read_info().map_err(broken)?;
    if reader.info().trns.is_some() {
        return Err(ALPHA.into());
    }
    if reader.info().animation_control.is_some() {
        return Err("animated; save the one frame that is meant".into());
    }
    if last(bytes, b"\0\0\0\0IEND").is_none() {
        return Err("broken PNG: cut off".into());
    }
    Ok((reader, dims))
}

const ALPHA: &str = "has transparency (alpha); flatten it onto the background that is meant";

fn open_jpeg(bytes: &[u8], most: u64) -> Parsed<(JpegDecoder<ZCursor<&[u8]>>, Dims)> {
    // Strict: otherwise what is found to be spoilt is completed with grey.
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(1 << 16).set_max_height(1 << 16);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| format!("broken JPEG: {e:?}"))?;
    let (channels, output) = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => (1, ColorSpace::Luma),
        Some(ColorSpace::YCbCr | ColorSpace::RGB) => (3, ColorSpace::RGB),
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => return Err("CMYK; convert it to RGB".into()),
        other => return Err(format!("colours of kind {other:?}; grey and RGB are read")),
    };
    // Inside compressed data a marker cannot occur, so the last scan has ended where an end follows its start.
    if last(bytes, &[0xff, 0xd9]) < last(bytes, &[0xff, 0xda]) {
        return Err("broken JPEG: cut off".into());
    }
    decoder.set_options(options.jpeg_set_out_colorspace(output));
    let (w, h) = decoder.dimensions().unwrap_or_default();
    Ok((decoder, image_dims(channels, h as u64, w as u64, most)?))
}

/// Where something occurs last.
fn last(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).rposition(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::super::records::MAX_VALUES;
    use super::*;
    use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn header(bytes: &[u8]) -> Parsed<Dims> {
        super::header(bytes, MAX_VALUES)
    }

    fn decode(bytes: &[u8]) -> Parsed<(Dims, Vec<u8>)> {
        super::decode(bytes, MAX_VALUES)
    }

    /// 20×12, smooth, as photographs are.
    fn smooth() -> RgbImage {
        RgbImage::from_fn(20, 12, |x, y| image::Rgb([(x * 12) as u8, (y * 20) as u8, (255 - x * 5 - y * 10) as u8]))
    }

    fn grey() -> GrayImage {
        GrayImage::from_fn(20, 12, |x, y| image::Luma([(x * 7 + y * 9) as u8]))
    }

    #[test]
    fn png_gives_back_every_byte() {
        let bytes = encoded(smooth(), ImageFormat::Png);
        assert_eq!(header(&bytes).unwrap(), Dims::new(3, 12, 20));
        assert_eq!(decode(&bytes).unwrap(), (Dims::new(3, 12, 20), smooth().into_raw()));
        let bytes = encoded(grey(), ImageFormat::Png);
        assert_eq!(decode(&bytes).unwrap(), (Dims::new(1, 12, 20), grey().into_raw()));
    }

    #[test]
    fn palettes_and_few_bits_are_expanded() {
        let write = |color, depth, data: &[u8], prepare: &dyn Fn(&mut png::Encoder<'_, &mut Vec<u8>>)| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 4, 1);
            encoder.set_color(color);
            encoder.set_depth(depth);
            prepare(&mut encoder);
            encoder.write_header().unwrap().write_image_data(data).unwrap();
            bytes
        };
        use png::{BitDepth, ColorType};
        let bits = write(ColorType::Grayscale, BitDepth::Two, &[0b00_01_10_11], &|_| {});
        assert_eq!(decode(&bits).unwrap(), (Dims::new(1, 1, 4), vec![0, 85, 170, 255]));
        let colours: &[u8] = &[9, 8, 7, 1, 2, 3];
        let palette = write(ColorType::Indexed, BitDepth::One, &[0b0110_0000], &|e| e.set_palette(colours));
        assert_eq!(decode(&palette).unwrap(), (Dims::new(3, 1, 4), vec![9, 8, 7, 1, 2, 3, 1, 2, 3, 9, 8, 7]));

        let transparent = write(ColorType::Indexed, BitDepth::One, &[0], &|e| {
            e.set_palette(colours);
            e.set_trns(&[0_u8, 255][..]);
        });
        assert!(header(&transparent).unwrap_err().contains("alpha"));
        let animated = write(ColorType::Grayscale, BitDepth::Eight, &[0; 4], &|e| e.set_animated(1, 0).unwrap());
        assert!(header(&animated).unwrap_err().contains("animated"));
        let deep = write(ColorType::Grayscale, BitDepth::Sixteen, &[0; 8], &|_| {});
        assert!(header(&deep).unwrap_err().contains("16 bits"));
        let alpha = write(ColorType::Rgba, BitDepth::Eight, &[0; 16], &|_| {});
        assert!(header(&alpha).unwrap_err().contains("alpha"));
    }

    /// At quality 95 the largest quantiser is 12: a coefficient is off by 6 at most, and on a smooth picture few are
    /// touched at all. Colour at half the resolution adds what a neighbour differs by: 12 at most here, over two.
    #[test]
    fn jpeg_comes_close() {
        let mut bytes = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(&smooth()).unwrap();
        assert_eq!(header(&bytes).unwrap(), Dims::new(3, 12, 20));
        let (dims, pixels) = decode(&bytes).unwrap();
        assert_eq!((dims, pixels.len()), (Dims::new(3, 12, 20), 720));
        let distances: Vec<u8> = pixels.iter().zip(smooth().as_raw()).map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = distances.iter().map(|d| f64::from(*d)).sum::<f64>() / 720.0;
        assert!(*distances.iter().max().unwrap() <= 12 && mean < 3.0, "mean {mean}: {distances:?}");

        bytes.clear();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 100).encode_image(&grey()).unwrap();
        let (dims, pixels) = decode(&bytes).unwrap();
        assert_eq!(dims, Dims::new(1, 12, 20));
        // Every coefficient is rounded by half at most, and so is every pixel, twice.
        assert!(pixels.iter().zip(grey().as_raw()).all(|(a, b)| a.abs_diff(*b) <= 3));
    }

    #[test]
    fn pictures_cut_anywhere_are_refused() {
        let mut jpeg = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 75).encode_image(&smooth()).unwrap();
        for bytes in [encoded(smooth(), ImageFormat::Png), encoded(grey(), ImageFormat::Png), jpeg] {
            assert!(decode(&bytes).is_ok());
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "cut at {end} of {}", bytes.len());
                // A checksum may be missing from what is only looked at.
                assert!(end + 4 >= bytes.len() || header(&bytes[..end]).is_err(), "cut at {end} of {}", bytes.len());
            }
        }
        assert!(header(b"GIF89a").unwrap_err().contains("neither PNG nor JPEG"));
    }

    #[test]
    fn a_spoilt_byte_is_never_worse_than_an_error() {
        let mut jpeg = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 50).encode_image(&smooth()).unwrap();
        let mut completed = 0;
        for (bytes, no_checksums) in [(encoded(smooth(), ImageFormat::Png), false), (jpeg, true)] {
            for at in 0..bytes.len() - 2 {
                for spoil in [1, 0x10, 0x80, 0xff] {
                    let mut bytes = bytes.clone();
                    bytes[at] ^= spoil;
                    // Sizes may be any that a header can say, but no larger than is read.
                    if !header(&bytes).is_ok_and(|dims| dims.len() < 1 << 20) {
                        continue;
                    }
                    match decode(&bytes) {
                        Ok((dims, pixels)) => assert_eq!(pixels.len(), dims.len()),
                        Err(_) => completed += usize::from(no_checksums && image::load_from_memory(&bytes).is_ok()),
                    }
                }
            }
        }
        // What a lenient decoder makes something of.
        assert!(completed > 0);
    }

    #[test]
    fn a_header_that_lies_allocates_nothing() {
        let mut bytes = encoded(grey(), ImageFormat::Png);
        bytes[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        let mut checksum = flate2::Crc::new();
        checksum.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
        assert!(header(&bytes).unwrap_err().contains("at most"), "{:?}", header(&bytes));
    }
}
