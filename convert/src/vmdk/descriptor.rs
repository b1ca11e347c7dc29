//! The text descriptor inside a VMDK.

use std::fmt::Write;

use crate::encode::Identity;

/// Returns the descriptor of a monolithicSparse image, one extent in the file `name` itself.
pub(super) fn encode(name: &str, sectors: u64, identity: &Identity) -> String {
    // 0xffffffff and 0xfffffffe mean "no parent" and "unset".
    let content_id = u32::from_le_bytes(identity.bytes("vmdk cid")) & 0x7fff_ffff | 1;
    let (cylinders, heads, per_track) = geometry(sectors);
    let mut long_id = String::new();
    for byte in identity.bytes::<12>("vmdk long content id") {
        let _ = write!(long_id, "{byte:02x}");
    }
    // The long identifier's last word is the content identifier.
    let _ = write!(long_id, "{content_id:08x}");
    let image = uuid(identity.uuid("vmdk image"));
    let modification = uuid(identity.uuid("vmdk modification"));
    format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         encoding=\"UTF-8\"\n\
         CID={content_id:08x}\n\
         parentCID=ffffffff\n\
         createType=\"monolithicSparse\"\n\
         \n\
         # Extent description\n\
         RW {sectors} SPARSE \"{name}\"\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.virtualHWVersion = \"13\"\n\
         ddb.adapterType = \"lsilogic\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{per_track}\"\n\
         ddb.longContentID = \"{long_id}\"\n\
         ddb.uuid.image = \"{image}\"\n\
         ddb.uuid.modification = \"{modification}\"\n\
         ddb.uuid.parent = \"00000000-0000-0000-0000-000000000000\"\n\
         ddb.uuid.parentmodification = \"00000000-0000-0000-0000-000000000000\"\n"
    )
}

/// Returns the geometry that LSI Logic's firmware derives, as VMware writes it.
fn geometry(sectors: u64) -> (u64, u64, u64) {
    let (heads, per_track) = match sectors * 512 {
        ..0x4000_0000 => (64, 32),
        0x4000_0000..0x8000_0000 => (128, 32),
        _ => (255, 63),
    };
    ((sectors / (heads * per_track)).max(1), heads, per_track)
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
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
    let name = rest.split('"').nth(1).unwrap_or_default().to_owned();
    Some(Extent { sectors, kind, name })
}
