//! What is taken where nothing was said.

use crate::attack::{Method, Norm};
use crate::report::Distance;

/// Eps where neither the user nor the weights say anything.
pub(super) fn default_eps(norm: Norm) -> &'static str {
    if norm == Norm::L2 { "0.5" } else { "8/255" }
}

/// The method's own step length, written as eps is: 2/255 for ten steps of 8/255.
pub(super) fn default_step(method: Method, eps: &Distance, steps: u32) -> Distance {
    if method == Method::Fgsm {
        return eps.clone();
    }
    let (eps_part, divisor) = match eps.text.split_once('/') {
        Some((n, d)) => (n.trim().parse().unwrap_or(eps.value), Some(d.trim())),
        None => (eps.value, None),
    };
    let part = method.default_step_size(eps_part, steps);
    // Twelve digits hide that 2.5 × 0.3 / 10 is not quite 0.075 in binary.
    let part: f64 = format!("{part:.12}").parse().unwrap_or(part);
    let divide = |d: &str| d.parse::<f64>().map_or(part, |d| part / d);
    match divisor {
        Some(d) => Distance { text: format!("{part}/{d}"), value: divide(d) },
        None => Distance { text: part.to_string(), value: part },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::distance;

    #[test]
    fn the_default_step_is_written_as_eps_is() {
        let step = |t: &str, n| default_step(Method::Ifgsm, &distance("--eps", t).unwrap(), n);
        assert_eq!(step("8/255", 10), Distance { text: "2/255".into(), value: 2.0 / 255.0 });
        assert_eq!(step("1/255", 10).text, "0.25/255");
        assert_eq!(step("0.3", 10), Distance { text: "0.075".into(), value: 0.075 });
        let auto = default_step(Method::Apgd, &distance("--eps", "8/255").unwrap(), 100);
        assert_eq!(auto, Distance { text: "16/255".into(), value: 16.0 / 255.0 });
    }
}
