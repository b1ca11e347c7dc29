//! `[matrix]`: one profile for several images. Each key but `exclude` is an axis with its values; the
//! combinations are the cells, whose values are the variables `matrix.AXIS`.
//!
//! Cells that boot the same and differ in size are built at the smallest of their sizes, so that they
//! have their layers in common; each is grown when its disk is sealed.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::faults::Faults;
use super::given::Given;
use super::reader::nearest;
use super::template;
use super::units;
use super::vars::{Scope, scalar};

/// The key of combinations that are left out.
const EXCLUDE: &str = "exclude";
/// Most cells; beyond that a list was multiplied by mistake.
const MAXIMUM_CELLS: usize = 256;
/// What the guest's boot does not depend on, or what [`Matrix`] decides itself.
const BEYOND_BOOT: [&str; 6] = ["include", "matrix", "vars", "step", "test", "output"];
/// What of `[image]` tells cells of one boot apart.
const OF_THE_CELL: [&str; 3] = ["name", "size", "build_size"];

/// One combination of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Axes and values, in the profile's order.
    pub values: Vec<(String, String)>,
}

impl Cell {
    /// Returns its name: its values, joined. What no file name should have is `_` there.
    pub fn name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
        let values = self.values.iter().map(|(_, value)| value.chars().map(plain).collect());
        values.collect::<Vec<String>>().join("-")
    }

    /// Returns the value of an axis.
    pub fn value(&self, axis: &str) -> Option<&str> {
        self.values.iter().find(|(name, _)| name == axis).map(|(_, value)| value.as_str())
    }

    /// Returns whether `text` means this cell: its name, or some of its values as in
    /// `distro=debian,size=25G`.
    fn is_meant(&self, text: &str) -> bool {
        if !text.contains('=') {
            return self.name() == text;
        }
        text.split(',').all(|pair| {
            let (axis, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.value(axis.trim()) == Some(value.trim())
        })
    }
}

/// All that a profile describes.
pub struct Matrix {
    /// In the profile's order; one without a cell for a profile without a matrix.
    pub variants: Vec<Variant>,
    /// Whether an image's name needs the cell's to be its own.
    suffixed: bool,
}

/// One image of a profile.
pub struct Variant {
    /// Which; none in a profile without a matrix.
    pub cell: Option<Cell>,
    /// The image's name, when it could be told.
    pub image: Option<String>,
    /// The size to build it at, in bytes, when that is not its own.
    pub build_size: Option<u64>,
}

impl Matrix {
    /// Reads `[matrix]` of `root`. `scope` gives the variables of a cell.
    pub fn read<'t>(
        root: &'t DeTable<'t>,
        given: &Given,
        scope: impl Fn(Option<Cell>) -> Scope<'t>,
        faults: &Faults<'_>,
    ) -> Matrix {
        let cells = match root.get("matrix") {
            Some(matrix) => cells(matrix, faults).into_iter().map(Some).collect(),
            None => vec![None],
        };
        // What is at fault in the strings is told when they are read.
        let quiet = faults.of_same_source();
        let mut variants = Vec::with_capacity(cells.len());
        let mut boots: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        let mut seen = Vec::with_capacity(cells.len());
        for cell in cells {
            let scope = scope(cell.clone());
            let image = scope.image_string("name", &quiet);
            let size = scope.image_string("size", &quiet);
            let size = size.and_then(|text| units::parse_size(&text).ok());
            let boot = boot(root, &scope, &quiet);
            if let Some(size) = size {
                let shared = boots.entry(boot.clone()).or_insert((size, false));
                *shared = (shared.0.min(size), shared.1 || shared.0 != size);
            }
            seen.push((boot, size));
            variants.push(Variant { cell, image, build_size: None });
        }
        for (variant, (boot, size)) in variants.iter_mut().zip(seen) {
            let shared = boots.get(&boot).filter(|(_, several)| *several && size.is_some());
            variant.build_size = shared.map(|(size, _)| *size);
        }
        let mut names: Vec<&Option<String>> = variants.iter().map(|one| &one.image).collect();
        names.sort();
        names.dedup();
        let suffixed = names.len() < variants.len();
        let mut matrix = Matrix { variants, suffixed };
        for index in 0..matrix.variants.len() {
            let image = matrix.variants[index].image.take();
            let image = image.map(|name| matrix.name_of(&matrix.variants[index], name));
            matrix.variants[index].image = image;
        }
        matrix.refuse_unknown(root, given, faults);
        matrix
    }

    /// Returns what the image of `variant` is called whose profile says `name`.
    pub fn name_of(&self, variant: &Variant, name: String) -> String {
        match &variant.cell {
            Some(cell) if self.suffixed => format!("{name}-{}", cell.name()),
            _ => name,
        }
    }

    /// Returns the variants that `given` asks for; all when it asks for none.
    pub fn chosen(&self, given: &Given) -> impl Iterator<Item = &Variant> {
        let asked = |variant: &&Variant| {
            given.cells.is_empty() || given.cells.iter().any(|text| variant.is_meant(text))
        };
        self.variants.iter().filter(asked)
    }

    /// Returns whether `text` means any image of the profile.
    pub fn knows(&self, text: &str) -> bool {
        self.variants.iter().any(|variant| variant.is_meant(text))
    }

    /// Returns what to say to one who looks for `text` among the cells.
    pub fn hint(&self, text: &str) -> String {
        let names: Vec<String> = self.variants.iter().filter_map(Variant::cell_name).collect();
        match nearest(text, names.iter().map(String::as_str)) {
            Some(near) => format!("Did you mean `{near}`?"),
            None if names.is_empty() => "The profile has no [matrix]".into(),
            None => format!("Cells are {}; or AXIS=VALUE", shortened(&names)),
        }
    }

    fn refuse_unknown(&self, root: &DeTable<'_>, given: &Given, faults: &Faults<'_>) {
        let place = root.get("matrix").map_or(0..0, Spanned::span);
        for text in given.cells.iter().filter(|text| !self.knows(text)) {
            let message = format!("The command line asks for the cell `{text}`, which is not here");
            faults.add(&place, message, Some(self.hint(text)));
        }
    }
}

