//! One file, read twice: once from start to end, when it is hashed and everything in it is checked, and then by place,
//! piece after piece. Never mapped: a file that shrinks underneath would be undefined behaviour.

use crate::error::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

#[derive(Debug)]
pub(super) struct Stream {
    /// The file, for messages.
    pub place: String,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Plain {
        file: Box<dyn Seekable>,
        length: u64,
    },
    /// `position` counts unpacked bytes.
    Gzip {
        file: Arc<File>,
        decoder: Box<MultiGzDecoder<BufReader<Arc<File>>>>,
        position: u64,
    },
}

trait Seekable: Read + Seek + Debug + Send {}
impl<T: Read + Seek + Debug + Send> Seekable for T {}

impl Stream {
    /// Opens a regular file. The handle is kept: one that is replaced later is not seen.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (place, file, length) = regular(path)?;
        Ok(Stream { place, bytes: Bytes::Plain { file: Box::new(file), length } })
    }

    /// Opens a file that may be gzip, which its first bytes tell, not its name: browsers unpack and keep the name.
    pub(super) fn open_gzip(path: &Path) -> Result<Self> {
        let (place, mut file, length) = regular(path)?;
        let mut first = Vec::new();
        (&file).take(2).read_to_end(&mut first).and_then(|_| file.rewind()).map_err(|e| fail(&place, &e))?;
        if first != GZIP {
            return Ok(Stream { place, bytes: Bytes::Plain { file: Box::new(file), length } });
        }
        let file = Arc::new(file);
        let decoder = Box::new(MultiGzDecoder::new(BufReader::new(file.clone())));
        Ok(Stream { place, bytes: Bytes::Gzip { file, decoder, position: 0 } })
    }

    /// Bytes inside the program.
    pub(super) fn memory(place: &str, bytes: &'static [u8]) -> Self {
        let (file, length) = (Box::new(Cursor::new(bytes)), bytes.len() as u64);
        Stream { place: place.into(), bytes: Bytes::Plain { file, length } }
    }

    /// Length of the file, where that is known without unpacking it.
    pub(super) fn length(&self) -> Option<u64> {
        match &self.bytes {
            Bytes::Plain { length, .. } => Some(*length),
            Bytes::Gzip { .. } => None,
        }
    }

    /// Lets `check` read the file from its start to its end, and adds its bytes, as they lie on disk, to `hash`.
    pub(super) fn survey<T>(
        &mut self,
        hash: &mut Sha256,
        check: impl FnOnce(&mut Survey<'_>) -> Result<T>,
    ) -> Result<T> {
        let place = self.place.as_str();
        match &mut self.bytes {
            Bytes::Plain { file, .. } => {
                file.rewind().map_err(|e| fail(place, &e))?;
                Survey { place, reader: &mut Hashing { file, hash } }.whole(check)
            }
            Bytes::Gzip { file, position, .. } => {
                (&**file).rewind().map_err(|e| fail(place, &e))?;
                // The decoder for later shares the handle, and starts again.
                *position = u64::MAX;
                let raw = BufReader::with_capacity(1 << 16, Hashing { file: &**file, hash });
                Survey { place, reader: &mut MultiGzDecoder::new(raw) }.whole(check)
            }
        }
    }

    /// Fills `buffer` with what lies at `position`. Gzip is unpacked from the start again when that lies behind.
    pub(super) fn read_at(&mut self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let read = match &mut self.bytes {
            Bytes::Plain { file, .. } => file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(buffer)),
            Bytes::Gzip { file, decoder, position } => forward(file, decoder, position, at, buffer),
        };
        read.map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => Error::data(&self.place, "ends early: it has changed since it was opened"),
            _ => fail(&self.place, &e),
        })
    }
}

fn regular(path: &Path) -> Result<(String, File, u64)> {
    let place = path.display().to_string();
    // Asked before it is opened: opening a pipe waits for whoever writes to it.
    let metadata = fs::metadata(path).map_err(|e| fail(&place, &e))?;
    if !metadata.is_file() {
        return Err(Error::data(place, "not a regular file"));
    }
    let file = File::open(path).map_err(|e| fail(&place, &e))?;
    Ok((place, file, metadata.len()))
}

fn forward(
    file: &Arc<File>,
    decoder: &mut MultiGzDecoder<BufReader<Arc<File>>>,
    position: &mut u64,
    at: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    if at < *position {
        (&**file).rewind()?;
        *decoder = MultiGzDecoder::new(BufReader::new(file.clone()));
        *position = 0;
    }
    // Until it has succeeded nothing is known about where the decoder stands.
    let gap = at - std::mem::replace(position, u64::MAX);
    if io::copy(&mut decoder.by_ref().take(gap), &mut io::sink())? < gap {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    decoder.read_exact(buffer)?;
    *position = at + buffer.len() as u64;
    Ok(())
}

fn fail(place: &str, e: &io::Error) -> Error {
    Error::data(place, e.to_string())
}

/// Passes on what it reads, and hashes it.
struct Hashing<'a, R> {
    file: R,
    hash: &'a mut Sha256,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// A file on its one way from start to end.
pub(super) struct Survey<'a> {
    place: &'a str,
    reader: &'a mut dyn Read,
}

