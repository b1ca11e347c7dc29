//! The language: from text to statements. Words keep their quoting until they are expanded.

use std::collections::VecDeque;
use std::rc::Rc;

use super::ScriptError;

/// Nested blocks, conditions and loops.
const MAX_DEPTH: usize = 64;

/// A list of statements, shared so that functions and menu entries can keep it.
pub type Block = Rc<Vec<Statement>>;

/// One statement and its line.
#[derive(Debug, PartialEq)]
pub struct Statement {
    pub line: usize,
    pub kind: StatementKind,
}

#[derive(Debug, PartialEq)]
pub enum StatementKind {
    /// A command, perhaps with a block as its last argument (`menuentry`, `submenu`).
    Command { words: Vec<Word>, block: Option<Block> },
    /// `if`, its `elif`s, and `else`.
    If { branches: Vec<(Block, Block)>, otherwise: Option<Block> },
    /// `while`, or `until` when the condition is negated.
    While { condition: Block, negated: bool, body: Block },
    /// `for NAME in WORDS`.
    For { variable: String, words: Vec<Word>, body: Block },
    /// `function NAME { … }`.
    Function { name: String, body: Block },
}

/// A word: pieces that are joined after expansion.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Word {
    pub pieces: Vec<Piece>,
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text as it is. A quoted empty text still makes a word.
    Text { text: String, quoted: bool },
    /// A variable; unquoted ones are split at white space.
    Variable { name: String, quoted: bool },
}

