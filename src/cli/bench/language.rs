//! Shader text in every language: a user's WGSL is read here for errors, and ours is written down as drivers get it.

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn parse(text: &str, place: &str) -> Result<(Module, ModuleInfo)> {
    let at = |line: Option<naga::SourceLocation>, said: String| {
        let place = line.map_or(place.into(), |l| format!("{place}:{}:{}", l.line_number, l.line_position));
        Error::Data { place, detail: said }
    };
    let module =
        naga::front::wgsl::parse_str(text).map_err(|e| at(e.location(text), format!("does not compile: {e}")))?;
    // Whether the device has what the text asks for is the driver's to say.
    match Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module) {
        Ok(info) => Ok((module, info)),
        Err(e) => {
            let mut said = e.as_inner().to_string();
            let mut cause = std::error::Error::source(e.as_inner());
            while let Some(error) = cause {
                said += &format!(": {error}");
                cause = error.source();
            }
            Err(at(e.location(text), format!("does not compile: {said}")))
        }
    }
}

/// Refuses text that does not compile, or has no such entry point.
pub(super) fn check(text: &str, entry: &str, place: &str) -> Result<()> {
    let (module, _) = parse(text, place)?;
    if module.entry_points.iter().any(|e| e.name == entry && e.stage == ShaderStage::Compute) {
        return Ok(());
    }
    let names: Vec<&str> = module.entry_points.iter().map(|e| e.name.as_str()).collect();
    let has = if names.is_empty() { "none".into() } else { names.join(", ") };
    Err(Error::Data { place: place.into(), detail: format!("no compute entry point {entry}; there is {has}") })
}

/// One kernel in four languages, by the ending of the file, each as the GPU library hands it to drivers: memory that a
/// workgroup shares is not set to zero, and indices are bounded where the device does not do so itself.
fn translate(name: &str, text: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let fail = |language: &str, said: String| Error::Internal(format!("{name} in {language}: {said}"));
    let (module, info) = parse(text, name).map_err(|e| fail("WGSL", e.to_string()))?;
    let options = spv::Options {
        lang_version: (1, 3),
        // Buffers of a device with VK_EXT_robustness2 are bounded there.
        bounds_check_policies: BoundsCheckPolicies { index: BoundsCheckPolicy::Restrict, ..Default::default() },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..spv::Options::default()
    };
    let words = spv::write_vec(&module, &info, &options, None).map_err(|e| fail("SPIR-V", e.to_string()))?;
    let bounded = BoundsCheckPolicy::Restrict;
    let options = msl::Options {
        fake_missing_bindings: true,
        lang_version: (2, 4),
        bounds_check_policies: BoundsCheckPolicies {
            index: bounded,
            buffer: bounded,
            image_load: bounded,
            ..Default::default()
        },
        zero_initialize_workgroup_memory: false,
        ..msl::Options::default()
    };
    let (metal, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .map_err(|e| fail("MSL", e.to_string()))?;
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        zero_initialize_workgroup_memory: false,
        ..hlsl::Options::default()
    };
    let mut hlsl = String::new();
    hlsl::Writer::new(&mut hlsl, &options, &hlsl::PipelineOptions::default())
        .write(&module, &info, None)
        .map_err(|e| fail("HLSL", e.to_string()))?;
    Ok(vec![
        ("wgsl", text.as_bytes().to_vec()),
        ("spv", words.iter().flat_map(|w| w.to_le_bytes()).collect()),
        ("metal", metal.into_bytes()),
        ("hlsl", hlsl.into_bytes()),
    ])
}

/// Writes kernels to a new folder, whole or not at all: for each name a file in every language.
pub(super) fn dump(folder: &Path, kernels: &BTreeMap<String, &Kernel>) -> Result<()> {
    let fail = |detail: String| Error::Output { place: folder.display().to_string(), detail };
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return Err(fail("is there already, and not an empty folder".into()));
    }
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, kernel) in kernels {
        for (ending, bytes) in translate(name, &kernel.source()?.text)? {
            files.insert(format!("{name}.{ending}"), bytes);
        }
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = folder.file_name().ok_or_else(|| fail("no name of a folder".into()))?;
    let partial = parent.join(format!(".{}.partial", name.to_string_lossy()));
    let write = || {
        files.iter().try_for_each(|(name, bytes)| fs::write(partial.join(name), bytes))?;
        // An empty folder may stand where it goes.
        let _ = fs::remove_dir(folder);
        fs::rename(&partial, folder)
    };
    // What is there already is somebody else's.
    let made = fs::create_dir_all(parent).and_then(|()| fs::create_dir(&partial));
    made.map_err(|e| Error::Output { place: partial.display().to_string(), detail: e.to_string() })?;
    write().map_err(|e| {
        let _ = fs::remove_dir_all(&partial);
        fail(e.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_and_the_place() {
        let said = |text: &str| check(text, "f", "my.wgsl").unwrap_err();
        let error = said("@compute @workgroup_size(8)\nfn f() {\n    let x = nonsense;\n}\n");
        assert!(error.exit_code() == 3 && error.to_string().contains("my.wgsl:3:13"), "{error}");
        let error = said("@compute @workgroup_size(8)\nfn f() {\n    let x = 1u + 1.0f;\n}\n");
        assert!(error.to_string().contains("my.wgsl:3:"), "{error}");
        let error = said("@compute @workgroup_size(8)\nfn g() {}\n");
        assert!(error.to_string().contains("no compute entry point f; there is g"), "{error}");
        assert!(check("@compute @workgroup_size(8)\nfn f() {}\n", "f", "my.wgsl").is_ok());
    }
}
