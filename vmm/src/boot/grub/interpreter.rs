//! Runs statements: control flow, functions, expansion, and the way from a menu to one entry.

use std::collections::HashMap;
use std::rc::Rc;

use super::environment::Environment;
use super::menu::{EntryBody, MenuEntry, Outcome, choose};
use super::script::{Block, Piece, Statement, StatementKind, Word, parse};
use super::{MAX_FILE, ScriptError};
use crate::boot::volumes::{Location, Volumes};

const MAX_STEPS: usize = 200_000;
const MAX_DEPTH: usize = 32;
const MAX_ENTRIES: usize = 1024;
const MAX_PROBLEMS: usize = 16;

/// How a list of statements ended.
pub(super) enum Flow {
    /// At its end; the status of the last command.
    Done(bool),
    Return(bool),
    Break(usize),
    Continue(usize),
    /// `exit`, or `configfile`, after which nothing of the caller runs.
    Stop,
}

/// GRUB's state: variables, functions, the menu, and what the running entry has loaded.
pub struct Interpreter<'a> {
    pub(super) volumes: &'a Volumes,
    pub(super) environment: Environment,
    functions: HashMap<String, Block>,
    pub(super) menu: Vec<MenuEntry>,
    pub(super) outcome: Outcome,
    /// Positional parameters of the function or entry that runs.
    parameters: Vec<String>,
    status: bool,
    steps: usize,
    depth: usize,
}

