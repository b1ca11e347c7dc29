//! `test` and `[`: strings, numbers, files, `!`, `-a`, `-o` and parentheses.

use std::cmp::Ordering;

/// What `-d`, `-e`, `-f` and `-s` ask about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileTest {
    Directory,
    Exists,
    File,
    NotEmpty,
}

/// Evaluates the arguments of `test`. Malformed expressions are false, as in GRUB.
pub fn test(arguments: &[String], file: &dyn Fn(FileTest, &str) -> bool) -> bool {
    let mut expression = Expression { rest: arguments, file, depth: 0 };
    let value = expression.or();
    value && expression.rest.is_empty()
}

struct Expression<'a> {
    rest: &'a [String],
    file: &'a dyn Fn(FileTest, &str) -> bool,
    depth: usize,
}

impl Expression<'_> {
    fn or(&mut self) -> bool {
        let mut value = self.and();
        while self.next_is("-o") {
            self.rest = &self.rest[1..];
            value |= self.and();
        }
        value
    }

    fn and(&mut self) -> bool {
        let mut value = self.term();
        while self.next_is("-a") {
            self.rest = &self.rest[1..];
            value &= self.term();
        }
        value
    }

    fn term(&mut self) -> bool {
        let mut negated = false;
        while self.next_is("!") && self.rest.len() > 1 {
            self.rest = &self.rest[1..];
            negated = !negated;
        }
        self.primary() != negated
    }

    fn primary(&mut self) -> bool {
        let rest = self.rest;
        if let [left, operator, right, tail @ ..] = rest
            && let Some(value) = compare(left, operator, right)
        {
            self.rest = tail;
            return value;
        }
        if self.next_is("(") && self.depth < 32 {
            self.rest = &rest[1..];
            self.depth += 1;
            let value = self.or();
            self.depth -= 1;
            let closed = self.next_is(")");
            self.rest = self.rest.get(1..).unwrap_or_default();
            return value && closed;
        }
        if let [operator, operand, tail @ ..] = rest {
            let unary = match operator.as_str() {
                "-n" => Some(!operand.is_empty()),
                "-z" => Some(operand.is_empty()),
                "-d" => Some((self.file)(FileTest::Directory, operand)),
                "-e" => Some((self.file)(FileTest::Exists, operand)),
                "-f" => Some((self.file)(FileTest::File, operand)),
                "-s" => Some((self.file)(FileTest::NotEmpty, operand)),
                _ => None,
            };
            if let Some(value) = unary {
                self.rest = tail;
                return value;
            }
        }
        match rest {
            [text, tail @ ..] => {
                self.rest = tail;
                !text.is_empty()
            }
            [] => false,
        }
    }

    fn next_is(&self, text: &str) -> bool {
        self.rest.first().is_some_and(|next| next == text)
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let order = match operator {
        "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" => left.cmp(right),
        "-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge" => number(left).cmp(&number(right)),
        // Comparison of what follows a common prefix.
        "-pgt" | "-plt" => {
            let start = left.bytes().zip(right.bytes()).take_while(|(a, b)| a == b).count();
            let after = |text: &str| number(text.get(start..).unwrap_or_default());
            after(left).cmp(&after(right))
        }
        _ => return None,
    };
    Some(match operator {
        "=" | "==" | "-eq" => order == Ordering::Equal,
        "!=" | "-ne" => order != Ordering::Equal,
        "<" | "-lt" | "-plt" => order == Ordering::Less,
        "<=" | "-le" => order != Ordering::Greater,
        ">" | "-gt" | "-pgt" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })
}

/// A number as C reads it: what follows the digits is ignored, no digits make 0.
fn number(text: &str) -> i64 {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (radix, digits) = match digits.strip_prefix("0x") {
        Some(hex) => (16, hex),
        None => (10, digits),
    };
    let value = digits.chars().map_while(|digit| digit.to_digit(radix)).fold(0i64, |sum, digit| {
        sum.saturating_mul(i64::from(radix)).saturating_add(i64::from(digit))
    });
    if negative { -value } else { value }
}
