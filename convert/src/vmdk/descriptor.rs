//! The text descriptor inside a VMDK.

use std::fmt::Write;

use super::{Adapter, VmdkOptions};
use crate::encode::{Identity, uuid_text};

/// What a descriptor states.
pub(super) struct Image<'a> {
    /// The kind of VMDK.
    pub(super) create_type: &'static str,
    /// The extent's type, its file's name in quotes, and what else belongs to it.
    pub(super) extent: String,
    pub(super) sectors: u64,
    pub(super) options: &'a VmdkOptions,
}

/// Refuses a file name that a descriptor cannot state.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 255 || name.chars().any(|c| c == '"' || c.is_control()) {
        return Err(format!("the descriptor cannot express the file name {name:?}"));
    }
    Ok(())
}

/// Returns the descriptor of an image with one extent.
pub(super) fn encode(image: &Image<'_>, identity: &Identity) -> String {
    let Image { create_type, extent, sectors, options } = image;
    // 0xffffffff and 0xfffffffe mean "no parent" and "unset".
    let content_id = u32::from_le_bytes(identity.bytes("vmdk cid")) & 0x7fff_ffff | 1;
    let (cylinders, heads, per_track) = geometry(*sectors, options.adapter);
    let (hardware, adapter) = (options.hardware_version, options.adapter.name());
    let mut long_id = String::new();
    for byte in identity.bytes::<12>("vmdk long content id") {
        let _ = write!(long_id, "{byte:02x}");
    }
    // The long identifier's last word is the content identifier.
    let _ = write!(long_id, "{content_id:08x}");
    let uuid_of_image = uuid_text(identity.image_uuid("vmdk image"));
    let modification = uuid_text(identity.uuid("vmdk modification"));
    format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         encoding=\"UTF-8\"\n\
         CID={content_id:08x}\n\
         parentCID=ffffffff\n\
         createType=\"{create_type}\"\n\
         \n\
         # Extent description\n\
         RW {sectors} {extent}\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.virtualHWVersion = \"{hardware}\"\n\
         ddb.adapterType = \"{adapter}\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{per_track}\"\n\
         ddb.longContentID = \"{long_id}\"\n\
         ddb.uuid.image = \"{uuid_of_image}\"\n\
         ddb.uuid.modification = \"{modification}\"\n\
         ddb.uuid.parent = \"00000000-0000-0000-0000-000000000000\"\n\
         ddb.uuid.parentmodification = \"00000000-0000-0000-0000-000000000000\"\n"
    )
}

/// Returns the geometry that the adapter's firmware derives, as VMware writes it.
fn geometry(sectors: u64, adapter: Adapter) -> (u64, u64, u64) {
    if adapter == Adapter::Ide {
        return ((sectors / (16 * 63)).clamp(1, 16383), 16, 63);
    }
    let (heads, per_track) = match sectors * 512 {
        ..0x4000_0000 => (64, 32),
        0x4000_0000..0x8000_0000 => (128, 32),
        _ => (255, 63),
    };
    ((sectors / (heads * per_track)).max(1), heads, per_track)
}

/// What a reader needs of a descriptor.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) create_type: String,
    pub(super) content_id: String,
    pub(super) parent_content_id: String,
    /// Each extent line: its sectors, its type, and the file it names.
    pub(super) extents: Vec<Extent>,
}

/// An extent line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sectors: u64,
    pub(super) kind: String,
    pub(super) name: String,
    /// The sector of the file where a flat extent begins.
    pub(super) offset: u64,
}

/// Returns the descriptor, or what is wrong with it.
pub(super) fn decode(text: &[u8]) -> Result<Descriptor, String> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]);
    if !text.as_bytes().starts_with(super::DESCRIPTOR_MAGIC) {
        return Err("the descriptor does not begin with \"# Disk DescriptorFile\"".to_owned());
    }
    let mut descriptor = Descriptor::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some((key, value)) = line.split_once('=') {
            let value = value.trim().trim_matches('"').to_owned();
            match key.trim() {
                "createType" => descriptor.create_type = value,
                "CID" => descriptor.content_id = value,
                "parentCID" => descriptor.parent_content_id = value,
                _ => {}
            }
        } else if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) {
            descriptor.extents.push(extent(line).ok_or_else(|| {
                format!("the descriptor's extent line {line:?} is not understood")
            })?);
        }
    }
    Ok(descriptor)
}

fn extent(line: &str) -> Option<Extent> {
    let mut words = line.splitn(4, ' ');
    words.next()?;
    let sectors = words.next()?.parse().ok()?;
    let kind = words.next()?.to_owned();
    let rest = words.next().unwrap_or_default();
    let mut quoted = rest.splitn(3, '"').skip(1);
    let name = quoted.next().unwrap_or_default().to_owned();
    let offset = quoted.next().unwrap_or_default().trim();
    let offset = if offset.is_empty() { 0 } else { offset.parse().ok()? };
    Some(Extent { sectors, kind, name, offset })
}