impl Variant {
    /// Returns its cell's name.
    pub fn cell_name(&self) -> Option<String> {
        self.cell.as_ref().map(Cell::name)
    }

    /// Returns whether `text` means it: its cell, or its image by name.
    pub fn is_meant(&self, text: &str) -> bool {
        self.cell.as_ref().is_some_and(|cell| cell.is_meant(text))
            || self.image.as_deref() == Some(text)
    }
}

/// At most a dozen of `names`.
pub fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0..=SHOWN => names.join(", "),
        many => format!("{} and {} others", names[..SHOWN].join(", "), many - SHOWN),
    }
}

/// Returns the cells of `[matrix]`; none when something is wrong with it, which is told then.
fn cells(matrix: &Spanned<DeValue<'_>>, faults: &Faults<'_>) -> Vec<Cell> {
    let Some(table) = matrix.get_ref().as_table() else {
        faults.add(&matrix.span(), "`matrix` in the profile must be a table", None);
        return Vec::new();
    };
    let mut keys: Vec<_> = table.iter().filter(|(key, _)| key.get_ref() != EXCLUDE).collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    let mut axes = Vec::with_capacity(keys.len());
    for (key, value) in keys {
        let name = key.get_ref();
        if !template::is_name(name) || name.contains('.') {
            let message = format!("`{name}` in [matrix] is no name: letters, digits, `_` and `-`");
            faults.add(&key.span(), message, None);
        } else if let Some(values) = values(name, value, faults) {
            axes.push((name.to_string(), values));
        }
    }
    if axes.is_empty() {
        let hint = "Such as distro = [\"debian\", \"ubuntu\"]".to_string();
        faults.add(&matrix.span(), "[matrix] has no axis", Some(hint));
        return Vec::new();
    }
    let count = axes.iter().try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()));
    if count.is_none_or(|count| count > MAXIMUM_CELLS) {
        let message = format!("[matrix] has more than {MAXIMUM_CELLS} cells");
        faults.add(&matrix.span(), message, None);
        return Vec::new();
    }
    let mut cells = vec![Cell { values: Vec::new() }];
    for (axis, values) in &axes {
        let longer = |cell: &Cell, value: &String| {
            let mut cell = cell.clone();
            cell.values.push((axis.clone(), value.clone()));
            cell
        };
        cells = cells
            .iter()
            .flat_map(|cell| values.iter().map(move |value| longer(cell, value)))
            .collect();
    }
    if let Some(exclude) = table.get(EXCLUDE) {
        let excluded = exclusions(exclude, &axes, faults);
        cells.retain(|cell| !excluded.iter().any(|one| is_within(cell, one)));
        if cells.is_empty() {
            faults.add(&exclude.span(), "`exclude` leaves no cell", None);
        }
    }
    let mut names: Vec<String> = cells.iter().map(Cell::name).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("Two cells are called `{}`", twice[0]);
        faults.add(&matrix.span(), message, Some("Choose other values".into()));
    }
    cells
}

