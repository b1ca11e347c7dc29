//! The variables of a profile: those of `[vars]`, those of the environment, and what the profile says
//! elsewhere. A value is looked up when a string names it; those of `[vars]` may name others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::faults::Faults;
use super::given::{self, Given, Origin};
use super::matrix::Cell;
use super::reader::{Reader, nearest};
use super::source::absolute;
use super::template::{self, Piece};
use super::units;
use crate::calendar::rfc3339;
use crate::secret::SHORTEST;

/// What the profile knows without `[vars]`.
const BUILT_IN: [&str; 4] = ["build.name", "build.time", "build.dir", "image.size"];

/// The variables of one profile.
pub struct Scope<'t> {
    root: &'t DeTable<'t>,
    given: &'t Given,
    cell: Option<Cell>,
    folder: PathBuf,
    /// What is being looked up, so that what names itself is noticed.
    active: RefCell<Vec<String>>,
    /// What is known; `None` for what is at fault and was told.
    known: RefCell<BTreeMap<String, Option<String>>>,
}

/// The values of a profile's variables, for texts that are read later.
#[derive(Clone)]
pub struct Variables {
    known: Arc<BTreeMap<String, String>>,
    environment: fn(&str) -> Option<String>,
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} variables", self.known.len())
    }
}

impl Variables {
    /// Puts the variables into `text`.
    ///
    /// # Errors
    /// A sentence with the line: braces that hold no name, or a variable that is not there.
    pub fn render(&self, text: &str) -> Result<String, String> {
        let line = |opening: usize| {
            let at = template::place(text, opening).unwrap_or(text.len());
            1 + text[..at].matches('\n').count()
        };
        let pieces = template::pieces(text).map_err(|misplaced| {
            format!("line {}: {}", line(misplaced.opening), misplaced.message)
        })?;
        let mut whole = String::with_capacity(text.len());
        for (piece, opening) in pieces {
            match piece {
                Piece::Text(text) => whole.push_str(text),
                Piece::Name(name) => whole.push_str(&self.value(name).ok_or_else(|| {
                    format!("line {}: there is no variable `{name}`", line(opening))
                })?),
            }
        }
        Ok(whole)
    }

    fn value(&self, name: &str) -> Option<String> {
        let known = self.known.get(name).cloned();
        known.or_else(|| (self.environment)(name.strip_prefix("env.")?))
    }
}

/// One entry of `[vars]`.
#[derive(Default)]
struct Definition {
    default: Option<(String, Range<usize>)>,
    env: Option<String>,
    file: Option<(String, Range<usize>)>,
    secret: bool,
}

