//! Results stay apart from what they are made of: an output folder that would discard an input, or become part of the
//! data, is refused before anything is opened for writing.

use super::images::DataArgs;
use super::network::NetworkArgs;
use crate::error::{Error, Result};
use std::path::{Component, Path, PathBuf};

/// A path that is read, with what it was asked for by: `--data`.
pub(super) type Input<'a> = (&'static str, &'a Path);

const WAY_OUT: &str = "choose another folder with --out";

/// What most commands read, as far as files are named.
pub(super) fn inputs<'a>(network: &'a NetworkArgs, data: &'a DataArgs) -> Vec<Input<'a>> {
    let named = [("--model", &network.model), ("--arch", &network.arch), ("--data", &data.data)];
    named.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))).collect()
}

/// Refuses a folder `out`, in which the command may write and discard what has one of `names`, where an input is among
/// these, or where it lies in the folder of the data; and what can be no folder.
///
/// # Errors
/// [`Error::Usage`] naming both; [`Error::Output`] naming what is in the way.
pub(super) fn check(out: &Path, names: &[&str], inputs: &[Input<'_>]) -> Result<()> {
    let there = out.ancestors().find(|path| path.symlink_metadata().is_ok());
    if let Some(path) = there.filter(|path| !path.is_dir()) {
        let detail = format!("{} is a file, or a link that leads nowhere, and no folder", path.display());
        return Err(Error::Output { place: format!("--out {}", out.display()), detail });
    }
    let folder = place(out);
    for (flag, path) in inputs {
        let (input, shown) = (place(path), path.display());
        let out = out.display();
        // Read again when the run is gone on with, the folder would hold what is no data.
        if *flag == "--data" && path.is_dir() && folder.starts_with(&input) {
            let how = if folder == input { "is" } else { "lies in" };
            return Err(Error::Usage(format!(
                "--out {out} {how} the folder of {flag} {shown}, where results would be taken for data: {WAY_OUT}"
            )));
        }
        // What is found under the name may be a link: it goes when results take its place, and with it the input's
        // path.
        let is_in = |name: &&&str| input.starts_with(folder.join(name)) || input.starts_with(place(&folder.join(name)));
        if let Some(name) = names.iter().find(is_in) {
            return Err(Error::Usage(format!(
                "{flag} {shown} is what --out {out} has its own {name} for, which the run replaces: {WAY_OUT}"
            )));
        }
    }
    Ok(())
}

/// Whether two paths lead to one place, be it there or not.
pub(super) fn same(a: &Path, b: &Path) -> bool {
    place(a) == place(b)
}

/// Where a path leads: links are followed as far as there is something, and what is not there yet is appended.
fn place(path: &Path) -> PathBuf {
    let mut place = if path.is_absolute() { PathBuf::new() } else { std::env::current_dir().unwrap_or_default() };
    place = place.canonicalize().unwrap_or(place);
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(place.pop()),
            part => {
                place.push(part);
                place = place.canonicalize().unwrap_or(place);
            }
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_that_holds_an_input_under_its_own_names_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("run/images")).unwrap();
        for name in ["run/images/0.png", "run/other.bin", "run/report.json"] {
            fs::write(at(name), b"x").unwrap();
        }
        let refused = |out: &str, flag: &'static str, input: &str| {
            let result = check(&at(out), &["report.json", "images"], &[(flag, &at(input))]);
            result.map_err(|e| (e.exit_code(), e.to_string())).err()
        };
        for (out, flag, input) in [
            ("run", "--data", "run/images"),
            ("run", "--model", "run/images/0.png"),
            ("run", "--targets", "run/report.json"),
            ("run/new/..", "--data", "run/./images"),
            ("run", "--data", "run"),
            ("run/below/new", "--data", "run"),
            ("run/images/new", "--data", "run/images"),
        ] {
            let (code, said) = refused(out, flag, input).unwrap_or_else(|| panic!("{out} {flag} {input}"));
            assert!(code == 2 && said.contains(flag) && said.contains(WAY_OUT), "{said}");
        }
        for (out, flag, input) in [
            ("run", "--data", "run/other.bin"),
            ("run", "--data", "run/images-of-another"),
            ("run", "--targets", "random"),
            ("run/images-too", "--data", "run/images"),
            ("other", "--data", "run"),
            ("run/below", "--model", "run/other.bin"),
        ] {
            assert_eq!(refused(out, flag, input), None, "{out} {flag} {input}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("run/images")).unwrap();
        fs::create_dir(at("elsewhere")).unwrap();
        std::os::unix::fs::symlink(at("run"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("run/sheet.png")).unwrap();
        let check = |out: &str, input: &str| check(&at(out), &["images", "sheet.png"], &[("--data", &at(input))]);
        assert!(check("link", "run/images").is_err() && check("run", "link/images").is_err());
        assert!(check("link/new", "run").is_err());
        // The link would go, and the data could not be found by it.
        assert!(check("run", "run/sheet.png").is_err());
        assert!(same(&at("link/images"), &at("run/images")) && !same(&at("link/a"), &at("run/b")));
        assert!(same(&at("link/none/../new"), &at("run/new")));
    }
}