/// The values of an axis, or of one in an exclusion.
type Axis = (String, Vec<String>);

fn is_within(cell: &Cell, exclusion: &[Axis]) -> bool {
    exclusion.iter().all(|(axis, values)| {
        cell.value(axis).is_some_and(|value| values.iter().any(|one| one == value))
    })
}

/// Reads a list of values, each a text, a number or a boolean.
fn values(name: &str, value: &Spanned<DeValue<'_>>, faults: &Faults<'_>) -> Option<Vec<String>> {
    let wrong = |span, found: &str| {
        let message = format!(
            "`{name}` in [matrix] must be a list of texts, numbers or booleans, not {found}"
        );
        faults.add(&span, message, None);
        None
    };
    let Some(items) = value.get_ref().as_array() else {
        return wrong(value.span(), value.get_ref().type_str());
    };
    let mut values: Vec<String> = Vec::with_capacity(items.len());
    for item in items.iter() {
        let Some(text) = scalar(item) else {
            return wrong(item.span(), item.get_ref().type_str());
        };
        if text.is_empty() || text.contains("{{") || values.contains(&text) {
            let message = format!(
                "`{text}` in `{name}` of [matrix] is empty, there twice, or has a variable"
            );
            faults.add(&item.span(), message, None);
            return None;
        }
        values.push(text);
    }
    if values.is_empty() {
        return wrong(value.span(), "an empty one");
    }
    Some(values)
}

/// Reads `exclude`: each entry has values, or lists of them, for some of the axes.
fn exclusions(value: &Spanned<DeValue<'_>>, axes: &[Axis], faults: &Faults<'_>) -> Vec<Vec<Axis>> {
    let mut exclusions = Vec::new();
    let items = value.get_ref().as_array();
    let tables: Option<Vec<_>> =
        items.map(|items| items.iter().filter_map(|item| item.get_ref().as_table()).collect());
    let whole = items.map(|items| items.len()) == tables.as_ref().map(Vec::len);
    let Some(tables) = tables.filter(|_| whole) else {
        let hint = "Such as exclude = [{ distro = \"debian\", size = \"50G\" }]".to_string();
        faults.add(&value.span(), "`exclude` in [matrix] must be a list of tables", Some(hint));
        return exclusions;
    };
    for table in tables {
        let mut exclusion = Vec::new();
        for (key, value) in table.iter() {
            let name = key.get_ref();
            let Some((axis, known)) = axes.iter().find(|(axis, _)| axis == name) else {
                let hint = nearest(name, axes.iter().map(|(axis, _)| axis.as_str()));
                let hint = hint.map(|near| format!("Did you mean `{near}`?"));
                faults.add(&key.span(), format!("[matrix] has no axis `{name}`"), hint);
                continue;
            };
            let found = match scalar(value) {
                Some(one) => Some(vec![one]),
                None => values(name, value, faults),
            };
            for value in found.iter().flatten().filter(|value| !known.contains(value)) {
                let message = format!("`{name}` in [matrix] has no value `{value}`");
                faults.add(&key.span(), message, None);
            }
            exclusion.extend(found.map(|found| (axis.clone(), found)));
        }
        if !exclusion.is_empty() {
            exclusions.push(exclusion);
        }
    }
    exclusions
}

/// All that the boot of a cell may depend on, its variables put in.
fn boot(root: &DeTable<'_>, scope: &Scope<'_>, quiet: &Faults<'_>) -> String {
    let mut text = String::new();
    for (key, value) in root.iter().filter(|(key, _)| !BEYOND_BOOT.contains(&&**key.get_ref())) {
        match value.get_ref().as_table() {
            Some(image) if key.get_ref() == "image" => {
                let kept = image.iter().filter(|(key, _)| !OF_THE_CELL.contains(&&**key.get_ref()));
                kept.for_each(|(_, value)| put_in(value, scope, quiet, &mut text));
            }
            _ => put_in(value, scope, quiet, &mut text),
        }
    }
    text
}

/// Appends the strings of `value`. All cells have the same keys in the same order.
fn put_in(value: &Spanned<DeValue<'_>>, scope: &Scope<'_>, quiet: &Faults<'_>, text: &mut String) {
    match value.get_ref() {
        DeValue::String(string) => {
            text.push_str(&scope.expand(string, &value.span(), quiet).unwrap_or_default());
            text.push('\0');
        }
        DeValue::Array(items) => items.iter().for_each(|item| put_in(item, scope, quiet, text)),
        DeValue::Table(table) => {
            table.iter().for_each(|(_, value)| put_in(value, scope, quiet, text));
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
