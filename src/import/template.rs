//! What a Packer template says, in the shape that both of its forms are read to.

use serde_json::{Map, Value};

/// A template. Texts are as the template has them but for interpolations of HCL, which [`super::text`]
/// knows.
#[derive(Debug, Default)]
pub struct Template {
    /// Its variables.
    pub variables: Vec<Variable>,
    /// Its builders, or sources.
    pub builders: Vec<Part>,
    /// What is done in the guest, in order.
    pub provisioners: Vec<Part>,
    /// What is done with the images.
    pub post_processors: Vec<Part>,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// A variable of a template.
#[derive(Debug, Default)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value when it is given none.
    pub default: Option<String>,
    /// The variable of the environment that it takes its value from.
    pub env: Option<String>,
    /// Whether it is a secret.
    pub secret: bool,
    /// What it is for.
    pub description: Option<String>,
}

/// A builder, a provisioner or a post-processor.
#[derive(Debug)]
pub struct Part {
    /// Its type, such as `qemu` or `shell`.
    pub kind: String,
    /// Its settings.
    pub settings: Map<String, Value>,
}
