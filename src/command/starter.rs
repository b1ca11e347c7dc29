//! A first profile, with comments, for `kvmbake init`; and what can be told about the image that it starts
//! from.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use kvmbake_convert::Format as OutputFormat;
use kvmbake_disk::filesystem::FileSystem;
use kvmbake_disk::{Block, OpenOptions as DiskOptions};
use kvmbake_vmm::boot::volumes::Volumes;
use kvmbake_vmm::boot::{self, BootOverrides};

use crate::error::{Error, with_causes};
use crate::profile::units::Size;
use crate::report::printable;

/// The largest os-release that is read.
const OS_RELEASE_LIMIT: u64 = 64 << 10;
/// Longest text of an image that is shown.
const SHOWN: usize = 100;

/// What the profile is to say.
#[derive(Debug)]
pub struct Starter {
    /// The name of the images.
    pub name: String,
    /// The base image, as a path or a URL.
    pub source: String,
    /// The login.
    pub user: String,
    /// The formats of the images.
    pub formats: Vec<OutputFormat>,
    /// What is known of the base.
    pub image: Option<Seen>,
}

/// What was seen in an image.
#[derive(Debug)]
pub struct Seen {
    /// `raw` or `qcow2`.
    pub format: String,
    /// Its virtual size in bytes.
    pub size: u64,
    /// What it calls itself.
    pub title: Option<String>,
    /// The `ID` of its os-release.
    pub id: Option<String>,
    /// The kernel that would be booted, or why none would.
    pub kernel: Result<String, String>,
    /// Whether cloud-init is there; none when no file system could be read.
    pub cloud_init: Option<bool>,
}

impl Seen {
    /// Looks into the image at `path`, which may be anybody's: nothing in it is run, and no file that it
    /// names is opened.
    ///
    /// # Errors
    /// It is no image that could be a base.
    pub fn of(path: &Path) -> Result<Seen, Error> {
        let failed = |error: kvmbake_disk::Error| {
            let hint = error.hint().map(str::to_string);
            let mut failed = Error::input(format!("Cannot use {}", path.display())).because(&error);
            failed.hint = hint;
            failed
        };
        let format = kvmbake_disk::probe(path).map_err(failed)?;
        let options = DiskOptions { format: Some(format), ..DiskOptions::default() };
        let disk: Arc<dyn Block> = kvmbake_disk::open(path, &options).map_err(failed)?;
        let (mut release, mut cloud_init) = (None, None);
        if let Ok(volumes) = Volumes::open(&disk) {
            for (_, files) in volumes.readable() {
                release = release.or_else(|| os_release(files));
                if files.metadata("/etc").is_ok() {
                    let has = ["/etc/cloud/cloud.cfg", "/usr/bin/cloud-init"];
                    let has = has.iter().any(|path| files.metadata(path).is_ok());
                    cloud_init = Some(cloud_init.unwrap_or(false) || has);
                }
            }
        }
        let kernel = boot::discover(Arc::clone(&disk), &BootOverrides::default());
        let field = |name: &str| release.as_deref().and_then(|text| field(text, name));
        Ok(Seen {
            format: format.to_string(),
            size: disk.len(),
            title: field("PRETTY_NAME"),
            id: field("ID"),
            kernel: kernel.map(|kernel| kernel.origin).map_err(|error| with_causes(&error)),
            cloud_init,
        })
    }

    /// Returns the login that the distribution's cloud images have.
    pub fn user(&self) -> &'static str {
        match self.id.as_deref() {
            Some("debian") => "debian",
            Some("ubuntu") => "ubuntu",
            Some("fedora") => "fedora",
            Some("centos" | "rhel") => "cloud-user",
            Some("rocky") => "rocky",
            Some("almalinux") => "almalinux",
            Some("arch") => "arch",
            Some("flatcar" | "coreos") => "core",
            _ => "root",
        }
    }
}

fn os_release(files: &dyn FileSystem) -> Option<String> {
    let paths = ["/usr/lib/os-release", "/etc/os-release"];
    let read = |path: &str| files.read(path, OS_RELEASE_LIMIT).ok();
    let bytes = paths.into_iter().find_map(read)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns a field of an os-release, fit for a comment.
fn field(release: &str, name: &str) -> Option<String> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    let value = value.trim().trim_matches(['"', '\'']);
    Some(printable(value).chars().take(SHOWN).collect())
}