impl<'t> Scope<'t> {
    /// Makes the variables of the profile `root` in `folder`, for one cell of its matrix.
    pub fn new(
        root: &'t DeTable<'t>,
        folder: &Path,
        given: &'t Given,
        cell: Option<Cell>,
    ) -> Scope<'t> {
        let folder = absolute(folder);
        Scope { root, given, cell, folder, active: RefCell::default(), known: RefCell::default() }
    }

    /// Looks at all of `[vars]`, so that everything that lacks a value is told at once.
    pub fn check(&self, faults: &Faults<'_>) {
        let names: Vec<&str> = self.own().map(|(name, _, _)| name).collect();
        for (name, span, _) in self.own() {
            if !template::is_name(name) || name.contains('.') {
                let message =
                    format!("`{name}` in [vars] is no name: letters, digits, `_` and `-`");
                faults.add(&span, message, None);
            } else {
                self.lookup(name, &span, faults);
            }
        }
        let place = self.vars().map_or(0..0, |vars| vars.span());
        for name in self.given.names().filter(|name| !names.contains(name)) {
            let from = match self.given.value(name) {
                Some((_, Origin::File(path))) => path.display().to_string(),
                _ => "The command line".into(),
            };
            let hint = nearest(name, names.iter().copied());
            faults.add(
                &place,
                format!("{from} sets `{name}`, which [vars] does not have"),
                hint.map(|known| format!("Did you mean `{known}`?")),
            );
        }
    }

    /// Returns what all variables stand for. What is at fault is told, and left out.
    pub fn values(&self, faults: &Faults<'_>) -> Variables {
        let own = self.own().map(|(name, span, _)| (name, span));
        let of_image =
            |key| get(self.root, "image").and_then(|at| get(at.get_ref().as_table()?, key));
        let built_in = BUILT_IN.into_iter().filter(|name| match *name {
            "build.name" => of_image("name").is_some(),
            "image.size" => of_image("size").is_some(),
            _ => true,
        });
        let names = own.chain(built_in.map(|name| (name, 0..0)));
        let known = names
            .filter_map(|(name, span)| Some((name.to_string(), self.lookup(name, &span, faults)?)));
        Variables { known: Arc::new(known.collect()), environment: self.given.environment }
    }

    /// Puts the variables into `text`, which stands at `span`. `None` when one is at fault, which is
    /// told then.
    pub fn expand(&self, text: &str, span: &Range<usize>, faults: &Faults<'_>) -> Option<String> {
        if !text.contains("{{") {
            return Some(text.to_string());
        }
        let place = |opening: usize| {
            let raw = faults.raw(span);
            let at = template::place(raw, opening)?;
            let length = raw[at..].find("}}").map_or(2, |end| end + 2);
            Some(span.start + at..span.start + at + length)
        };
        let pieces = match template::pieces(text) {
            Ok(pieces) => pieces,
            Err(misplaced) => {
                let place = place(misplaced.opening).unwrap_or(span.clone());
                let hint = "Write `{{{{` for two braces that stand for themselves".to_string();
                faults.add(&place, misplaced.message, Some(hint));
                return None;
            }
        };
        let mut whole = Some(String::new());
        for (piece, opening) in pieces {
            let found = match piece {
                Piece::Text(text) => Some(text.to_string()),
                Piece::Name(name) => {
                    let place = place(opening).unwrap_or(span.clone());
                    self.lookup(name, &place, faults)
                }
            };
            whole = whole.zip(found).map(|(whole, found)| whole + &found);
        }
        whole
    }

    /// Returns the value of a variable that is named at `span`. `None` when it is at fault, which is told
    /// then.
    pub fn lookup(&self, name: &str, span: &Range<usize>, faults: &Faults<'_>) -> Option<String> {
        if let Some(known) = self.known.borrow().get(name) {
            return known.clone();
        }
        if self.active.borrow().iter().any(|active| active == name) {
            let chain = self.active.borrow().join(" → ");
            faults.add(span, format!("`{name}` needs itself: {chain} → {name}"), None);
            return None;
        }
        self.active.borrow_mut().push(name.to_string());
        let found = self.find(name, span, faults);
        self.active.borrow_mut().pop();
        self.known.borrow_mut().insert(name.to_string(), found.clone());
        found
    }

    fn find(&self, name: &str, span: &Range<usize>, faults: &Faults<'_>) -> Option<String> {
        if let Some((_, place, value)) = self.own().find(|(own, _, _)| *own == name) {
            return self.value_of(name, &place, value, faults);
        }
        if let Some(variable) = name.strip_prefix("env.") {
            let found = (self.given.environment)(variable);
            if found.is_none() {
                faults.add(span, format!("The environment has no variable {variable}"), None);
            }
            return found;
        }
        if let Some(axis) = name.strip_prefix("matrix.") {
            return self.of_cell(axis, span, faults);
        }
        match name {
            "build.name" => self.in_image("name", span, faults),
            "build.time" => Some(rfc3339(self.time())),
            "build.dir" => Some(self.folder.to_string_lossy().into_owned()),
            "image.size" => {
                let text = self.in_image("size", span, faults)?;
                // What is no size is told where it stands.
                units::parse_size(&text).ok().map(|bytes| bytes.to_string())
            }
            _ => {
                let known = self.own().map(|(name, _, _)| name).chain(BUILT_IN);
                let hint = match nearest(name, known) {
                    Some(known) => format!("Did you mean `{known}`?"),
                    None => format!(
                        "[vars] defines variables; built in are {}, and env.NAME",
                        BUILT_IN.join(", ")
                    ),
                };
                faults.add(span, format!("There is no variable `{name}`"), Some(hint));
                None
            }
        }
    }

    /// The value of an axis of the matrix.
    fn of_cell(&self, axis: &str, span: &Range<usize>, faults: &Faults<'_>) -> Option<String> {
        let found = self.cell.as_ref().and_then(|cell| cell.value(axis)).map(str::to_string);
        if found.is_none() {
            let axes = self.cell.iter().flat_map(|cell| &cell.values);
            let hint = nearest(axis, axes.map(|(axis, _)| axis.as_str()));
            let hint = hint.map(|near| format!("Did you mean `matrix.{near}`?"));
            faults.add(span, format!("[matrix] has no axis `{axis}`"), hint);
        }
        found
    }

    /// Returns a string of `[image]`, its variables put in; none when it is not there or at fault.
    pub fn image_string(&self, key: &str, faults: &Faults<'_>) -> Option<String> {
        self.in_image(key, &(0..0), faults)
    }

    /// The value of an entry of `[vars]`: the command line's, a file's, the environment's, its own.
    fn value_of(
        &self,
        name: &str,
        place: &Range<usize>,
        value: &'t Spanned<DeValue<'t>>,
        faults: &Faults<'_>,
    ) -> Option<String> {
        let definition = self.definition(name, value, faults)?;
        let found = match self.given.value(name) {
            Some((_, Origin::CommandLine)) if definition.secret => {
                faults.add(
                    place,
                    format!("`{name}` is secret, and a command line is not"),
                    Some("Give it in the environment, in a file, or by --var-file".into()),
                );
                return None;
            }
            Some((given, _)) => Some(given.clone()),
            None => self.own_value(name, place, &definition, faults)?,
        };
        let Some(found) = found else {
            let from =
                definition.env.map(|env| format!(", or the variable {env} in the environment"));
            let hint = if definition.secret {
                format!("Give it by --var-file{}", from.unwrap_or_default())
            } else {
                format!("Give it by --var {name}=…{}", from.unwrap_or_default())
            };
            faults.add(place, format!("The variable `{name}` has no value"), Some(hint));
            return None;
        };
        if definition.secret {
            if found.len() < SHORTEST {
                let message = format!("The secret `{name}` has fewer than {SHORTEST} characters");
                faults.add(place, message, Some("It could not be hidden in what is shown".into()));
                return None;
            }
            self.given.secrets.add(&found);
        }
        Some(found)
    }

    /// Outer `None` for a fault that was told, inner `None` for no value.
    fn own_value(
        &self,
        name: &str,
        place: &Range<usize>,
        definition: &Definition,
        faults: &Faults<'_>,
    ) -> Option<Option<String>> {
        let env = definition.env.as_deref();
        if let Some(found) = env.and_then(|env| (self.given.environment)(env)) {
            return Some(Some(found));
        }
        if let Some((file, span)) = &definition.file {
            let path = faults.folder(span).join(file);
            return match given::read(&path) {
                Ok(text) => Some(Some(text.strip_suffix('\n').unwrap_or(&text).to_string())),
                Err(error) => {
                    let message = format!("Cannot read {} for `{name}`: {error}", path.display());
                    faults.add(place, message, None);
                    None
                }
            };
        }
        match &definition.default {
            Some((text, span)) => self.expand(text, span, faults).map(Some),
            None => Some(None),
        }
    }

    fn definition(
        &self,
        name: &str,
        value: &'t Spanned<DeValue<'t>>,
        faults: &Faults<'_>,
    ) -> Option<Definition> {
        let mut definition = Definition::default();
        let Some(table) = value.get_ref().as_table() else {
            let Some(text) = scalar(value) else {
                let kind = value.get_ref().type_str();
                let message = format!(
                    "`{name}` in [vars] must be a text, a number, true, false or a table, not {kind}"
                );
                faults.add(&value.span(), message, None);
                return None;
            };
            definition.default = Some((text, value.span()));
            return Some(definition);
        };
        let reader = Reader::new(table, value.span(), format!("[vars] {name}"), faults);
        definition.secret = reader.bool("secret").unwrap_or(false);
        let text = |key: &'static str| {
            let value = reader.value(key)?;
            let text = value.get_ref().as_str();
            if text.is_none() {
                reader.fault(
                    &value.span(),
                    format!("`{key}` of `{name}` in [vars] must be a string"),
                );
            }
            text.map(|text| (text.to_string(), value.span()))
        };
        definition.env = text("env").map(|(name, _)| name);
        definition.file = text("file");
        text("description");
        if let Some(value) = reader.value("default") {
            match scalar(value) {
                Some(_) if definition.secret => reader.fault_with_hint(
                    &value.span(),
                    format!("The secret `{name}` has its value in the profile"),
                    "A secret comes from `env`, from a `file`, or by --var-file",
                ),
                Some(text) => definition.default = Some((text, value.span())),
                None => reader.fault(
                    &value.span(),
                    format!(
                        "`default` of `{name}` in [vars] must be a text, a number, true or false"
                    ),
                ),
            }
        }
        reader.finish();
        Some(definition)
    }

    /// The string or number that `[image]` has for `key`.
    fn in_image(&self, key: &str, span: &Range<usize>, faults: &Faults<'_>) -> Option<String> {
        let value = get(self.root, "image").and_then(|image| get(image.get_ref().as_table()?, key));
        let Some(text) = value.and_then(|value| value.get_ref().as_str()) else {
            faults.add(span, format!("[image] says no `{key}`"), None);
            return None;
        };
        let value_span = value.map_or(span.clone(), |value| value.span());
        self.expand(text, &value_span, faults)
    }

    /// `SOURCE_DATE_EPOCH` stands for now where builds are to be the same again.
    fn time(&self) -> SystemTime {
        let epoch = (self.given.environment)("SOURCE_DATE_EPOCH");
        let epoch = epoch.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        epoch.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)).unwrap_or(self.given.time)
    }

    fn vars(&self) -> Option<&'t Spanned<DeValue<'t>>> {
        get(self.root, "vars")
    }

    fn own(&self) -> impl Iterator<Item = (&'t str, Range<usize>, &'t Spanned<DeValue<'t>>)> {
        let table = self.vars().and_then(|vars| vars.get_ref().as_table());
        let entries = table.into_iter().flat_map(|table| table.iter());
        entries.map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
    }
}

fn get<'t>(table: &'t DeTable<'t>, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
    table.iter().find(|(known, _)| known.get_ref() == key).map(|(_, value)| value)
}

/// A text, or a number or a boolean as text.
pub(super) fn scalar(value: &Spanned<DeValue<'_>>) -> Option<String> {
    let value = value.get_ref();
    value
        .as_str()
        .map(str::to_string)
        .or_else(|| value.as_bool().map(|value| value.to_string()))
        .or_else(|| {
            let number = value.as_integer()?;
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string())
        })
}

#[cfg(test)]
#[path = "vars_tests.rs"]
mod tests;
