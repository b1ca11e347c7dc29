//! Templates in HCL2, Packer's newer form. References to variables are understood; what else is an
//! expression is not evaluated, and told.

use std::collections::BTreeMap;
use std::str::FromStr;

use hcl::expr::{HeredocStripMode, ObjectKey, TemplateExpr, TraversalOperator};
use hcl::template::Element;
use hcl::{Block, Body, Expression, Structure, Template as Text};
use serde_json::{Map, Value};

use super::template::{Part, Template, Variable};
use super::text::{reference, scalar};

/// Deepest nesting; the parser would go on until its stack is full.
const DEEPEST: usize = 100;

/// Reads a template.
///
/// # Errors
/// A sentence: it is no HCL.
pub fn read(text: &str) -> Result<Template, String> {
    if depth(text) > DEEPEST {
        return Err(format!("It is nested more than {DEEPEST} deep"));
    }
    let body: Body = hcl::parse(text).map_err(|error| format!("It is no HCL: {error}"))?;
    let mut reader = Reader::default();
    for structure in body {
        match structure {
            Structure::Block(block) => reader.top(block),
            Structure::Attribute(attribute) => {
                reader.note(format!("`{}` of the template", attribute.key.as_str()));
            }
        }
    }
    Ok(reader.finish())
}

#[derive(Debug, Default)]
struct Reader {
    template: Template,
    /// The sources by their labels, as a build names them.
    sources: BTreeMap<String, Part>,
    /// The sources that builds name, in order.
    built: Vec<(String, Map<String, Value>)>,
}

impl Reader {
    fn note(&mut self, text: String) {
        self.template.notes.push(text);
    }

    fn top(&mut self, block: Block) {
        let labels: Vec<String> =
            block.labels.iter().map(|label| label.as_str().to_string()).collect();
        match (block.identifier.as_str(), labels.as_slice()) {
            ("packer", _) => {}
            ("variable", [name]) => self.variable(name.clone(), block.body),
            ("locals", _) => {
                for attribute in block.body.into_attributes() {
                    let value = self.value(&attribute.expr);
                    let default = value.as_ref().and_then(scalar);
                    let name = attribute.key.as_str().to_string();
                    if default.is_none() {
                        self.note(format!("The value of `local.{name}`"));
                    }
                    self.template.variables.push(Variable { name, default, ..Variable::default() });
                }
            }
            ("source", [kind, name]) => {
                let settings = self.settings(block.body);
                let part = Part { kind: kind.clone(), settings };
                self.sources.insert(format!("{kind}.{name}"), part);
            }
            ("build", _) => self.build(block.body),
            (other, _) => self.note(format!("The block `{other}`")),
        }
    }

    fn variable(&mut self, name: String, body: Body) {
        let mut variable = Variable { name, ..Variable::default() };
        for structure in body {
            let Structure::Attribute(attribute) = structure else { continue };
            match attribute.key.as_str() {
                "default" => match environment(&attribute.expr) {
                    Some(env) => variable.env = Some(env),
                    None => {
                        let value = self.value(&attribute.expr);
                        variable.default = value.as_ref().and_then(scalar);
                        if variable.default.is_none() && value.is_some_and(|v| !v.is_null()) {
                            let name = &variable.name;
                            self.template.notes.push(format!("The list or table `var.{name}`"));
                        }
                    }
                },
                "sensitive" => variable.secret = attribute.expr == Expression::Bool(true),
                "description" => {
                    variable.description = self.value(&attribute.expr).as_ref().and_then(scalar);
                }
                _ => {}
            }
        }
        self.template.variables.push(variable);
    }

    fn build(&mut self, body: Body) {
        for structure in body {
            match structure {
                Structure::Attribute(attribute) if attribute.key.as_str() == "sources" => {
                    let names = self.value(&attribute.expr);
                    for name in names.as_ref().and_then(Value::as_array).into_iter().flatten() {
                        let name = name.as_str().unwrap_or_default();
                        let name = name.strip_prefix("source.").unwrap_or(name).to_string();
                        self.built.push((name, Map::new()));
                    }
                }
                Structure::Attribute(attribute) => match attribute.key.as_str() {
                    "name" | "description" => {}
                    key => self.note(format!("`{key}` of the build")),
                },
                Structure::Block(block) => self.in_build(block),
            }
        }
    }

    fn in_build(&mut self, block: Block) {
        let label = block.labels.first().map(|label| label.as_str().to_string());
        match (block.identifier.as_str(), label) {
            ("source", Some(name)) => {
                let name = name.strip_prefix("source.").unwrap_or(&name).to_string();
                let settings = self.settings(block.body);
                self.built.push((name, settings));
            }
            ("provisioner", Some(kind)) => {
                let settings = self.settings(block.body);
                self.template.provisioners.push(Part { kind, settings });
            }
            ("post-processor", Some(kind)) => {
                let settings = self.settings(block.body);
                self.template.post_processors.push(Part { kind, settings });
            }
            ("post-processors", _) => {
                block.body.into_blocks().for_each(|block| self.in_build(block));
            }
            (other, _) => self.note(format!("The block `{other}` of the build")),
        }
    }