impl Starter {
    /// Returns the profile.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# A profile of kvmbake. `kvmbake validate` checks it, `kvmbake run` bakes it.\n\n",
        );
        let size = self.image.as_ref().map_or(8 << 30, |image| image.size);
        let larger = format!("{}G", (size >> 30) + 4);
        for line in self.image.as_ref().map(Seen::about).unwrap_or_default() {
            let _ = writeln!(text, "# {line}");
        }
        let quoted = |text: &str| toml::Value::String(text.replace("{{", "{{{{")).to_string();
        let _ = writeln!(text, "[image]\nname   = {}", quoted(&self.name));
        let _ = writeln!(text, "source = {}", quoted(&self.source));
        if self.source.contains("://") {
            text.push_str(
                "checksum = \"none\"       # or the digest, or the URL of a SHA256SUMS\n",
            );
        }
        let _ = writeln!(
            text,
            "# size = \"{larger}\"          # the disk grows; the source is never written"
        );
        text.push_str("\n[machine]\ncpus   = 2\nmemory = \"1G\"\n");
        if self.image.as_ref().is_some_and(|image| image.cloud_init == Some(false)) {
            text.push_str(
                "\n# No cloud-init was found in the image: nothing would read a seed, and the login needs a\n\
                 # key that the image lets in already.\n[seed]\nkind = \"none\"\n",
            );
        } else {
            text.push_str(
                "\n[seed]\nkind = \"nocloud\"       # also config-drive, ignition, files, none\n\
                 # user_data = \"user-data.yaml\"   # the build's key is added to what it says\n",
            );
        }
        let _ = writeln!(text, "\n[ssh]\nuser = {}", quoted(&self.user));
        text.push_str("# private_key = \"id_ed25519\"   # instead of a key of the build\n");
        text.push_str(
            "\n# What is done in the guest, in order. After each step the guest is kept, so that the next\n\
             # run begins with the first step that has changed.\n\
             [[step]]\nname  = \"hello\"\nshell = \"uname -a\"\n\n\
             # [[step]]\n# shell = { script = \"setup.sh\", sudo = true, env = { ROLE = \"web\" } }\n\n",
        );
        for format in &self.formats {
            let _ = writeln!(text, "[[output]]\nformat = \"{format}\"");
        }
        text
    }
}

impl Seen {
    fn about(&self) -> Vec<String> {
        let title = self.title.as_deref().unwrap_or("an image");
        let mut lines = vec![format!("{title}: {}, {}", self.format, Size(self.size))];
        lines.push(match &self.kernel {
            Ok(origin) => format!("kernel: {}", printable(origin)),
            Err(why) => {
                let why: String = printable(why).chars().take(3 * SHOWN).collect();
                format!("no kernel was found, [boot] must name one: {why}")
            }
        });
        lines
    }
}

/// Writes `text` to a file that is not there yet.
///
/// # Errors
/// It is there, or cannot be written.
pub fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    let made = OpenOptions::new().write(true).create_new(true).open(path);
    made.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        let failed = Error::input(format!("Cannot write {}", path.display())).because(&error);
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                failed.hint("Nothing is overwritten; name another file")
            }
            _ => failed,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Profile, Source};

    #[test]
    fn a_starter_is_a_sound_profile_whatever_the_image_says() {
        let evil = "PRETTY_NAME=\"a\u{1b}]0;x [image] {{ y }}\"\nID=debian\n";
        let image = || Seen {
            format: "raw".into(),
            size: 3 << 30,
            title: field(evil, "PRETTY_NAME"),
            id: field(evil, "ID"),
            kernel: Err("none\n[image]".into()),
            cloud_init: Some(false),
        };
        assert_eq!(image().user(), "debian");
        for (source, image) in [
            ("b\"{{ x }}.qcow2", None),
            ("https://example.org/a.img", None),
            ("a.qcow2", Some(image())),
            ("a.qcow2", Some(Seen { cloud_init: None, kernel: Ok("grub.cfg".into()), ..image() })),
        ] {
            let starter = Starter {
                name: "web".into(),
                source: source.into(),
                user: "debian".into(),
                formats: vec![OutputFormat::Qcow2, OutputFormat::Ova],
                image,
            };
            let text = starter.text();
            let profile = Profile::parse(Source::new("p.toml", text.clone()));
            let profile = profile.unwrap_or_else(|faults| panic!("{faults:#?}\n{text}"));
            assert_eq!(profile.outputs.len(), 2);
            assert!(profile.image.source.value.to_string().ends_with(source), "{text}");
        }
    }
}
