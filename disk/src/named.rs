//! The rule for files that an image names, for formats that are read elsewhere.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::open::OpenOptions;

/// Returns the real path of the file that the image at `image` calls `name`, if it lies in one of
/// the `allowed` directories (or is one of the allowed files), symbolic links resolved. `role`
/// says in messages what the file is to the image.
///
/// # Errors
/// [`ErrorKind::NamesOtherFile`](crate::ErrorKind::NamesOtherFile) when it is not allowed or no
/// plain path; otherwise what finding it met.
pub fn resolve(
    image: &Path,
    role: &str,
    name: &str,
    allowed: &[PathBuf],
) -> Result<PathBuf, Error> {
    let options = OpenOptions { allow_backing: allowed.to_vec(), ..OpenOptions::default() };
    options.resolve(image, role, name)
}