impl<'a> Interpreter<'a> {
    /// Makes the state GRUB has before it reads its configuration.
    pub fn new(volumes: &'a Volumes) -> Interpreter<'a> {
        let mut environment = Environment::default();
        for (name, value) in [
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_timeout_style", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("feature_ntldr", "y"),
            ("feature_chainloader_bpb", "y"),
            ("feature_200_final", "y"),
            ("feature_nativedisk_cmd", "y"),
            ("lang", "en_US"),
        ] {
            environment.set(name, value);
        }
        Interpreter {
            volumes,
            environment,
            functions: HashMap::new(),
            menu: Vec::new(),
            outcome: Outcome::default(),
            parameters: Vec::new(),
            status: true,
            steps: 0,
            depth: 0,
        }
    }

    /// Runs the configuration file as GRUB would after it found it there.
    ///
    /// # Errors
    /// [`ScriptError`] when it is no script or goes beyond a bound.
    pub fn start(&mut self, file: &Location) -> Result<(), ScriptError> {
        self.place(file)?;
        self.run_file(file).map(drop)
    }

    /// Sets the variables that follow from where the configuration is.
    pub(super) fn place(&mut self, file: &Location) -> Result<(), ScriptError> {
        let device = self.volumes.get(file.volume).device();
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.set("root", &device)?;
        self.set("boot", &device)?;
        self.set("prefix", &format!("({device}){folder}"))?;
        self.set("cmdpath", &format!("({device}){folder}"))
    }

    /// Returns the entries of the menu as it is now.
    pub fn menu(&self) -> &[MenuEntry] {
        &self.menu
    }

    /// Returns a variable's value; an unset one is empty.
    pub fn variable(&self, name: &str) -> &str {
        self.environment.get(name)
    }

    /// Returns what has been loaded so far, and what went wrong.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Goes from the menu to the entry that `name` means (or `default`, or the first one) and
    /// runs it. Returns the titles on the way, `None` when `name` leads nowhere.
    ///
    /// # Errors
    /// [`ScriptError`] when a bound is met.
    pub fn boot(&mut self, name: Option<&str>) -> Result<Option<(String, Outcome)>, ScriptError> {
        let mut wanted = name.unwrap_or(self.environment.get("default")).to_string();
        let mut titles = Vec::new();
        loop {
            let (index, rest) = match choose(&self.menu, &wanted) {
                Some((index, rest)) => (index, rest.to_string()),
                None if name.is_some() && !wanted.is_empty() => return Ok(None),
                None => (0, String::new()),
            };
            let Some(entry) = self.menu.get(index).cloned() else { return Ok(None) };
            titles.push(entry.title.clone());
            self.set("chosen", entry.id.as_deref().unwrap_or(&entry.title))?;
            self.outcome = Outcome::default();
            match entry.body {
                EntryBody::Loader { entry, volume } => {
                    self.load_bls_entry(&entry, volume)?;
                    return Ok(Some((titles.join(" > "), self.outcome.clone())));
                }
                EntryBody::Script(body) => {
                    self.call(&body, entry.arguments)?;
                    return Ok(Some((titles.join(" > "), self.outcome.clone())));
                }
                EntryBody::Submenu(body) => {
                    if titles.len() > MAX_DEPTH {
                        return Err(self.limit(&format!("more than {MAX_DEPTH} nested menus")));
                    }
                    self.menu.clear();
                    self.call(&body, entry.arguments)?;
                    wanted = rest;
                }
            }
        }
    }

    /// Reads and runs a file.
    pub(super) fn run_file(&mut self, file: &Location) -> Result<Flow, ScriptError> {
        match self.volumes.read(file, MAX_FILE) {
            Ok(text) => self.run_text(file, &String::from_utf8_lossy(&text)),
            Err(error) => {
                let place = self.volumes.get(file.volume).name();
                self.problem(format!("{error} ({place})"));
                Ok(Flow::Done(false))
            }
        }
    }

    /// Runs the text of a file.
    pub(super) fn run_text(&mut self, file: &Location, text: &str) -> Result<Flow, ScriptError> {
        let volume = self.volumes.get(file.volume);
        let name = format!("{} on {}", file.path, volume.name());
        let device = volume.device();
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.set("config_file", &format!("({device}){}", file.path))?;
        self.set("config_directory", &format!("({device}){folder}"))?;
        let body = parse(&name, text)?;
        self.nested(|this| this.run(&body))
    }

    pub(super) fn define(&mut self, entry: MenuEntry) -> Result<(), ScriptError> {
        if self.menu.len() >= MAX_ENTRIES {
            return Err(self.limit(&format!("more than {MAX_ENTRIES} menu entries")));
        }
        self.menu.push(entry);
        Ok(())
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), ScriptError> {
        if !self.environment.set(name, value) {
            return Err(self.limit(&format!("variable {name} grows beyond bounds")));
        }
        Ok(())
    }

    pub(super) fn problem(&mut self, problem: String) {
        if self.outcome.problems.len() < MAX_PROBLEMS {
            self.outcome.problems.push(problem);
        }
    }

    /// Runs a body with its own positional parameters.
    fn call(&mut self, body: &Block, parameters: Vec<String>) -> Result<Flow, ScriptError> {
        let saved = std::mem::replace(&mut self.parameters, parameters);
        let flow = self.nested(|this| this.run(body));
        self.parameters = saved;
        Ok(match flow? {
            Flow::Done(status) | Flow::Return(status) => Flow::Done(status),
            Flow::Break(_) | Flow::Continue(_) => Flow::Done(true),
            Flow::Stop => Flow::Stop,
        })
    }

    pub(super) fn nested<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, ScriptError>,
    ) -> Result<T, ScriptError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.limit(&format!("more than {MAX_DEPTH} nested calls and files")));
        }
        self.depth += 1;
        let result = work(self);
        self.depth -= 1;
        result
    }

    fn limit(&self, what: &str) -> ScriptError {
        let file = self.environment.get("config_file");
        ScriptError::Limit(format!("{file}: {what}"))
    }

    fn run(&mut self, statements: &[Statement]) -> Result<Flow, ScriptError> {
        for statement in statements {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(self.limit(&format!("it runs for more than {MAX_STEPS} commands")));
            }
            match self.statement(statement)? {
                Flow::Done(status) => self.status = status,
                other => return Ok(other),
            }
        }
        Ok(Flow::Done(self.status))
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, ScriptError> {
        match &statement.kind {
            StatementKind::Command { words, block } => self.command(words, block.as_ref()),
            StatementKind::Function { name, body } => {
                self.functions.insert(name.clone(), body.clone());
                Ok(Flow::Done(true))
            }
            StatementKind::If { branches, otherwise } => {
                for (condition, body) in branches {
                    match self.run(condition)? {
                        Flow::Done(true) => return self.run(body),
                        Flow::Done(false) => {}
                        other => return Ok(other),
                    }
                }
                match otherwise {
                    Some(body) => self.run(body),
                    None => Ok(Flow::Done(true)),
                }
            }
            StatementKind::While { condition, negated, body } => loop {
                self.steps += 1;
                match self.run(condition)? {
                    Flow::Done(status) if status == *negated => return Ok(Flow::Done(true)),
                    Flow::Done(_) => {}
                    other => return Ok(other),
                }
                if let Some(flow) = self.turn(body)? {
                    return Ok(flow);
                }
            },
            StatementKind::For { variable, words, body } => {
                for value in self.expand(words)? {
                    self.steps += 1;
                    self.set(variable, &value)?;
                    if let Some(flow) = self.turn(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Done(true))
            }
        }
    }

    /// Runs a loop's body once; returns how the loop ends if it does.
    fn turn(&mut self, body: &Block) -> Result<Option<Flow>, ScriptError> {
        if self.steps > MAX_STEPS {
            return Err(self.limit(&format!("it runs for more than {MAX_STEPS} commands")));
        }
        Ok(match self.run(body)? {
            Flow::Done(_) | Flow::Continue(1) => None,
            Flow::Break(1) => Some(Flow::Done(true)),
            Flow::Break(levels) => Some(Flow::Break(levels - 1)),
            Flow::Continue(levels) => Some(Flow::Continue(levels - 1)),
            other => Some(other),
        })
    }

    fn command(&mut self, words: &[Word], block: Option<&Block>) -> Result<Flow, ScriptError> {
        let mut arguments = self.expand(words)?;
        let mut negated = false;
        while arguments.first().is_some_and(|first| first == "!") {
            arguments.remove(0);
            negated = !negated;
        }
        let Some((name, rest)) = arguments.split_first() else {
            return Ok(Flow::Done(!negated));
        };
        let flow = match (name.as_str(), block) {
            ("menuentry" | "submenu", Some(block)) => {
                let entry = entry(name, rest, block);
                self.define(entry)?;
                Flow::Done(true)
            }
            ("break", _) => Flow::Break(levels(rest)),
            ("continue", _) => Flow::Continue(levels(rest)),
            ("return", _) => Flow::Return(rest.first().is_none_or(|status| status == "0")),
            ("setparams", _) => {
                self.parameters = [vec![String::new()], rest.to_vec()].concat();
                Flow::Done(true)
            }
            ("shift", _) => {
                if self.parameters.len() > 1 {
                    self.parameters.remove(1);
                }
                Flow::Done(true)
            }
            ("eval", _) => {
                let body = parse("eval", &rest.join(" "))?;
                self.nested(|this| this.run(&body))?
            }
            _ => match self.functions.get(name).cloned() {
                Some(body) => self.call(&body, arguments)?,
                None => self.builtin(name, rest)?,
            },
        };
        Ok(match flow {
            Flow::Done(status) => Flow::Done(status != negated),
            other => other,
        })
    }

    fn expand(&self, words: &[Word]) -> Result<Vec<String>, ScriptError> {
        const MAX_TOTAL: usize = 1 << 20;
        let mut expanded: Vec<String> = Vec::new();
        let mut total = 0;
        for word in words {
            // The word as it grows; `None` until something makes it exist.
            let mut current: Option<String> = None;
            for piece in &word.pieces {
                match piece {
                    Piece::Text { text, .. } => {
                        total += text.len();
                        current.get_or_insert_default().push_str(text);
                    }
                    Piece::Variable { name, quoted } => {
                        let value = self.value(name);
                        total += value.len();
                        if *quoted {
                            current.get_or_insert_default().push_str(&value);
                            continue;
                        }
                        let mut fields = value.split_whitespace();
                        if value.starts_with(char::is_whitespace) {
                            expanded.extend(current.take());
                        }
                        if let Some(first) = fields.next() {
                            current.get_or_insert_default().push_str(first);
                        }
                        for field in fields {
                            expanded.extend(current.replace(field.to_string()));
                        }
                        if value.ends_with(char::is_whitespace) {
                            expanded.extend(current.take());
                        }
                    }
                }
                if total > MAX_TOTAL {
                    return Err(self.limit("a command grows beyond bounds"));
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => u8::from(!self.status).to_string(),
            "#" => self.parameters.len().saturating_sub(1).to_string(),
            "@" | "*" => self.parameters.get(1..).unwrap_or_default().join(" "),
            _ => match name.parse::<usize>() {
                Ok(index) => self.parameters.get(index).cloned().unwrap_or_default(),
                Err(_) => self.environment.get(name).to_string(),
            },
        }
    }
}

fn levels(arguments: &[String]) -> usize {
    arguments
        .first()
        .and_then(|levels| levels.parse().ok())
        .filter(|&levels| levels > 0)
        .unwrap_or(1)
}

/// Makes the entry of a `menuentry` or `submenu` command.
fn entry(command: &str, arguments: &[String], block: &Block) -> MenuEntry {
    let mut id = None;
    let mut plain = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (option, value) = match argument.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_string())),
            _ => (argument.as_str(), None),
        };
        match option {
            "--id" => id = value.or_else(|| rest.next().cloned()),
            "--class" | "--users" | "--hotkey" | "--source" if value.is_none() => {
                rest.next();
            }
            "--class" | "--users" | "--hotkey" | "--source" | "--unrestricted" => {}
            "--" => plain.extend(rest.by_ref().cloned()),
            _ => plain.push(argument.clone()),
        }
    }
    let body = match command {
        "submenu" => EntryBody::Submenu(Rc::clone(block)),
        _ => EntryBody::Script(Rc::clone(block)),
    };
    MenuEntry { title: plain.first().cloned().unwrap_or_default(), id, arguments: plain, body }
}
