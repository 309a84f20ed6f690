//! Data are read piece by piece: what it costs to open a set and to read a range of it does not depend on how large it is.
//! A process of its own, for the system counts memory by process; Linux, for it says how much there was at most.

#![cfg(all(feature = "cli", target_os = "linux"))]

use signstep::data;
use std::fs::{self, File};
use std::io::Write;

/// The most memory that this process has ever held, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn header(descr: &str, shape: &str) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [&b"\x93NUMPY\x01\0"[..], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn a_set_of_256_mib_is_opened_and_read_in_a_few() {
    const N: u64 = 1 << 16;
    let folder = tempfile::tempdir().unwrap();
    let images = header("<f4", &format!("({N}, 1, 32, 32)"));
    let mut file = File::create(folder.path().join("images.npy")).unwrap();
    file.write_all(&images).unwrap();
    // Zeros that take no room on disk.
    file.set_len(images.len() as u64 + N * 4096).unwrap();
    let labels = [header("|u1", &format!("({N},)")), vec![3; N as usize]].concat();
    fs::write(folder.path().join("labels.npy"), labels).unwrap();

    let before = peak();
    let mut set = data::open(folder.path(), None).unwrap();
    assert_eq!((set.len(), set.labels[N as usize - 1]), (N as usize, 3));
    for start in [0, 30_000, 65_000] {
        assert_eq!(set.images(start..start + 500).unwrap(), vec![0.0; 500 * 1024]);
    }
    // 0.5 MiB of labels, 2 MiB of images, twice here, and blocks of 1 MiB.
    let grown = (peak() - before) >> 20;
    assert!(grown < 16, "{grown} MiB");
}
