//! `upload` and `download`: files and trees, from the host to the guest and back.

use std::path::{Component, Path, PathBuf};

use kvmbake_provision::glob;

use crate::profile::Context;
use crate::profile::output::TAKEN;
use crate::profile::reader::Reader;
use crate::profile::vars::Variables;

/// The key of uploads.
pub const UPLOAD: &str = "upload";
/// The key of downloads.
pub const DOWNLOAD: &str = "download";

/// How much may come by one download.
const DEFAULT_LIMIT: u64 = 1 << 30;

/// One source on the host and where it goes.
#[derive(Debug)]
pub struct Upload {
    /// The folder that `source` starts from.
    pub folder: PathBuf,
    /// A path or pattern.
    pub source: String,
    /// Where it goes in the guest.
    pub to: String,
    /// Permissions of files; none keeps the host's.
    pub mode: Option<u32>,
    /// The owner, `user` or `user:group`.
    pub owner: Option<String>,
    /// Whether it is done with root's rights.
    pub sudo: bool,
    /// The variables that go into the files' texts.
    pub template: Option<Variables>,
}

/// One source in the guest and where it goes.
#[derive(Debug)]
pub struct Download {
    /// A path or pattern in the guest.
    pub source: String,
    /// Where it goes on the host.
    pub to: HostPath,
    /// Whether `to` is the name of a file, and not of a folder.
    pub renamed: bool,
    /// Whether it is read with root's rights.
    pub sudo: bool,
    /// How many bytes may come.
    pub limit: u64,
}

/// A place on the host for what a build brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPath {
    /// Below the folder that the build leaves.
    Output(PathBuf),
    /// Anywhere.
    Absolute(PathBuf),
}

impl Context<'_> {
    /// Reads `upload`: a table, or a list of them.
    pub(super) fn upload(&self, reader: &Reader<'_, '_>) -> Option<Vec<Upload>> {
        let tables = reader.one_or_more(UPLOAD);
        let uploads: Vec<Upload> =
            tables.into_iter().filter_map(|table| self.one_upload(table)).collect();
        self.nonempty(reader, UPLOAD, uploads)
    }

    fn one_upload(&self, reader: Reader<'_, '_>) -> Option<Upload> {
        let source = reader.required_string("source");
        let to = reader.required_string("to");
        let mode = reader.parsed("mode", |text| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.ok_or_else(|| format!("`{text}` is no mode such as \"0644\""))
        });
        let owner = reader.string("owner").map(|at| at.value);
        let sudo = reader.bool("sudo").unwrap_or(false);
        let template = reader.bool("template").unwrap_or(false);
        let template = if template { reader.variables() } else { None };
        if let (Some(source), Some(to)) = (&source, &to)
            && glob::is_pattern(&source.value)
            && !to.value.ends_with('/')
        {
            reader.fault_with_hint(
                &to.span,
                "`source` is a pattern, which may stand for several files",
                format!("End `to` with a slash: \"{}/\"", to.value),
            );
        }
        for path in [&source, &to].into_iter().flatten().filter(|path| path.value.is_empty()) {
            reader.fault(&path.span, "The path is empty");
        }
        reader.finish();
        let source = source?;
        Some(Upload {
            folder: self.source.folder_at(&source.span).to_path_buf(),
            source: source.value,
            to: to?.value,
            mode: mode.map(|at| at.value),
            owner,
            sudo,
            template,
        })
    }

    /// Reads `download`: a table, or a list of them.
    pub(super) fn download(&self, reader: &Reader<'_, '_>) -> Option<Vec<Download>> {
        let tables = reader.one_or_more(DOWNLOAD);
        let downloads: Vec<Download> =
            tables.into_iter().filter_map(|table| self.one_download(table)).collect();
        self.nonempty(reader, DOWNLOAD, downloads)
    }

    fn one_download(&self, reader: Reader<'_, '_>) -> Option<Download> {
        let source = reader.required_string("source");
        let to = reader.required_string("to");
        let sudo = reader.bool("sudo").unwrap_or(false);
        let limit = reader.size("limit").map_or(DEFAULT_LIMIT, |at| at.value);
        for path in [&source, &to].into_iter().flatten().filter(|path| path.value.is_empty()) {
            reader.fault(&path.span, "The path is empty");
        }
        let renamed = to.as_ref().is_some_and(|to| !to.value.ends_with('/'));
        if let (Some(source), Some(to)) = (&source, &to) {
            let path = Path::new(&to.value);
            let is_plain = |part| matches!(part, Component::Normal(_));
            if renamed && glob::is_pattern(&source.value) {
                reader.fault_with_hint(
                    &to.span,
                    "`source` is a pattern, which may stand for several files",
                    format!("End `to` with a slash: \"{}/\"", to.value),
                );
            } else if path.is_relative() && !path.components().all(is_plain) {
                reader.fault_with_hint(
                    &to.span,
                    "`to` leads out of the build's folder, or names nothing in it",
                    "Name a file, or a folder such as \"logs/\"; an absolute path leads anywhere, \
                     such as \"{{ build.dir }}/logs/\"",
                );
            } else if path.is_relative()
                && let Some(first) = path.components().next()
                && TAKEN.iter().any(|name| first.as_os_str() == *name)
            {
                reader.fault(&to.span, "The build itself writes a file of this name");
            }
        }
        reader.finish();
        let (source, to) = (source?, to?);
        let path = PathBuf::from(&to.value);
        let to = match path.is_absolute() {
            true => HostPath::Absolute(path),
            false => HostPath::Output(path),
        };
        Some(Download { source: source.value, to, renamed, sudo, limit })
    }

    fn nonempty<T>(
        &self,
        reader: &Reader<'_, '_>,
        key: &'static str,
        list: Vec<T>,
    ) -> Option<Vec<T>> {
        if let Some(value) = reader.value(key)
            && value.get_ref().as_array().is_some_and(|items| items.is_empty())
        {
            reader.fault(&value.span(), format!("`{key}` is an empty list"));
        }
        (!list.is_empty()).then_some(list)
    }
}
