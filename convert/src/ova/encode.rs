//! The OVA encoder. The descriptor comes first but knows the disk's size, so it gets the room
//! that it could need at most, and blanks behind its end; the disk's identifiers are known last
//! of all, so the manifest's sums are taken over what was written.

use super::ovf::{self, Appliance};
use super::tar::{self, BLOCK};
use super::{ManifestSum, OvaOptions, manifest};
use crate::checksum::{Algorithm, checksum};
use crate::compress::{Packing, Packs};
use crate::encode::{DiskInfo, Encoder, Identity};
use crate::error::Error;
use crate::export::Target;
use crate::mapped::ImageFile;
use crate::output::{Cancel, Output};
use crate::vmdk::{StreamEncoder, Subformat, VmdkOptions};

/// The longest name of a member.
const MAX_NAME: usize = 100;

/// Writes an OVA archive.
pub(crate) struct OvaEncoder {
    options: OvaOptions,
    name: String,
    stem: String,
    /// Bytes of the descriptor.
    descriptor_len: u64,
    disk: StreamEncoder,
}

impl OvaEncoder {
    pub(crate) fn plan(
        disk: &DiskInfo,
        target: &Target,
        options: &OvaOptions,
    ) -> Result<OvaEncoder, String> {
        let stem = target.name.strip_suffix(".ova").unwrap_or(&target.name).to_owned();
        let file = disk_name(&stem);
        if file.len() > MAX_NAME {
            return Err(format!("the name {file:?} is longer than the archive's {MAX_NAME} bytes"));
        }
        let name = options.name.clone().unwrap_or_else(|| stem.clone());
        let vmdk = VmdkOptions {
            subformat: Some(Subformat::StreamOptimized),
            hardware_version: options.hardware_version(),
            level: options.level,
            ..VmdkOptions::default()
        };
        let longest =
            Appliance { name: &name, file: &file, file_size: u64::MAX, capacity: u64::MAX };
        let descriptor_len = ovf::encode(&longest, options).len() as u64;
        let base = BLOCK + descriptor_len.next_multiple_of(BLOCK) + BLOCK;
        Ok(OvaEncoder {
            disk: StreamEncoder::plan(disk, &file, &vmdk, base)?,
            options: options.clone(),
            name,
            stem,
            descriptor_len,
        })
    }
}

fn disk_name(stem: &str) -> String {
    format!("{stem}-disk1.vmdk")
}

impl Encoder for OvaEncoder {
    fn virtual_size(&self) -> u64 {
        self.disk.virtual_size()
    }

    fn packing(&self) -> Option<Packing> {
        self.disk.packing()
    }

    fn write_packed(&mut self, packs: &Packs, output: &Output) -> Result<(), Error> {
        self.disk.write_packed(packs, output)
    }

    fn finish(
        &mut self,
        identity: &Identity,
        output: &Output,
        cancel: Cancel<'_>,
    ) -> Result<(), Error> {
        self.disk.finish(identity, output, cancel)?;
        let time = identity.time().unwrap_or(0);
        let file = disk_name(&self.stem);
        let appliance = Appliance {
            name: &self.name,
            file: &file,
            file_size: self.disk.len(),
            capacity: self.disk.virtual_size(),
        };
        let mut text = ovf::encode(&appliance, &self.options).into_bytes();
        text.resize(self.descriptor_len as usize, b'\n');
        let base = BLOCK + self.descriptor_len.next_multiple_of(BLOCK) + BLOCK;
        let ovf_name = format!("{}.ovf", self.stem);
        output.write_at(&tar::header(&ovf_name, self.descriptor_len, time), 0)?;
        output.write_at(&text, BLOCK)?;
        output.write_at(&tar::header(&file, self.disk.len(), time), base - BLOCK)?;

        let algorithm = match self.options.manifest {
            ManifestSum::Sha256 => Algorithm::Sha256,
            ManifestSum::Sha1 => Algorithm::Sha1,
        };
        let whole = ImageFile::of_shared(output.file(), output.path())?;
        let sum = |base, len| checksum(&whole.part(base, len), algorithm, cancel, &|_| {});
        let manifest = manifest::encode(
            self.options.manifest,
            &[(&ovf_name, sum(BLOCK, self.descriptor_len)?), (&file, sum(base, self.disk.len())?)],
        );
        let at = base + self.disk.len();
        let len = manifest.len() as u64;
        output.write_at(&tar::header(&format!("{}.mf", self.stem), len, time), at)?;
        output.write_at(manifest.as_bytes(), at + BLOCK)?;
        // Two empty blocks end an archive.
        output.set_len(at + BLOCK + len.next_multiple_of(BLOCK) + 2 * BLOCK)
    }

    fn needs_identity(&self) -> bool {
        true
    }
}
