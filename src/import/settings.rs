//! The settings of a template's part, which are taken one by one.

use serde_json::{Map, Value};

use super::template::Part;
use super::text::scalar;

/// Settings, each taken when it is understood; what is left has no counterpart.
pub(super) struct Settings {
    pub(super) of: String,
    pub(super) left: Map<String, Value>,
}

impl Settings {
    pub(super) fn of(name: &str, part: Part) -> Settings {
        let mut left = part.settings;
        left.retain(|_, value| !value.is_null());
        Settings { of: name.into(), left }
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key)
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = self.take(key).as_ref().and_then(scalar)?;
        Some(text).filter(|text| !text.is_empty())
    }

    pub(super) fn is(&mut self, key: &str) -> bool {
        self.text(key).is_some_and(|text| text == "true")
    }

    /// A list of texts, or one.
    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        match self.take(key) {
            Some(Value::Array(items)) => items.iter().filter_map(scalar).collect(),
            Some(one) => scalar(&one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    pub(super) fn table(&mut self, key: &str) -> Vec<(String, String)> {
        let Some(Value::Object(table)) = self.take(key) else { return Vec::new() };
        table.iter().filter_map(|(name, value)| Some((name.clone(), scalar(value)?))).collect()
    }
}
