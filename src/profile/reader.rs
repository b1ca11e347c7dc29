//! A cursor over one TOML table: each key is asked for by name and type, and what nobody asked
//! for is an unknown key. Every fault keeps the place it was found at.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::condition;
use super::faults::Faults;
use super::source::Place;
use super::units;
use super::vars::{Scope, Variables};

/// A value with the span it was read from.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its bytes in the profile.
    pub span: Range<usize>,
}

/// Reads one table.
pub struct Reader<'t, 's> {
    table: &'t DeTable<'t>,
    /// The table's own span: where a missing key is reported.
    span: Range<usize>,
    /// The table's name in messages, e.g. `[image]`.
    name: String,
    asked: RefCell<BTreeSet<&'static str>>,
    faults: &'t Faults<'s>,
    /// What `{{ name }}` stands for; none where strings stand for themselves.
    scope: Option<&'t Scope<'t>>,
}

impl<'t, 's> Reader<'t, 's> {
    /// Starts to read `table`, called `name` in messages.
    pub fn new(
        table: &'t DeTable<'t>,
        span: Range<usize>,
        name: impl Into<String>,
        faults: &'t Faults<'s>,
    ) -> Self {
        Reader { table, span, name: name.into(), asked: RefCell::default(), faults, scope: None }
    }

    /// Puts the variables of `scope` into every string of the table and of those below it.
    pub fn with_scope(mut self, scope: Option<&'t Scope<'t>>) -> Self {
        self.scope = scope;
        self
    }

    fn below(&self, table: &'t DeTable<'t>, span: Range<usize>, name: String) -> Reader<'t, 's> {
        Reader::new(table, span, name, self.faults).with_scope(self.scope)
    }

    /// Returns the string that stands at `span`, its variables put in; `None` when one is at fault.
    fn expanded(&self, text: &str, span: Range<usize>) -> Option<At<String>> {
        let value = match self.scope {
            Some(scope) => scope.expand(text, &span, self.faults)?,
            None => text.to_string(),
        };
        Some(At { value, span })
    }

    /// Returns what a string with variables stands for, where a number or a boolean is wanted.
    fn of_variables(&self, value: &Spanned<DeValue<'_>>) -> Option<Option<String>> {
        let text = value.get_ref().as_str().filter(|text| text.contains("{{"))?;
        self.scope?;
        Some(self.expanded(text, value.span()).map(|at| at.value))
    }

    /// Returns what the variables stand for, for a text that is read later; none where strings stand
    /// for themselves.
    pub fn variables(&self) -> Option<Variables> {
        self.scope.map(|scope| scope.values(self.faults))
    }

