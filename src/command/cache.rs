//! `kvmbake cache`

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::print;
use crate::build::Cancel;
use crate::cache::{
    Cache, CacheError, Discarded, LayerId, Limits, Listed, MemoryForm, Removed, StoredBase, Usage,
    limit_from_environment,
};
use crate::error::Error;
use crate::profile::units::{Size, parse_size};
use crate::report::printable;

/// Shows and tidies the layers of earlier builds and the base images they began with
///
/// They lie in $KVMBAKE_CACHE, $XDG_CACHE_HOME/kvmbake or ~/.cache/kvmbake. Everything there can be
/// removed at any time: it is built again when it is needed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists the bases, and the layers, each below what it is built on
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Says what the cache takes on the disk
    Du {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Removes what is of no use any more, and the least recently used above the limit
    Gc {
        /// What layers and bases may take [default: $KVMBAKE_CACHE_LIMIT, or 20G]
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        limit: Option<u64>,
        /// Remove layers without compressing the memory of others first
        #[arg(long)]
        no_compress: bool,
    },
    /// Removes layers and all that is built on them, or bases
    Rm {
        /// The layers and bases, by the beginnings of their IDs
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        layers: Vec<String>,
        /// Remove all layers, bases and records that are not in use
        #[arg(long)]
        all: bool,
    },
    /// Reads every layer and base in full, and throws away what is damaged
    Verify,
}

/// Does what was asked for.
///
/// # Errors
/// The cache cannot be used, or a check found damage.
pub fn run(args: &Args) -> Result<(), Error> {
    let cache = Cache::open_default()?;
    match &args.command {
        Command::Ls { json: true } => {
            let bases = cache.list_bases()?;
            let mut all: Vec<Value> = bases.iter().map(described_base).collect();
            all.extend(cache.list()?.iter().map(described));
            print(&format!("{:#}\n", Value::from(all)))
        }
        Command::Ls { json: false } => {
            let (layers, bases) = (cache.list()?, cache.list_bases()?);
            if layers.is_empty() && bases.is_empty() {
                return print(&format!("No layers in {}\n", cache.root().display()));
            }
            print(&table(&layers, &bases, SystemTime::now()))
        }
        Command::Du { json } => {
            let (usage, limit) = (cache.usage()?, limit_from_environment()?);
            print(&if *json { usage_as_json(&usage, limit) } else { usage_as_text(&usage, limit) })
        }
        Command::Gc { limit, no_compress } => gc(&cache, *limit, !no_compress),
        Command::Rm { layers, all } => {
            let mut removed = Vec::new();
            if *all {
                removed = cache.remove_all()?;
            }
            // All are looked up before the first goes, as one may be built on another.
            let found = layers.iter().map(|prefix| named(&cache, prefix));
            for one in found.collect::<Result<Vec<_>, _>>()? {
                match one {
                    Named::Layer(id) => removed.extend(cache.remove(id)?),
                    Named::Base(base) => removed.push(cache.remove_base(&base)?),
                }
            }
            print(&list_removed(&removed))
        }
        Command::Verify => verify(&cache),
    }
}

fn gc(cache: &Cache, limit: Option<u64>, pack: bool) -> Result<(), Error> {
    let bytes = limit.map_or_else(limit_from_environment, Ok)?;
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let done = cache.gc(&Limits { bytes, pack, cancel: cancel.flag() })?;
    let mut text = String::new();
    for (id, freed) in &done.packed {
        let _ = writeln!(text, "compressed {id}  freed {}", Size(*freed));
    }
    text += &list_removed(&done.removed);
    let _ = writeln!(text, "Layers and bases take {} of {}", Size(done.after), Size(bytes));
    print(&text)
}

fn verify(cache: &Cache) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let mut told = Ok(());
    let mut tell = |id: LayerId, title: &str| {
        if told.is_ok() {
            told = print(&format!("sound    {}  {}\n", id.short(), printable(title)));
        }
    };
    let found = cache.verify(&mut tell, cancel.flag())?;
    told?;
    let mut told = Ok(());
    let mut sound_bases = 0;
    let mut tell = |base: &StoredBase| {
        sound_bases += 1;
        if told.is_ok() {
            told = print(&format!("sound    {}  {}\n", base.short(), printable(&base.name)));
        }
    };
    let damaged_bases = cache.verify_bases(&mut tell, cancel.flag())?;
    told?;
    let sound = format!("{}, {}", counted(found.sound), Size(found.bytes));
    print(&format!("{sound}, and {} are sound\n", counted_bases(sound_bases)))?;
    if found.discarded.is_empty() && damaged_bases.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = found.discarded.iter().map(Discarded::to_string).collect();
    let told = |base: &StoredBase| {
        format!("base {} ({}): its content is another", base.short(), base.name)
    };
    lines.extend(damaged_bases.iter().map(told));
    let message =
        format!("Threw {} away", counted_both(found.discarded.len(), damaged_bases.len()));
    Err(Error::input(message)
        .excerpt("thrown away", lines)
        .hint("The next build makes them anew; when this happens again, look at the disk"))
}

/// What a person names by the beginning of an ID.
enum Named {
    Layer(LayerId),
    Base(StoredBase),
}

fn named(cache: &Cache, prefix: &str) -> Result<Named, CacheError> {
    let bases = cache.list_bases()?.into_iter();
    let mut bases: Vec<StoredBase> = bases.filter(|base| base.id.starts_with(prefix)).collect();
    match (cache.resolve(prefix), bases.pop()) {
        (Err(CacheError::Unknown { .. }), Some(base)) if bases.is_empty() && !prefix.is_empty() => {
            Ok(Named::Base(base))
        }
        (Ok(id), None) => Ok(Named::Layer(id)),
        (Err(error), None) => Err(error),
        (layers, Some(_)) => {
            let layers = match layers {
                Ok(_) => 1,
                Err(CacheError::Ambiguous { count, .. }) => count,
                Err(_) => 0,
            };
            let count = layers + bases.len() + 1;
            Err(CacheError::Ambiguous { prefix: prefix.into(), count })
        }
    }
}

