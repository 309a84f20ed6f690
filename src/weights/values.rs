//! What the values of a tensor come to in f32, and which of them are refused.

use crate::error::{Error, Result};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

/// Values of a floating-point tensor. Copied byte by byte: the data of a file may lie at an odd address.
pub(super) fn floats(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    decode(view).ok_or_else(|| Error::model(name, format!("{} values; only floats are supported", view.dtype())))
}

/// Refuses values that are no weights. `shape` is one that a checked layer asks for, so the product cannot overflow.
pub(super) fn check_values(name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    let count: usize = shape.iter().product();
    if values.len() != count {
        return Err(Error::model(name, format!("{} values for the shape {shape:?}", values.len())));
    }
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::model(name, format!("value {i} is {}", values[i])));
    }
    if let Some(i) = values.iter().position(|v| *v < 0.0 && name.ends_with(".running_var")) {
        return Err(Error::model(name, format!("variance {i} is negative ({})", values[i])));
    }
    Ok(())
}

/// Values of a floating-point tensor as f32; `None` for any other type.
pub(crate) fn decode(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::header::open;
    use super::super::made::raw;
    use super::*;

    #[test]
    fn every_float_type_is_read_at_any_address() {
        let value = 0.15625_f32; // exact in all four
        let types: [(&str, Vec<u8>); 4] = [
            ("F16", f16::from_f32(value).to_le_bytes().to_vec()),
            ("BF16", bf16::from_f32(value).to_le_bytes().to_vec()),
            ("F32", value.to_le_bytes().to_vec()),
            ("F64", f64::from(value).to_le_bytes().to_vec()),
        ];
        for (dtype, bytes) in &types {
            for padding in 0..8 {
                let end = bytes.len() * 2;
                let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{end}]}}}}"#);
                let file = raw(&(header + &" ".repeat(padding)), &bytes.repeat(2));
                let (file, _) = open(&file).unwrap();
                assert_eq!(decode(&file.tensor("a").unwrap()).unwrap(), [value; 2], "{dtype}");
            }
        }
        let integers = TensorView::new(Dtype::I32, vec![2], &[0; 8]).unwrap();
        assert!(floats("a", &integers).unwrap_err().to_string().contains("a: I32 values; only floats"));
    }
}