    /// Returns the raw value of `key`.
    pub fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked.borrow_mut().insert(key);
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, value)| value)
    }

    /// Returns the table's span.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Adds a fault about the value at `span`.
    pub fn fault(&self, span: &Range<usize>, message: impl Into<String>) {
        self.faults.add(span, message, None);
    }

    /// Adds a fault about a place that was read before.
    pub fn fault_at(&self, place: Place, message: String, hint: Option<String>) {
        self.faults.add_at(place, message, hint);
    }

    /// Adds a fault with a hint.
    pub fn fault_with_hint(
        &self,
        span: &Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.faults.add(span, message, Some(hint.into()));
    }

    /// Returns what messages call the table: `[net]`, the profile, `upload` in marks.
    fn called(&self) -> String {
        match self.name.starts_with('[') || self.name.contains(' ') {
            true => self.name.clone(),
            false => format!("`{}`", self.name),
        }
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = value.get_ref().type_str();
        self.fault(
            &value.span(),
            format!("`{key}` in {} must be {expected}, not {found}", self.called()),
        );
    }

    /// Reads a string.
    pub fn string(&self, key: &'static str) -> Option<At<String>> {
        let value = self.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string");
            return None;
        };
        self.expanded(text, value.span())
    }

    /// Reads a string that must be there.
    pub fn required_string(&self, key: &'static str) -> Option<At<String>> {
        if self.value(key).is_none() {
            self.fault(&self.span, format!("{} has no `{key}`", self.called()));
        }
        self.string(key)
    }

    /// Reads a string through `parse`, whose error is a sentence.
    pub fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let text = self.string(key)?;
        match parse(&text.value) {
            Ok(value) => Some(At { value, span: text.span }),
            Err(message) => {
                self.fault(&text.span, capitalised(&format!("`{key}`: {message}")));
                None
            }
        }
    }

    /// Reads a size in bytes.
    pub fn size(&self, key: &'static str) -> Option<At<u64>> {
        self.parsed(key, units::parse_size)
    }

    /// Reads a duration.
    pub fn duration(&self, key: &'static str) -> Option<At<Duration>> {
        self.parsed(key, units::parse_duration)
    }

    /// Reads a boolean.
    pub fn bool(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let found = match self.of_variables(value) {
            Some(text) => text?.parse().ok(),
            None => value.get_ref().as_bool(),
        };
        found.or_else(|| {
            self.wrong_type(key, value, "true or false");
            None
        })
    }

    /// Reads what can only be switched on. Returns whether it is.
    pub fn true_of(&self, key: &'static str) -> bool {
        let on = self.bool(key);
        if on == Some(false) {
            let span = self.value(key).map_or_else(|| self.span(), Spanned::span);
            self.fault_with_hint(&span, format!("`{key} = false` does nothing"), "Leave it out");
        }
        on == Some(true)
    }

    /// Reads a whole number within `range`.
    pub fn integer(
        &self,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<At<i64>> {
        let value = self.value(key)?;
        self.integer_of(key, value, range)
    }

    fn integer_of(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<At<i64>> {
        let number = match (self.of_variables(value), value.get_ref().as_integer()) {
            (Some(text), _) => text?.parse::<i64>(),
            (None, Some(number)) => i64::from_str_radix(number.as_str(), number.radix()),
            (None, None) => {
                self.wrong_type(key, value, "a whole number");
                return None;
            }
        };
        match number {
            Ok(number) if range.contains(&number) => Some(At { value: number, span: value.span() }),
            _ => {
                let (low, high) = range.into_inner();
                self.fault(&value.span(), format!("`{key}` must be between {low} and {high}"));
                None
            }
        }
    }

    /// Reads a condition on variables, and says whether it holds.
    pub fn condition(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string");
            return None;
        };
        let scope = self.scope?;
        let mut lookup = |name: &str| scope.lookup(name, &value.span(), self.faults);
        match condition::holds(text, &mut lookup) {
            Ok(held) => held,
            Err(message) => {
                let message = format!("`{key}` is no condition: {message}");
                self.fault_with_hint(&value.span(), message, "Write for example \"role == 'web'\"");
                None
            }
        }
    }

    /// Reads one whole number or a list of them.
    pub fn integers(
        &self,
        key: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<Vec<i64>> {
        let value = self.value(key)?;
        match value.get_ref().as_array() {
            Some(items) => items
                .iter()
                .map(|item| self.integer_of(key, item, range.clone()).map(|at| at.value))
                .collect(),
            None => self.integer_of(key, value, range).map(|at| vec![at.value]),
        }
    }

    /// Reads a table, each of whose values is one string or a list of them.
    pub fn string_lists(&self, key: &'static str) -> Vec<(At<String>, Vec<At<String>>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table of strings");
            return Vec::new();
        };
        let read = |(name, item): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
            let texts = self.strings_of(name.get_ref(), item)?;
            Some((At { value: name.get_ref().to_string(), span: name.span() }, texts))
        };
        table.iter().filter_map(read).collect()
    }

    /// Reads one string or a list of them.
    pub fn strings(&self, key: &'static str) -> Option<Vec<At<String>>> {
        let value = self.value(key)?;
        self.strings_of(key, value)
    }

    /// Reads `value`, which stands at `key`, as one string or a list of them.
    pub fn strings_of(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<At<String>>> {
        if let Some(text) = value.get_ref().as_str() {
            return Some(vec![self.expanded(text, value.span())?]);
        }
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a string or a list of strings");
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => texts.push(self.expanded(text, item.span())?),
                None => {
                    self.wrong_type(key, item, "a list of strings");
                    return None;
                }
            }
        }
        Some(texts)
    }

    /// Reads a table of strings, e.g. an environment.
    pub fn string_map(&self, key: &'static str) -> Vec<(String, At<String>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table of strings");
            return Vec::new();
        };
        let mut pairs = Vec::with_capacity(table.len());
        for (name, item) in table.iter() {
            match item.get_ref().as_str() {
                Some(text) => {
                    if let Some(text) = self.expanded(text, item.span()) {
                        pairs.push((name.get_ref().to_string(), text));
                    }
                }
                None => self.wrong_type(name.get_ref(), item, "a string"),
            }
        }
        pairs
    }

    /// Reads a table whose keys are not known here, with values as a command line would have them:
    /// text, whole numbers, and `on` or `off` for true and false.
    pub fn settings(&self, key: &'static str) -> Vec<(At<String>, At<String>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return Vec::new();
        };
        let mut settings = Vec::with_capacity(table.len());
        for (name, item) in table.iter() {
            let text = match item.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => {
                    let decimal = i64::from_str_radix(number.as_str(), number.radix());
                    decimal.map_or_else(|_| number.as_str().to_string(), |n| n.to_string())
                }
                DeValue::Boolean(true) => "on".to_string(),
                DeValue::Boolean(false) => "off".to_string(),
                _ => {
                    let expected = "a string, a whole number, true or false";
                    self.wrong_type(name.get_ref(), item, expected);
                    continue;
                }
            };
            let name = At { value: name.get_ref().to_string(), span: name.span() };
            settings.push((name, At { value: text, span: item.span() }));
        }
        settings
    }

    /// Reads the table at `key`; `None` when it is not there.
    pub fn table(&self, key: &'static str) -> Option<Reader<'t, 's>> {
        let value = self.value(key)?;
        match value.get_ref().as_table() {
            Some(table) => {
                let name = match self.name.starts_with('[') {
                    true => key.to_string(),
                    false => format!("[{key}]"),
                };
                Some(self.below(table, value.span(), name))
            }
            None => {
                self.wrong_type(key, value, "a table");
                None
            }
        }
    }

    /// Reads `value` as a nested table called `name`.
    pub fn table_of(&self, name: &str, value: &'t Spanned<DeValue<'t>>) -> Option<Reader<'t, 's>> {
        let table = value.get_ref().as_table()?;
        Some(self.below(table, value.span(), name.to_string()))
    }

    /// Reads the table at `key`, or the tables of a list there.
    pub fn one_or_more(&self, key: &'static str) -> Vec<Reader<'t, 's>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let items: Vec<&'t Spanned<DeValue<'t>>> = match value.get_ref().as_array() {
            Some(items) => items.iter().collect(),
            None => vec![value],
        };
        let mut readers = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref().as_table() {
                Some(table) => readers.push(self.below(table, item.span(), key.to_string())),
                None => self.wrong_type(key, item, "a table or a list of tables"),
            }
        }
        readers
    }

    /// Reads the list of tables at `key`.
    pub fn tables(&self, key: &'static str) -> Vec<Reader<'t, 's>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let parent = self.name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let name = parent.map_or(key.to_string(), |parent| format!("{parent}.{key}"));
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, &format!("written as [[{name}]]"));
            return Vec::new();
        };
        let mut readers = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => {
                    readers.push(self.below(table, item.span(), format!("[[{name}]]")));
                }
                None => self.wrong_type(key, item, "a table"),
            }
        }
        readers
    }

    /// Ends the reading: every key that nobody asked for is a fault, with the nearest known one.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        #[cfg(test)]
        ASKED.with_borrow_mut(|all| all.extend(asked.iter().map(|key| (self.name.clone(), *key))));
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if asked.contains(name) {
                continue;
            }
            let hint = match nearest(name, asked.iter().copied()) {
                Some(known) => format!("Did you mean `{known}`?"),
                None => {
                    let known: Vec<String> = asked.iter().map(|key| format!("`{key}`")).collect();
                    format!("Known here: {}", known.join(", "))
                }
            };
            self.faults.add(
                &key.span(),
                format!("Unknown key `{name}` in {}", self.called()),
                Some(hint),
            );
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Tables and keys that readers of this thread have asked for.
    static ASKED: RefCell<BTreeSet<(String, &'static str)>> = RefCell::default();
}

/// Returns the tables and keys that readers of this thread have asked for.
#[cfg(test)]
pub fn asked_keys() -> BTreeSet<(String, &'static str)> {
    ASKED.take()
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Returns the candidate nearest to `name` by edits, when it is near enough to be a slip.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= 1 + candidate.len().max(name.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_key_and_nonsense_does_not() {
        let keys = ["name", "source", "format"];
        assert_eq!(nearest("nmae", keys), Some("name"));
        assert_eq!(nearest("sorce", keys), Some("source"));
        assert_eq!(nearest("bootloader", keys), None);
    }
}
