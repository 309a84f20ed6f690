//! What kernels wrote, and how far two of them are apart.

/// What a kernel wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Name of the binding.
    pub name: &'static str,
    /// Whether the bytes are f32; else they are words of bits.
    pub floats: bool,
    /// All of it, as it lies on the device, but for f16, which is f32 here.
    pub bytes: Vec<u8>,
}

/// How far what one kernel wrote is from what another one wrote: 0 where every bit is the same, else the largest
/// distance of any output. Of floats it is ‖got − want‖ / ‖want‖, of bits the share that differs.
///
/// # Errors
/// What is wrong, in words: NaN or infinity, differences in bits where `tolerance` is none, a distance above it.
pub fn compare(got: &[Written], want: &[Written], tolerance: Option<f64>) -> std::result::Result<f64, String> {
    let mut worst = 0.0_f64;
    if got.len() != want.len() {
        return Err(format!("{} outputs, not {}", got.len(), want.len()));
    }
    for (got, want) in got.iter().zip(want) {
        if got.name != want.name || got.bytes.len() != want.bytes.len() {
            return Err(format!(
                "{} of {} bytes, not {} of {}",
                got.name,
                got.bytes.len(),
                want.name,
                want.bytes.len()
            ));
        }
        let [g, w] = [&got.bytes, &want.bytes].map(|b| bytemuck::pod_collect_to_vec::<u8, u32>(b));
        let differ = g.iter().zip(&w).filter(|(g, w)| g != w).count();
        let float = |word: &u32| f64::from(f32::from_bits(*word));
        if got.floats
            && let Some(at) = g.iter().position(|v| !float(v).is_finite())
        {
            return Err(format!("{}: {} at {at}, where {} is right", got.name, float(&g[at]), float(&w[at])));
        }
        // A kernel marks what is not finite and may store a zero.
        if got.name == "health" && differ > 0 {
            return Err(format!("{differ} samples are marked for NaN or infinity"));
        }
        if differ == 0 {
            continue;
        }
        let first = g.iter().zip(&w).position(|(g, w)| g != w).unwrap_or(0);
        let distance = if got.floats {
            let square = |f: &dyn Fn(usize) -> f64| (0..g.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
            let size = square(&|i| float(&w[i]));
            square(&|i| float(&g[i]) - float(&w[i])) / if size > 0.0 { size } else { 1.0 }
        } else {
            let bits: u64 = g.iter().zip(&w).map(|(g, w)| u64::from((g ^ w).count_ones())).sum();
            bits as f64 / (32 * g.len()) as f64
        };
        let values = if got.floats {
            format!("{:e} for {:e}", float(&g[first]), float(&w[first]))
        } else {
            format!("{:#010x} for {:#010x}", g[first], w[first])
        };
        let told = format!(
            "{}: {differ} of {} differ in bits, the first at {first}, {values}; relative distance {distance:.1e}",
            got.name,
            g.len()
        );
        match tolerance {
            // NaN passes no test.
            Some(t) if distance <= t => worst = worst.max(distance),
            _ => return Err(told),
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(values: &[f32]) -> Vec<Written> {
        vec![Written { name: "y", floats: true, bytes: bytemuck::cast_slice(values).to_vec() }]
    }

    #[test]
    fn a_comparison_sees_one_bit_and_no_nan_passes() {
        let right = written(&[1.0, -2.0, 0.0]);
        assert_eq!(compare(&right, &right, None), Ok(0.0));
        let close = written(&[1.0, -2.0000002, 0.0]);
        assert!(compare(&close, &right, None).unwrap_err().contains("1 of 3 differ"));
        assert!(compare(&close, &right, Some(1e-6)).unwrap() > 0.0);
        assert!(compare(&close, &right, Some(1e-9)).is_err());
        assert!(compare(&written(&[1.0, -2.0, -0.0]), &right, None).is_err());
        assert!(compare(&written(&[1.0, f32::NAN, 0.0]), &right, Some(f64::INFINITY)).is_err());
        assert!(compare(&written(&[1.0]), &right, Some(1.0)).is_err());
        let bits = |word: u32| vec![Written { name: "signs", floats: false, bytes: word.to_ne_bytes().to_vec() }];
        assert!(compare(&bits(0x7f80_0001), &bits(0x7f80_0001), None).is_ok());
        assert_eq!(compare(&bits(1), &bits(0), Some(0.1)), Ok(1.0 / 32.0));
        assert!(compare(&bits(1), &bits(0), Some(0.01)).is_err());
        let health = |mark: u32| vec![Written { name: "health", floats: false, bytes: mark.to_ne_bytes().to_vec() }];
        assert!(compare(&health(1), &health(0), Some(f64::INFINITY)).unwrap_err().contains("NaN"));
    }
}