    fn settings(&mut self, body: Body) -> Map<String, Value> {
        let mut settings = Map::new();
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => {
                    if let Some(value) = self.value(&attribute.expr) {
                        settings.insert(attribute.key.as_str().into(), value);
                    }
                }
                Structure::Block(block) => {
                    let value = self.settings(block.body);
                    settings.insert(block.identifier.as_str().into(), Value::Object(value));
                }
            }
        }
        settings
    }

    /// Returns the value of an expression; `None` for one that would have to be evaluated, which is told.
    fn value(&mut self, expression: &Expression) -> Option<Value> {
        match expression {
            Expression::Null => Some(Value::Null),
            Expression::Bool(flag) => Some(Value::Bool(*flag)),
            Expression::Number(number) => {
                number.as_i64().map(Value::from).or_else(|| number.as_f64().map(Value::from))
            }
            Expression::String(text) => Some(Value::String(text.clone())),
            Expression::Array(items) => {
                Some(items.iter().filter_map(|item| self.value(item)).collect())
            }
            Expression::Object(object) => {
                let mut map = Map::new();
                for (key, value) in object {
                    let key = match key {
                        ObjectKey::Identifier(name) => Some(name.as_str().to_string()),
                        ObjectKey::Expression(key) => self.value(key).as_ref().and_then(scalar),
                        _ => None,
                    };
                    if let (Some(key), Some(value)) = (key, self.value(value)) {
                        map.insert(key, value);
                    }
                }
                Some(Value::Object(map))
            }
            Expression::Parenthesis(inner) => self.value(inner),
            Expression::TemplateExpr(template) => self.template_text(template).map(Value::String),
            Expression::Traversal(_) => match name_of(expression) {
                Some(name) => Some(Value::String(name)),
                None => self.unknown(expression),
            },
            _ => self.unknown(expression),
        }
    }

    fn unknown(&mut self, expression: &Expression) -> Option<Value> {
        let text = hcl::format::to_string(expression).unwrap_or_default();
        self.note(format!("The expression `{}`", text.trim()));
        None
    }

    fn template_text(&mut self, template: &TemplateExpr) -> Option<String> {
        let parsed = match template {
            TemplateExpr::Heredoc(heredoc) if heredoc.strip == HeredocStripMode::Indent => {
                Text::from_str(&dedented(&heredoc.template)).ok()?
            }
            other => Text::from_expr(other).ok()?,
        };
        let mut text = String::new();
        for element in parsed.elements() {
            match element {
                Element::Literal(literal) => text.push_str(literal),
                Element::Interpolation(interpolation) => {
                    let value = self.value(&interpolation.expr)?;
                    text.push_str(&scalar(&value)?);
                }
                Element::Directive(_) => {
                    self.note("A template with `%{…}`".into());
                    return None;
                }
            }
        }
        Some(text)
    }

    fn finish(mut self) -> Template {
        if self.built.is_empty() {
            let all: Vec<_> = self.sources.keys().cloned().collect();
            self.built = all.into_iter().map(|name| (name, Map::new())).collect();
        }
        for (name, settings) in std::mem::take(&mut self.built) {
            match self.sources.remove(&name) {
                Some(mut part) => {
                    part.settings.extend(settings);
                    self.template.builders.push(part);
                }
                None => {
                    self.note(format!("The source `{name}`, which the template does not define"))
                }
            }
        }
        self.template
    }
}

/// Returns the profile's variable that a traversal such as `var.name` is; a source is its own name.
fn name_of(expression: &Expression) -> Option<String> {
    let Expression::Traversal(traversal) = expression else { return None };
    let Expression::Variable(root) = &traversal.expr else { return None };
    let mut path = vec![root.as_str().to_string()];
    for operator in &traversal.operators {
        let TraversalOperator::GetAttr(name) = operator else { return None };
        path.push(name.as_str().to_string());
    }
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["var" | "local", name] => Some(reference(name)),
        ["path", "root" | "cwd"] => Some(reference("build.dir")),
        ["source" | "build", "name"] => Some(reference("build.name")),
        ["source", kind, name] => Some(format!("source.{kind}.{name}")),
        _ => None,
    }
}

/// How deep brackets are nested at most, also those in texts.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Removes the blanks that all lines begin with.
fn dedented(text: &str) -> String {
    let blanks = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let lines = || text.split_inclusive('\n');
    let least = lines().filter(|line| !line.trim().is_empty()).map(blanks).min().unwrap_or(0);
    lines().map(|line| line.get(least.min(blanks(line))..).unwrap_or_default()).collect()
}

/// Returns the variable of the environment that `env("NAME")` is.
fn environment(expression: &Expression) -> Option<String> {
    let Expression::FuncCall(call) = expression else { return None };
    match (call.name.name.as_str(), call.args.as_slice()) {
        ("env", [Expression::String(name)]) => Some(name.clone()),
        _ => None,
    }
}
