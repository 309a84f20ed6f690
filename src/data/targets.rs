//! Target files: one integer a line.

use super::read;
use crate::error::{Error, Result};
use std::path::Path;

/// Longest line, in bytes.
const MAX_LINE: u64 = 64;

/// Reads one target class a line for `n` samples; −1 stands for none. A byte order mark at the beginning and empty
/// lines at the end are no matter.
///
/// # Errors
/// [`Error::Data`] naming the line: no integer, not below `classes`, or not `n` lines.
pub fn read_targets(path: &Path, n: usize, classes: usize) -> Result<Vec<i64>> {
    let place = path.display().to_string();
    // A line that is any target is no longer than this.
    let most = (n as u64 + 1).saturating_mul(MAX_LINE);
    let text = String::from_utf8(read(path, most)?).map_err(|_| Error::data(&place, "not UTF-8 text"))?;
    let (mut targets, mut count) = (Vec::new(), 0);
    for (i, line) in text.trim_start_matches('\u{feff}').trim_end().lines().enumerate() {
        let fail = |detail: String| Err(Error::data(format!("{place}: line {}", i + 1), detail));
        match line.trim().parse::<i64>() {
            // More than there are samples are counted, not kept.
            Ok(target) if target >= -1 && target < classes as i64 => {
                count += 1;
                if count <= n {
                    targets.push(target);
                }
            }
            Ok(target) => return fail(format!("target {target}; -1 to {} are expected", classes as i64 - 1)),
            Err(_) => return fail("not an integer".into()),
        }
    }
    if count != n {
        return Err(Error::data(place, format!("{count} targets for {n} samples")));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_checked_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets.txt");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_targets(&path, 3, 10).map_err(|e| e.to_string())
        };
        assert_eq!(read("9\n-1\r\n 0").unwrap(), [9, -1, 0]);
        assert_eq!(read("9\n-1\n0\n").unwrap(), [9, -1, 0]);
        assert_eq!(read("\u{feff}9\n-1\n0\n").unwrap(), [9, -1, 0]);
        assert_eq!(read("9\r\n-1\r\n0\r\n\r\n \n").unwrap(), [9, -1, 0]);
        assert!(read("\n9\n-1\n0").unwrap_err().contains("line 1: not an integer"));
        assert!(read("9\n\u{feff}-1\n0").unwrap_err().contains("line 2: not an integer"));
        assert!(read("1\n2\n").unwrap_err().contains("2 targets for 3 samples"));
        assert!(read("").unwrap_err().contains("0 targets"));
        assert!(read("1\n10\n2\n").unwrap_err().contains("targets.txt: line 2: target 10"));
        assert!(read("1\n-2\n2\n").unwrap_err().contains("line 2"));
        assert!(read("1\n\n2\n3").unwrap_err().contains("line 2: not an integer"));
        assert!(read("1\n2\n3.0").unwrap_err().contains("line 3"));
    }
}
