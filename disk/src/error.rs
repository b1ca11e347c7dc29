//! One error for every backend: a matchable kind, its context, and the cause.
//!
//! A new format adds no variants. `Display` tells what failed, where and why, and never repeats
//! its source; the hint is kept apart for the one place that writes to a person.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, for a caller to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host's file system or device reported an error.
    Io,
    /// The file does not exist.
    NotFound,
    /// The host refuses access to the file.
    PermissionDenied,
    /// A new file was asked for and the name is taken.
    AlreadyExists,
    /// The file ends before what its metadata promises.
    Truncated,
    /// The metadata contradicts itself or the format's specification.
    Corrupt,
    /// Well-formed, but uses something this program does not read or write.
    Unsupported,
    /// The request ends beyond the disk.
    OutOfRange,
    /// Writing to something opened for reading.
    ReadOnly,
    /// Another process (or another part of this one) uses the file.
    Locked,
    /// The image names another file, and the caller did not allow that.
    NamesOtherFile,
    /// The host's disk or the user's quota is full.
    NoSpace,
    /// The caller's request makes no sense for this disk.
    Invalid,
}

impl ErrorKind {
    /// Returns the kind that an error of the operating system stands for.
    pub fn of_io(error: &io::Error) -> ErrorKind {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => return ErrorKind::NoSpace,
            Some(libc::EROFS) => return ErrorKind::ReadOnly,
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            io::ErrorKind::InvalidData => ErrorKind::Corrupt,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            ErrorKind::Io => "input/output error",
            ErrorKind::NotFound => "no such file",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::AlreadyExists => "the file exists already",
            ErrorKind::Truncated => "the file is truncated",
            ErrorKind::Corrupt => "the image is corrupt",
            ErrorKind::Unsupported => "not supported",
            ErrorKind::OutOfRange => "beyond the end of the disk",
            ErrorKind::ReadOnly => "opened for reading only",
            ErrorKind::Locked => "the file is in use",
            ErrorKind::NamesOtherFile => "the image names another file",
            ErrorKind::NoSpace => "no space left on the host's disk",
            ErrorKind::Invalid => "invalid request",
        }
    }
}

/// An error of this crate; built up with the `at`, `on`, `because`, `hint` and `caused_by` methods.
#[derive(Debug)]
pub struct Error(Box<Context>);

#[derive(Debug)]
struct Context {
    kind: ErrorKind,
    operation: &'static str,
    path: Option<PathBuf>,
    offset: Option<u64>,
    detail: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind` while doing `operation`, a verb in the infinitive such as `"read"`.
    pub fn new(kind: ErrorKind, operation: &'static str) -> Error {
        Error(Box::new(Context {
            kind,
            operation,
            path: None,
            offset: None,
            detail: None,
            hint: None,
            source: None,
        }))
    }

    /// Makes an error out of one of the operating system; the kind follows from it. An error of
    /// this crate that travelled inside comes out as it was.
    pub fn io(operation: &'static str, source: io::Error) -> Error {
        match source.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Error::new(ErrorKind::of_io(&source), operation).caused_by(source),
        }
    }

    /// Hides this error in one of the operating system, on its way through a library that knows
    /// only those; [`Error::io`] finds it again.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// Names the file concerned, unless an inner layer has named one.
    #[must_use]
    pub fn on(mut self, path: &Path) -> Error {
        self.0.path.get_or_insert_with(|| path.to_owned());
        self
    }

    /// Adds the byte offset concerned (of the virtual disk or, for metadata, of the file).
    #[must_use]
    pub fn at(mut self, offset: u64) -> Error {
        self.0.offset = Some(offset);
        self
    }

    /// Adds the reason, a phrase without capital and full stop that replaces the kind's own.
    #[must_use]
    pub fn because(mut self, detail: impl Into<String>) -> Error {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds what a person can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns what was being done, such as `"read"`.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Returns the file concerned.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Returns the offset concerned.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// Returns what a person can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = &self.0;
        write!(f, "Cannot {}", context.operation)?;
        if let Some(path) = &context.path {
            write!(f, " {}", path.display())?;
        }
        if let Some(offset) = context.offset {
            write!(f, " at offset {offset:#x}")?;
        }
        match &context.detail {
            Some(detail) => write!(f, ": {detail}"),
            // The source says the same thing, and more exactly.
            None if context.source.is_some()
                && matches!(
                    context.kind,
                    ErrorKind::Io
                        | ErrorKind::NotFound
                        | ErrorKind::PermissionDenied
                        | ErrorKind::AlreadyExists
                ) =>
            {
                Ok(())
            }
            None => write!(f, ": {}", context.kind.reason()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_operation_path_offset_and_reason() {
        let error = Error::new(ErrorKind::Truncated, "read")
            .on(Path::new("/images/a.qcow2"))
            .on(Path::new("/images/outer.qcow2"))
            .at(0x10000);
        assert_eq!(
            error.to_string(),
            "Cannot read /images/a.qcow2 at offset 0x10000: the file is truncated"
        );
    }

    #[test]
    fn display_leaves_the_cause_to_the_source() {
        let error = Error::io("open", io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "Cannot open");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn full_disk_and_quota_are_no_space() {
        for code in [libc::ENOSPC, libc::EDQUOT] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(ErrorKind::of_io(&error), ErrorKind::NoSpace);
        }
    }
}
