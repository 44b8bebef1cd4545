//! Expressions in directives: numbers, names, C's integer operators, and functions that look at memory.
//!
//! Used while a case is set up (names are labels and constants) and when its end is judged (registers as well). All
//! arithmetic is on 64 bits, wrapping.

/// What names and functions mean.
pub(super) trait Names {
    /// The value of a name.
    fn name(&self, name: &str) -> Option<u64>;
    /// The value of a function of one argument.
    fn call(&self, function: &str, argument: u64) -> Option<u64>;
}

/// Evaluates `text`.
pub(super) fn evaluate(text: &str, names: &dyn Names) -> Result<u64, String> {
    let mut parser = Parser { rest: text.trim(), names };
    let value = parser.binary(0)?;
    if parser.rest.is_empty() { Ok(value) } else { Err(format!("`{text}`: what is `{}`?", parser.rest)) }
}

/// Binary operators, loosest first; those in one row bind alike.
const LEVELS: [&[&str]; 6] = [&["|"], &["^"], &["&"], &["<<", ">>"], &["+", "-"], &["*"]];

struct Parser<'a> {
    rest: &'a str,
    names: &'a dyn Names,
}

impl Parser<'_> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn binary(&mut self, level: usize) -> Result<u64, String> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.take(operator)) {
            let right = self.binary(level + 1)?;
            left = match *operator {
                "|" => left | right,
                "^" => left ^ right,
                "&" => left & right,
                "<<" => left.checked_shl(right as u32).unwrap_or(0),
                ">>" => left.checked_shr(right as u32).unwrap_or(0),
                "+" => left.wrapping_add(right),
                "-" => left.wrapping_sub(right),
                _ => left.wrapping_mul(right),
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<u64, String> {
        if self.take("~") {
            return Ok(!self.unary()?);
        }
        if self.take("-") {
            return Ok(self.unary()?.wrapping_neg());
        }
        if self.take("(") {
            let value = self.binary(0)?;
            return if self.take(")") { Ok(value) } else { Err("a `)` is missing".to_owned()) };
        }
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        if word.is_empty() {
            return Err(format!("a value is missing before `{}`", self.rest));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return number(word).ok_or_else(|| format!("`{word}` is no number"));
        }
        if self.take("(") {
            let argument = self.binary(0)?;
            if !self.take(")") {
                return Err("a `)` is missing".to_owned());
            }
            return self
                .names
                .call(word, argument)
                .ok_or_else(|| format!("`{word}({argument:#x})` is unknown"));
        }
        self.names.name(word).ok_or_else(|| format!("`{word}` is unknown"))
    }
}

fn number(word: &str) -> Option<u64> {
    let word = word.replace('_', "");
    if let Some(digits) = word.strip_prefix("0x") {
        u64::from_str_radix(digits, 16).ok()
    } else if let Some(digits) = word.strip_prefix("0b") {
        u64::from_str_radix(digits, 2).ok()
    } else {
        word.parse().ok()
    }
}

/// Splits at `separator` where it isn't inside parentheses.
pub(super) fn split_outside(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            c if c == separator && depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;
    impl Names for Two {
        fn name(&self, name: &str) -> Option<u64> {
            (name == "two").then_some(2)
        }
        fn call(&self, function: &str, argument: u64) -> Option<u64> {
            (function == "twice").then_some(2 * argument)
        }
    }

    #[test]
    fn operators_bind_as_in_c() {
        for (text, value) in [
            ("1 + 2 * 3", 7),
            ("1 | 6 & 3", 3),
            ("1 << two + 1", 8),
            ("twice(two + 0x10) - 1", 35),
            ("~0 & 0xff", 255),
            ("-1", u64::MAX),
            ("(1|2)*0b11", 9),
        ] {
            assert_eq!(evaluate(text, &Two), Ok(value), "{text}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "1 +", "three", "thrice(1)", "(1", "0xg", "1 2"] {
            assert!(evaluate(text, &Two).is_err(), "{text}");
        }
    }
}
