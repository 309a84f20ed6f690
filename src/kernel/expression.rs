//! The arithmetic in shader text: whole numbers, + - * / % and parentheses, over constants and loop variables.

/// What names stand for.
pub(super) struct Scope<'a> {
    /// Constants of the kernel.
    pub consts: &'a [(&'static str, u32)],
    /// Variables of the loops that are open, the innermost last.
    pub vars: Vec<(char, i64)>,
}

impl Scope<'_> {
    /// The value of an expression; nothing where it is none.
    pub fn evaluate(&self, text: &str) -> Option<i64> {
        let compact: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        let mut at = 0;
        self.sum(&compact, &mut at).filter(|_| at == compact.len())
    }

    /// Whether `A == B`, `!=`, `>=` or `<` holds, or a lone expression is not zero.
    pub fn condition(&self, text: &str) -> Option<bool> {
        for (sign, holds) in
            [("==", i64::eq as fn(&i64, &i64) -> bool), ("!=", i64::ne), (">=", i64::ge), ("<", i64::lt)]
        {
            if let Some((a, b)) = text.split_once(sign) {
                return Some(holds(&self.evaluate(a)?, &self.evaluate(b)?));
            }
        }
        Some(self.evaluate(text)? != 0)
    }

    fn sum(&self, t: &[char], at: &mut usize) -> Option<i64> {
        let mut value = self.product(t, at)?;
        while let Some(op @ ('+' | '-')) = t.get(*at) {
            *at += 1;
            let right = self.product(t, at)?;
            value = if *op == '+' { value + right } else { value - right };
        }
        Some(value)
    }

    fn product(&self, t: &[char], at: &mut usize) -> Option<i64> {
        let mut value = self.atom(t, at)?;
        while let Some(op @ ('*' | '/' | '%')) = t.get(*at) {
            *at += 1;
            let right = self.atom(t, at)?;
            value = match op {
                '*' => value * right,
                '/' => value.checked_div(right)?,
                _ => value.checked_rem(right)?,
            };
        }
        Some(value)
    }

    fn atom(&self, t: &[char], at: &mut usize) -> Option<i64> {
        if t.get(*at) == Some(&'(') {
            *at += 1;
            let value = self.sum(t, at)?;
            (t.get(*at) == Some(&')')).then(|| *at += 1)?;
            return Some(value);
        }
        let word: String = t[*at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
        *at += word.len();
        if let Ok(number) = word.parse() {
            return Some(number);
        }
        let mut letters = word.chars();
        if let (Some(c), None) = (letters.next(), letters.next())
            && let Some((_, value)) = self.vars.iter().rev().find(|(v, _)| *v == c)
        {
            return Some(*value);
        }
        self.consts.iter().find(|(name, _)| *name == word).map(|(_, v)| i64::from(v.cast_signed()))
    }
}

#[cfg(test)]
mod tests {
    use super::Scope;

    #[test]
    fn whole_numbers_with_the_usual_precedence() {
        let scope = Scope { consts: &[("K", 5), ("PAD", u32::MAX)], vars: vec![('v', 2), ('v', 3)] };
        let value = |text| scope.evaluate(text);
        assert_eq!(value("2 + v * K - 1"), Some(16), "the innermost v");
        assert_eq!(value("(2 + v) * (K - 1) / 3 % 4"), Some(2));
        assert_eq!(value("7 - 2 - 1"), Some(4), "from the left");
        assert_eq!(value("PAD"), Some(-1), "two's complement");
        for wrong in ["", "K +", "(K", "K)", "L", "K / 0", "K % (v - 3)", "2 K"] {
            assert_eq!(value(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn conditions() {
        let scope = Scope { consts: &[("K", 5)], vars: vec![] };
        let holds = |text| scope.condition(text);
        assert_eq!(["K == 5", "K != 4", "K >= 5", "K < 6", "K"].map(holds), [Some(true); 5]);
        assert_eq!(["K == 4", "K != 5", "K >= 6", "K < 5", "K - 5"].map(holds), [Some(false); 5]);
        assert_eq!(holds("K == L"), None);
    }
}
