//! What `tests/mutations.rs` does in thousands of mutations, for as long as one likes. The readers, their sound files and the
//! mutations are the same: `tests/common/hostile.rs`.

#[path = "../../tests/common/counting.rs"]
pub mod counting;
#[path = "../../tests/common/hostile.rs"]
pub mod hostile;

use hostile::Target;
use std::cell::RefCell;
use std::path::Path;

/// A folder with a target's sound files, where files are fastest.
pub fn folder(target: &Target) -> (tempfile::TempDir, Vec<u8>) {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let sound = target.set(folder.path());
    (folder, sound)
}

/// Gives `bytes` to the reader of that name.
pub fn read(name: &str, bytes: &[u8]) {
    thread_local! {
        static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|kept| {
        let target = Target::named(name);
        let folder = kept.get_or_insert_with(|| folder(target).0);
        target.run(folder.path(), bytes);
    });
}