fn counted_both(layers: usize, bases: usize) -> String {
    match (layers, bases) {
        (layers, 0) => counted(layers),
        (0, bases) => counted_bases(bases),
        (layers, bases) => format!("{} and {}", counted(layers), counted_bases(bases)),
    }
}

fn counted_bases(bases: usize) -> String {
    if bases == 1 { "1 base".into() } else { format!("{bases} bases") }
}

fn counted(layers: usize) -> String {
    if layers == 1 { "1 layer".into() } else { format!("{layers} layers") }
}

fn list_removed(removed: &[Removed]) -> String {
    let mut text = String::new();
    for Removed { id, title, bytes, why, .. } in removed {
        let _ = writeln!(text, "removed {id}  {:>9}  {}  ({why})", size(*bytes), printable(title));
    }
    let bases = removed.iter().filter(|one| one.base).count();
    let freed = removed.iter().map(|one| one.bytes).sum();
    let _ = writeln!(
        text,
        "{} removed, {} freed",
        counted_both(removed.len() - bases, bases),
        Size(freed)
    );
    text
}

/// The bases, and the layers as a tree.
fn table(layers: &[Listed], bases: &[StoredBase], now: SystemTime) -> String {
    let mut text = format!(
        "{:<8}  {:<6}  {:>9}  {:<10}  {:>6}  {:>6}  TITLE\n",
        "ID", "KIND", "SIZE", "MEMORY", "AGE", "USED"
    );
    let mut depths = HashMap::new();
    let since = |at: SystemTime| now.duration_since(at).unwrap_or_default();
    for base in bases {
        let used = if base.in_use { "now".into() } else { ago(since(base.used)) };
        let _ = writeln!(
            text,
            "{:<8}  {:<6}  {:>9}  {:<10}  {:>6}  {used:>6}  {}",
            base.short(),
            "base",
            size(base.allocated),
            "-",
            "-",
            printable(base.url.as_deref().unwrap_or(&base.name)),
        );
    }
    for layer in layers {
        let depth = layer.parent.and_then(|id| depths.get(&id)).map_or(0, |depth| depth + 1);
        depths.insert(layer.id, depth);
        let used = if layer.in_use { "now".into() } else { ago(since(layer.used)) };
        let _ = writeln!(
            text,
            "{:<8}  {:<6}  {:>9}  {:<10}  {:>6}  {used:>6}  {}{}",
            layer.id.short(),
            layer.kind.name(),
            size(layer.allocated),
            memory(layer.memory).unwrap_or("-"),
            ago(since(layer.created)),
            "  ".repeat(depth),
            printable(&layer.title),
        );
    }
    let of_bases: u64 = bases.iter().map(|base| base.allocated).sum();
    let bytes = layers.iter().map(|layer| layer.allocated).sum::<u64>() + of_bases;
    let _ = writeln!(text, "{}, {}", counted_both(layers.len(), bases.len()), Size(bytes));
    text
}

/// The size as text of its own, so that it can be aligned.
fn size(bytes: u64) -> String {
    Size(bytes).to_string()
}

fn memory(form: Option<MemoryForm>) -> Option<&'static str> {
    form.map(|form| match form {
        MemoryForm::Flat => "flat",
        MemoryForm::Packed => "compressed",
    })
}

/// A time span by its largest unit: `12 s`, `5 min`, `3 h`, `40 d`.
fn ago(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn described_base(base: &StoredBase) -> Value {
    json!({
        "id": base.id, "kind": "base", "title": base.name, "url": base.url, "digest": base.sha256,
        "used": seconds(base.used), "allocated": base.allocated, "in_use": base.in_use,
    })
}

fn described(layer: &Listed) -> Value {
    json!({
        "id": layer.id, "key": layer.key, "parent": layer.parent, "kind": layer.kind,
        "title": layer.title, "created": seconds(layer.created), "used": seconds(layer.used),
        "allocated": layer.allocated, "memory": memory(layer.memory), "in_use": layer.in_use,
        "kvmbake_version": layer.made_by,
    })
}

fn usage_as_text(usage: &Usage, limit: u64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, bytes: u64, note: &str| {
        let _ = writeln!(text, "{name:<14}{:>10}{note}", size(bytes));
    };
    line("layers", usage.bytes, &format!("  in {}", usage.layers));
    line("  memory", usage.memory, "");
    line("  disk", usage.bytes.saturating_sub(usage.memory), "");
    line("bases", usage.base_bytes, &format!("  in {}", usage.bases));
    line("being made", usage.temporary, "");
    line("records", usage.records, "");
    line("limit", limit, "");
    text
}

fn usage_as_json(usage: &Usage, limit: u64) -> String {
    let value = json!({
        "layers": usage.layers, "bytes": usage.bytes, "memory": usage.memory,
        "bases": usage.bases, "base_bytes": usage.base_bytes,
        "temporary": usage.temporary, "records": usage.records, "limit": limit,
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_by_their_largest_unit() {
        let told = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!([told(0), told(59), told(60), told(3599)], ["0 s", "59 s", "1 min", "59 min"]);
        assert_eq!([told(3600), told(172_799), told(172_800)], ["1 h", "47 h", "2 d"]);
    }
}