impl Survey<'_> {
    fn whole<T>(mut self, check: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let found = check(&mut self)?;
        // For gzip this is also what reads the last checksum, and refuses what is no gzip behind it.
        if self.skip(1)? > 0 {
            return Err(Error::data(self.place, "longer than its header says"));
        }
        Ok(found)
    }

    /// The next `n` bytes, or those that are left. Memory grows with what is there, not with what is asked for.
    pub(super) fn next(&mut self, n: usize, block: &mut Vec<u8>) -> Result<()> {
        block.clear();
        let read = (&mut *self.reader).take(n as u64).read_to_end(block);
        read.map(|_| ()).map_err(|e| fail(self.place, &e))
    }

    /// The next `N` bytes of a header.
    pub(super) fn header<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut block = Vec::new();
        self.next(N, &mut block)?;
        <[u8; N]>::try_from(block.as_slice())
            .map_err(|_| Error::data(self.place, if block.is_empty() { "empty" } else { "truncated in its header" }))
    }

    /// Passes over `n` bytes, or those that are left; gives their number.
    pub(super) fn skip(&mut self, n: u64) -> Result<u64> {
        io::copy(&mut (&mut *self.reader).take(n), &mut io::sink()).map_err(|e| fail(self.place, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Reads `length` bytes and the end.
    fn survey(stream: &mut Stream, length: usize) -> Result<(Vec<u8>, Sha256)> {
        let (mut hash, mut block) = (Sha256::new(), Vec::new());
        stream.survey(&mut hash, |survey| survey.next(length, &mut block))?;
        Ok((block, hash))
    }

    #[test]
    fn gzip_in_several_members_is_read_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let file = [packed(&bytes[..30_000]), packed(&[]), packed(&bytes[30_000..])].concat();
        fs::write(&path, &file).unwrap();
        let mut stream = Stream::open_gzip(&path).unwrap();
        assert_eq!(stream.length(), None);
        let (read, hash) = survey(&mut stream, bytes.len()).unwrap();
        assert!(read == bytes);
        assert_eq!(hash.finalize(), Sha256::digest(&file));
        for at in [0, 10, 29_990, 70_000, 5, 99_980, 99_980, 0] {
            let mut part = [0; 20];
            stream.read_at(at as u64, &mut part).unwrap();
            assert_eq!(part, bytes[at..at + 20], "{at}");
        }
        let past = stream.read_at(99_990, &mut [0; 20]).unwrap_err();
        assert!(past.to_string().contains("ends early"), "{past}");
        stream.read_at(3, &mut [0; 1]).unwrap();
    }

    #[test]
    fn gzip_that_is_cut_spoilt_or_followed_by_anything_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gz");
        let bytes: Vec<u8> = (0..300_u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
        let file = packed(&bytes);
        let read = |file: &[u8]| {
            fs::write(&path, file).unwrap();
            Stream::open_gzip(&path).and_then(|mut stream| survey(&mut stream, 300)).map(|found| found.0)
        };
        assert_eq!(read(&file).unwrap(), bytes);
        for end in 2..file.len() {
            assert_eq!(read(&file[..end]).unwrap_err().exit_code(), 3, "cut at {end}");
        }
        let mut spoilt = file.clone();
        let checksum = file.len() - 8;
        spoilt[checksum] ^= 1;
        assert_eq!(read(&spoilt).unwrap_err().exit_code(), 3);
        for tail in [&b"rest"[..], &[0], &[0x1f, 0x8b, 8]] {
            assert_eq!(read(&[&file, tail].concat()).unwrap_err().exit_code(), 3, "{tail:?}");
        }
        assert!(read(&[file, packed(&[1])].concat()).unwrap_err().to_string().contains("longer"));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, [7; 100]).unwrap();
        let mut stream = Stream::open(&path).unwrap();
        assert_eq!((stream.length(), survey(&mut stream, 100).unwrap().0), (Some(100), vec![7; 100]));
        File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
        stream.read_at(40, &mut [0; 10]).unwrap();
        let error = stream.read_at(41, &mut [0; 10]).unwrap_err();
        assert!(error.to_string().contains("has changed") && error.exit_code() == 3, "{error}");
        assert!(Stream::open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
        assert_eq!(Stream::open(&folder.path().join("missing")).unwrap_err().exit_code(), 3);
    }
}
