//! `[image]`: the base image, where it is, what is known of it, and the sizes it grows to.

use std::fmt;
use std::path::{Path, PathBuf};

use kvmbake_disk::Format as DiskFormat;

use super::reader::{At, Reader};
use super::{Context, Named};
use crate::checksum::Checksum;
use crate::fetch::Url;

/// The base image and what becomes of it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name that outputs carry.
    pub name: String,
    /// Where the base image is.
    pub source: Named<BaseSource>,
    /// The base's format, when it is pinned.
    pub format: Option<DiskFormat>,
    /// What the base's checksum must be.
    pub checksum: Option<Named<Expected>>,
    /// The virtual size to grow to, in bytes.
    pub size: Option<Named<u64>>,
    /// The virtual size during the build, in bytes; it grows to `size` when it is sealed.
    pub build_size: Option<Named<u64>>,
    /// Folders below which the base may name other files.
    pub allow_backing: Vec<PathBuf>,
}

/// Where a base image is.
#[derive(Debug, Clone)]
pub enum BaseSource {
    /// On this host, resolved against the profile's folder.
    File(PathBuf),
    /// On a server, with its mirrors; never empty.
    Urls(Vec<Url>),
}

impl fmt::Display for BaseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BaseSource::File(path) => fmt::Display::fmt(&path.display(), f),
            BaseSource::Urls(urls) => urls.first().map_or(Ok(()), |url| fmt::Display::fmt(url, f)),
        }
    }
}

/// What the profile says of the base's checksum.
#[derive(Debug, Clone)]
pub enum Expected {
    /// The checksum itself.
    Checksum(Checksum),
    /// A list of checksums on this host.
    ListFile(PathBuf),
    /// A list of checksums on a server.
    ListUrl(Url),
    /// That none is known: whatever comes is taken.
    Unchecked,
}

impl Context<'_> {
    /// Reads `[image]`.
    pub(super) fn image(&self, reader: Reader<'_, '_>) -> Option<Image> {
        let name = reader
            .required_string("name")
            .map(|At { value, span }| At { value: self.matrix.name_of(self.variant, value), span });
        let name = name.and_then(|name| self.file_name(&reader, "name", name));
        let source = self.base_source(&reader);
        let format = reader.parsed("format", |text| {
            text.parse().map_err(|_| format!("`{text}` is no base format; known are qcow2 and raw"))
        });
        let span = reader.value("checksum").map_or(0..0, |value| value.span());
        let folder = self.source.folder_at(&span);
        let checksum = reader.parsed("checksum", |text| self.expected(text, folder));
        if let (Some(source), None) = (&source, reader.value("checksum"))
            && matches!(source.value, BaseSource::Urls(_))
        {
            reader.fault_with_hint(
                &source.span,
                "A `source` that is downloaded needs a `checksum`",
                "Give the digest (\"sha256:…\"), or the URL of a list such as SHA256SUMS; \
                 `checksum = \"none\"` takes whatever comes",
            );
        }
        let size = reader.size("size");
        let build_size = reader.size("build_size");
        for (key, size) in [("size", &size), ("build_size", &build_size)] {
            if let Some(size) = size
                && size.value % 512 != 0
            {
                reader.fault(&size.span, format!("`{key}` must be a multiple of 512 bytes"));
            }
        }
        if let (Some(size), Some(build_size)) = (&size, &build_size)
            && build_size.value > size.value
        {
            reader.fault(&build_size.span, "`build_size` is larger than `size`");
        }
        let shared = self.variant.build_size.zip(size.as_ref());
        let shared = shared.map(|(value, size)| At { value, span: size.span.clone() });
        let build_size = build_size.or(shared);
        let allow_backing = reader.strings("allow_backing").unwrap_or_default();
        reader.finish();
        Some(Image {
            name: name?,
            source: self.named(source?),
            format: format.map(|at| at.value),
            checksum: checksum.map(|at| self.named(at)),
            size: size.map(|at| self.named(at)),
            build_size: build_size.map(|at| self.named(at)),
            allow_backing: allow_backing.into_iter().map(|at| self.path(at).value).collect(),
        })
    }

    /// A path, a URL, or a list of URLs of which any will do.
    fn base_source(&self, reader: &Reader<'_, '_>) -> Option<At<BaseSource>> {
        if reader.value("source").is_none() {
            reader.fault(&reader.span(), "[image] has no `source`");
        }
        let texts = reader.strings("source")?;
        let span = match (texts.first(), texts.last()) {
            (Some(first), Some(last)) => first.span.start..last.span.end,
            _ => {
                reader.fault(&reader.span(), "`source` in [image] is an empty list");
                return None;
            }
        };
        if let [only] = &texts[..]
            && !Url::is_meant(&only.value)
        {
            let path = self.source.folder_at(&only.span).join(&only.value);
            return Some(At { value: BaseSource::File(path), span });
        }
        let mut urls = Vec::with_capacity(texts.len());
        for text in &texts {
            if !Url::is_meant(&text.value) {
                reader
                    .fault(&text.span, format!("`{}` in a list of mirrors is no URL", text.value));
                return None;
            }
            match text.value.parse() {
                Ok(url) => urls.push(self.hidden(url)),
                Err(message) => {
                    reader.fault(&text.span, message);
                    return None;
                }
            }
        }
        Some(At { value: BaseSource::Urls(urls), span })
    }

    /// Hides the password of a URL, which the profile itself may hold.
    fn hidden(&self, url: Url) -> Url {
        if let Some(password) = url.password() {
            self.secrets.add(password);
        }
        url
    }

    /// What stands before a colon is an algorithm, unless a path or a URL begins so.
    fn expected(&self, text: &str, folder: &Path) -> Result<Expected, String> {
        if text == "none" {
            return Ok(Expected::Unchecked);
        }
        if Url::is_meant(text) {
            return text.parse().map(|url| Expected::ListUrl(self.hidden(url)));
        }
        let is_path = match text.split_once(':') {
            Some((algorithm, _)) => algorithm.contains('/'),
            // A bare digest lacks its algorithm; it is no file's name.
            None => Checksum::from_digits(text).is_none(),
        };
        if is_path {
            return Ok(Expected::ListFile(folder.join(text)));
        }
        text.parse().map(Expected::Checksum)
    }
}