impl Word {
    /// Returns the text of an unquoted word without variables: what a keyword must be.
    fn plain(&self) -> Option<&str> {
        match &self.pieces[..] {
            [Piece::Text { text, quoted: false }] => Some(text),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(Word),
    /// A line's end or `;`.
    End,
    Open,
    Close,
}

/// Parses a whole file.
///
/// # Errors
/// [`ScriptError::Syntax`] with the line.
pub fn parse(file: &str, text: &str) -> Result<Block, ScriptError> {
    let tokens = Lexer { file, text: text.chars().collect(), at: 0, line: 1 }.tokens()?;
    let mut parser = Parser { file, tokens, line: 1, depth: 0 };
    let statements = parser.statements(&[])?;
    match parser.tokens.front() {
        None => Ok(statements),
        Some(_) => Err(parser.fail("'}' without '{'")),
    }
}

struct Lexer<'a> {
    file: &'a str,
    text: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer<'_> {
    fn tokens(mut self) -> Result<VecDeque<(usize, Token)>, ScriptError> {
        let mut tokens = VecDeque::new();
        while let Some(next) = self.peek() {
            let line = self.line;
            match next {
                '#' => {
                    while self.peek().is_some_and(|next| next != '\n') {
                        self.take();
                    }
                }
                '\n' | ';' => {
                    self.take();
                    tokens.push_back((line, Token::End));
                }
                '{' => {
                    self.take();
                    tokens.push_back((line, Token::Open));
                }
                '}' => {
                    self.take();
                    tokens.push_back((line, Token::Close));
                }
                next if next.is_whitespace() => drop(self.take()),
                '\\' if self.text.get(self.at + 1) == Some(&'\n') => {
                    self.take();
                    self.take();
                }
                '&' | '|' | '<' | '>' => {
                    return Err(self.fail(line, format!("'{next}' is not supported")));
                }
                _ => tokens.push_back((line, Token::Word(self.word()?))),
            }
        }
        Ok(tokens)
    }

    fn word(&mut self) -> Result<Word, ScriptError> {
        let mut word = Word { pieces: Vec::new(), line: self.line };
        let mut text = String::new();
        while let Some(next) = self.peek() {
            match next {
                '\'' => {
                    self.take();
                    flush(&mut word, &mut text, false);
                    let line = self.line;
                    loop {
                        match self.take() {
                            Some('\'') => break,
                            Some(other) => text.push(other),
                            None => return Err(self.fail(line, "a ' that does not end")),
                        }
                    }
                    word.pieces.push(Piece::Text { text: std::mem::take(&mut text), quoted: true });
                }
                '"' => {
                    self.take();
                    flush(&mut word, &mut text, false);
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.take();
                    match self.take() {
                        Some('\n') | None => {}
                        Some(other) => text.push(other),
                    }
                }
                '$' => match self.variable()? {
                    Some(name) => {
                        flush(&mut word, &mut text, false);
                        word.pieces.push(Piece::Variable { name, quoted: false });
                    }
                    None => text.push('$'),
                },
                '{' | '}' | ';' | '&' | '|' | '<' | '>' => break,
                next if next.is_whitespace() => break,
                next => {
                    self.take();
                    text.push(next);
                }
            }
        }
        flush(&mut word, &mut text, false);
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), ScriptError> {
        let line = self.line;
        let mut text = String::new();
        // Even an empty string makes a word.
        word.pieces.push(Piece::Text { text: String::new(), quoted: true });
        loop {
            match self.peek() {
                Some('"') => {
                    self.take();
                    flush(word, &mut text, true);
                    return Ok(());
                }
                Some('\\') => {
                    self.take();
                    match self.take() {
                        Some('\n') => {}
                        Some(escaped @ ('"' | '\\' | '$')) => text.push(escaped),
                        Some(other) => text.extend(['\\', other]),
                        None => {}
                    }
                }
                Some('$') => match self.variable()? {
                    Some(name) => {
                        flush(word, &mut text, true);
                        word.pieces.push(Piece::Variable { name, quoted: true });
                    }
                    None => text.push('$'),
                },
                Some(other) => {
                    self.take();
                    text.push(other);
                }
                None => return Err(self.fail(line, "a \" that does not end")),
            }
        }
    }

    /// Takes `$name` or `${name}`; `None` for a lone `$`.
    fn variable(&mut self) -> Result<Option<String>, ScriptError> {
        let line = self.line;
        self.take();
        let braced = self.peek() == Some('{');
        if braced {
            self.take();
        }
        let mut name = String::new();
        while let Some(next) = self.peek() {
            let special = matches!(next, '?' | '@' | '*' | '#') && name.is_empty();
            let digits = name.starts_with(|first: char| first.is_ascii_digit());
            let fits = if digits { next.is_ascii_digit() } else { next.is_ascii_alphanumeric() };
            if !(special || fits || (next == '_' && !digits)) {
                break;
            }
            self.take();
            name.push(next);
            if special {
                break;
            }
        }
        if !braced {
            return Ok(Some(name).filter(|name| !name.is_empty()));
        }
        match self.take() {
            Some('}') => Ok(Some(name)),
            _ => Err(self.fail(line, "a ${ that is no variable's name")),
        }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn fail(&self, line: usize, reason: impl Into<String>) -> ScriptError {
        ScriptError::Syntax { file: self.file.into(), line, reason: reason.into() }
    }
}

fn flush(word: &mut Word, text: &mut String, quoted: bool) {
    if !text.is_empty() {
        word.pieces.push(Piece::Text { text: std::mem::take(text), quoted });
    }
}

struct Parser<'a> {
    file: &'a str,
    tokens: VecDeque<(usize, Token)>,
    line: usize,
    depth: usize,
}

impl Parser<'_> {
    /// Parses statements up to one of the `ends` keywords, a `}`, or the end, and leaves it there.
    fn statements(&mut self, ends: &[&str]) -> Result<Block, ScriptError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fail(&format!("more than {MAX_DEPTH} levels of nesting")));
        }
        let mut statements = Vec::new();
        loop {
            self.skip_ends();
            match self.tokens.front() {
                None | Some((_, Token::Close)) => break,
                Some((_, Token::Word(word))) => {
                    if word.plain().is_some_and(|word| ends.contains(&word)) {
                        break;
                    }
                    statements.push(self.statement()?);
                }
                Some(_) => return Err(self.fail("'{' where a command was expected")),
            }
        }
        self.depth -= 1;
        Ok(Rc::new(statements))
    }

    fn statement(&mut self) -> Result<Statement, ScriptError> {
        let keyword = match self.tokens.front() {
            Some((line, Token::Word(word))) => {
                self.line = *line;
                word.plain().unwrap_or_default().to_string()
            }
            _ => String::new(),
        };
        let line = self.line;
        let kind = match keyword.as_str() {
            "if" => self.condition()?,
            "while" | "until" => {
                self.take();
                let condition = self.statements(&["do"])?;
                let body = self.loop_body()?;
                StatementKind::While { condition, negated: keyword == "until", body }
            }
            "for" => {
                self.take();
                let variable = self.name("a variable's name after 'for'")?;
                if self.name("'in' after 'for'")? != "in" {
                    return Err(self.fail("'for' without 'in'"));
                }
                let words = self.words();
                self.skip_ends();
                let body = self.loop_body()?;
                StatementKind::For { variable, words, body }
            }
            "function" => {
                self.take();
                let name = self.name("a name after 'function'")?;
                self.skip_ends();
                match self.block()? {
                    Some(body) => StatementKind::Function { name, body },
                    None => return Err(self.fail("'function' without '{'")),
                }
            }
            "then" | "elif" | "else" | "fi" | "do" | "done" => {
                return Err(self.fail(&format!("'{keyword}' out of place")));
            }
            _ => {
                let words = self.words();
                let block = self.block()?;
                StatementKind::Command { words, block }
            }
        };
        Ok(Statement { line, kind })
    }

    fn condition(&mut self) -> Result<StatementKind, ScriptError> {
        let mut branches = Vec::new();
        loop {
            // `if` or `elif`.
            self.take();
            let condition = self.statements(&["then"])?;
            self.keyword("then")?;
            let body = self.statements(&["elif", "else", "fi"])?;
            branches.push((condition, body));
            if !self.is_keyword("elif") {
                break;
            }
        }
        let mut otherwise = None;
        if self.is_keyword("else") {
            self.take();
            otherwise = Some(self.statements(&["fi"])?);
        }
        self.keyword("fi")?;
        Ok(StatementKind::If { branches, otherwise })
    }

    fn loop_body(&mut self) -> Result<Block, ScriptError> {
        self.keyword("do")?;
        let body = self.statements(&["done"])?;
        self.keyword("done")?;
        Ok(body)
    }

    /// Parses `{ … }` if it comes next.
    fn block(&mut self) -> Result<Option<Block>, ScriptError> {
        if !matches!(self.tokens.front(), Some((_, Token::Open))) {
            return Ok(None);
        }
        self.take();
        let line = self.line;
        let body = self.statements(&[])?;
        match self.take() {
            Some(Token::Close) => Ok(Some(body)),
            _ => {
                self.line = line;
                Err(self.fail("a '{' that does not end"))
            }
        }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while matches!(self.tokens.front(), Some((_, Token::Word(_)))) {
            if let Some(Token::Word(word)) = self.take() {
                words.push(word);
            }
        }
        words
    }

    fn name(&mut self, what: &str) -> Result<String, ScriptError> {
        match self.take() {
            Some(Token::Word(word)) if word.plain().is_some() => {
                Ok(word.plain().unwrap_or_default().into())
            }
            _ => Err(self.fail(&format!("expected {what}"))),
        }
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.tokens.front(), Some((_, Token::Word(word))) if word.plain() == Some(keyword))
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), ScriptError> {
        if !self.is_keyword(keyword) {
            return Err(self.fail(&format!("expected '{keyword}'")));
        }
        self.take();
        Ok(())
    }

    fn skip_ends(&mut self) {
        while matches!(self.tokens.front(), Some((_, Token::End))) {
            self.take();
        }
    }

    fn take(&mut self) -> Option<Token> {
        let (line, token) = self.tokens.pop_front()?;
        self.line = line;
        Some(token)
    }

    fn fail(&self, reason: &str) -> ScriptError {
        let line = self.tokens.front().map_or(self.line, |(line, _)| *line);
        ScriptError::Syntax { file: self.file.into(), line, reason: reason.into() }
    }
}
