//! A layer of Mesa's kept from printing an error where nothing is wrong.

/// Mesa's layer that chooses between devices looks for a display, and prints an error to standard error where none can
/// be. We choose ourselves: so the program starts itself again without that layer. Where that fails it runs as it is.
#[cfg(all(unix, not(target_os = "macos")))]
pub(super) fn hush() {
    use std::env::{args_os, current_exe, var_os};
    use std::os::unix::process::CommandExt;
    const SWITCH: &str = "NODEVICE_SELECT";
    let noisy = var_os("XDG_RUNTIME_DIR").is_none() && var_os(SWITCH).is_none();
    if let (true, Ok(program)) = (noisy, current_exe()) {
        // Only returns when it fails.
        let _ = std::process::Command::new(program).args(args_os().skip(1)).env(SWITCH, "1").exec();
    }
}

#[cfg(not(all(unix, not(target_os = "macos"))))]
pub(super) fn hush() {}
