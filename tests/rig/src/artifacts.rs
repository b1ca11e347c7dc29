//! The artifacts of the rig and how they depend on each other: QEMU, L1, the base images and the disk that carries them.

use std::path::PathBuf;
use std::thread;

use crate::cache::{Artifact, Cache, Recipe};
use crate::error::RigError;

/// The base images: name in L1 and on the host, and the variant of `base.sh` behind it.
const BASES: [(&str, &str); 3] =
    [("light", "light"), ("debian-12", "full"), ("light-generic", "generic")];

/// Everything that a rig instance starts from.
#[derive(Debug)]
pub(crate) struct Artifacts {
    pub qemu: Artifact,
    pub l1: Artifact,
    pub images: Artifact,
    pub scratch: Artifact,
}

impl Artifacts {
    /// Returns all artifacts, built where they are missing, two at a time.
    pub(crate) fn build(cache: &Cache) -> Result<Self, RigError> {
        let (l1, rest) = thread::scope(|scope| {
            let l1 = scope.spawn(|| cache.artifact(&l1()));
            let rest = (|| {
                let qemu = cache.artifact(&plain("qemu", "qemu.sh"))?;
                let scratch = cache.artifact(&plain("scratch", "scratch.sh"))?;
                let light = cache.artifact(&base(BASES[0]))?;
                Ok::<_, RigError>((qemu, scratch, light))
            })();
            (l1.join(), rest)
        });
        let l1 = l1.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (qemu, scratch, light) = rest?;
        let (generic, full) = thread::scope(|scope| {
            let generic = scope.spawn(|| cache.artifact(&base(BASES[2])));
            let full = cache.artifact(&base(BASES[1]));
            (generic.join(), full)
        });
        let bases =
            [light, full?, generic.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?];
        let recipe = Recipe {
            after: BASES
                .iter()
                .zip(&bases)
                .map(|((name, _), base)| format!("{name}={}", base.path.display()))
                .collect(),
            inputs: bases.iter().map(|base| base.key.clone()).collect(),
            ..plain("images", "images.sh")
        };
        let images = cache.artifact(&recipe)?;
        Ok(Self { qemu, l1, images, scratch })
    }
}

/// Returns the path on the host of a base image such as `debian-12.qcow2`, built when missing.
pub fn base_on_host(cache: &Cache, file: &str) -> Result<Option<PathBuf>, RigError> {
    let Some(pair) = BASES.iter().find(|(name, _)| file.strip_suffix(".qcow2") == Some(name))
    else {
        return Ok(None);
    };
    Ok(Some(cache.artifact(&base(*pair))?.path.join("disk.qcow2")))
}

fn plain(name: &str, script: &'static str) -> Recipe {
    Recipe {
        name: name.into(),
        script,
        before: vec![],
        after: vec![],
        folders: &[],
        inputs: vec![],
        root: false,
    }
}

fn l1() -> Recipe {
    Recipe { folders: &["l1"], root: true, ..plain("l1", "l1.sh") }
}

fn base((name, variant): (&str, &str)) -> Recipe {
    let folders: &[&str] = if variant == "full" { &["full"] } else { &["light"] };
    Recipe {
        before: vec![variant.into()],
        folders,
        root: true,
        ..plain(&format!("base-{name}"), "base.sh")
    }
}
