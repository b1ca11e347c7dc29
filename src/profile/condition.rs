//! `when`: a condition on variables, such as `role == 'web' and not debug`.
//!
//! ```text
//! any    = all ("or" all)*
//! all    = one ("and" one)*
//! one    = "not" one | "(" any ")" | value (("==" | "!=") value)?
//! value  = a name of a variable | text in single or double quotes
//! ```
//! A value alone holds unless it is empty, `false`, `no` or `0`. Values are compared as text.

use super::template;

/// Deepest nesting; nobody reads more.
const DEPTH: usize = 16;

/// Evaluates `text`; `value` looks a variable up, and returns `None` for one that is at fault.
///
/// # Errors
/// A sentence, when `text` is no condition. `Ok(None)` when a variable is at fault.
pub fn holds(
    text: &str,
    value: &mut dyn FnMut(&str) -> Option<String>,
) -> Result<Option<bool>, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, value, faulty: false };
    let held = parser.any(0)?;
    match parser.tokens.get(parser.at) {
        Some(token) => Err(format!("{token} is not expected there")),
        None => Ok((!parser.faulty).then_some(held)),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Sign(&'static str),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Name(name) => write!(f, "`{name}`"),
            Token::Text(text) => write!(f, "'{text}'"),
            Token::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let sign = ["==", "!=", "(", ")"].into_iter().find(|sign| rest.starts_with(sign));
        if let Some(sign) = sign {
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        } else if first == '\'' || first == '"' {
            let (text, after) =
                rest[1..].split_once(first).ok_or_else(|| format!("{first} is not closed"))?;
            tokens.push(Token::Text(text.to_string()));
            rest = after;
        } else {
            let ends = |c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c));
            let (word, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
            tokens.push(match word {
                "and" => Token::Sign("and"),
                "or" => Token::Sign("or"),
                "not" => Token::Sign("not"),
                name if template::is_name(name) => Token::Name(name.to_string()),
                "" => return Err(format!("`{first}` is not expected there")),
                other => return Err(format!("`{other}` is no name; text stands in quotes")),
            });
            rest = after;
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

struct Parser<'v> {
    tokens: Vec<Token>,
    at: usize,
    value: &'v mut dyn FnMut(&str) -> Option<String>,
    faulty: bool,
}

impl Parser<'_> {
    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(known)) if *known == sign);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self, depth: usize) -> Result<bool, String> {
        let mut held = self.all(depth)?;
        while self.take("or") {
            held |= self.all(depth)?;
        }
        Ok(held)
    }

    fn all(&mut self, depth: usize) -> Result<bool, String> {
        let mut held = self.one(depth)?;
        while self.take("and") {
            held &= self.one(depth)?;
        }
        Ok(held)
    }

    fn one(&mut self, depth: usize) -> Result<bool, String> {
        if depth > DEPTH {
            return Err(format!("it is nested more than {DEPTH} deep"));
        }
        if self.take("not") {
            return Ok(!self.one(depth + 1)?);
        }
        if self.take("(") {
            let held = self.any(depth + 1)?;
            return if self.take(")") { Ok(held) } else { Err("`)` is missing".into()) };
        }
        let value = self.value()?;
        if self.take("==") {
            return Ok(value == self.value()?);
        }
        if self.take("!=") {
            return Ok(value != self.value()?);
        }
        Ok(!matches!(value.as_str(), "" | "false" | "no" | "0"))
    }

    fn value(&mut self) -> Result<String, String> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        match token {
            Some(Token::Text(text)) => Ok(text),
            Some(Token::Name(name)) => Ok((self.value)(&name).unwrap_or_else(|| {
                self.faulty = true;
                String::new()
            })),
            Some(sign) => Err(format!("{sign} is not expected there")),
            None => Err("it ends where a value is expected".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Option<bool>, String> {
        holds(text, &mut |name| match name {
            "role" => Some("web".into()),
            "debug" => Some("false".into()),
            "env.CI" => Some("1".into()),
            "empty" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn conditions_hold_as_they_read() {
        for (text, expected) in [
            ("role == 'web'", true),
            ("role != \"web\"", false),
            ("role=='db' or env.CI", true),
            ("not debug and role == 'web'", true),
            ("not (debug or role == 'web')", false),
            // `and` binds closer than `or`.
            ("env.CI or env.CI and debug", true),
            ("(env.CI or env.CI) and debug", false),
            ("empty", false),
            ("empty == ''", true),
            ("'web' == role", true),
        ] {
            assert_eq!(check(text), Ok(Some(expected)), "{text}");
        }
        assert_eq!(check("role == 'web' or other"), Ok(None));
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        let deep = format!("{}role{}", "(".repeat(99), ")".repeat(99));
        for text in
            ["", "role ==", "role = 'web'", "(role", "role)", "role role", "7", "'x", "and", &deep]
        {
            assert!(check(text).is_err(), "{text}");
        }
    }
}
