//! The rules that real readers enforce, each looked up in the written bytes by its specification.

mod disks;

use std::fs;
use std::sync::atomic::AtomicBool;

use disks::{Random, Workshop, crc32c};
use kvmbake_convert::{Encoding, Format, Silent, Target, export};

const MIB: u64 = 1 << 20;

/// Writes the disk and returns the file's bytes.
fn written(workshop: &Workshop, format: Format, settings: &[(&str, &str)]) -> Vec<u8> {
    let mut encoding = Encoding::from(format);
    for (key, value) in settings {
        encoding.set(key, value).unwrap();
    }
    let path = workshop.path(&format!("disk.{}", format.extension()));
    let target = Target::new(encoding, &path);
    export(&*workshop.source(), &[target], &Silent, &AtomicBool::new(false)).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

/// A disk of 10 MiB and a sector with data in the second mebibyte and at the end.
fn disk() -> Workshop {
    let workshop = Workshop::new(10 * MIB + 512);
    workshop.put(MIB, &Random::new(1).bytes(200_000));
    workshop.put(10 * MIB + 511, b"z");
    workshop
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The checksum of VHD structures, from the specification's words.
fn vhd_sum(bytes: &[u8], at: usize) -> u32 {
    let sum = bytes.iter().enumerate().filter(|(index, _)| !(at..at + 4).contains(index));
    !sum.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

#[test]
fn vhd_is_of_one_size_for_all_readers() {
    for size in [10 * MIB + 512, 1000 * 4 * 17 * 512, 130 * MIB] {
        for kind in ["dynamic", "fixed"] {
            let workshop = Workshop::new(size);
            let bytes = written(&workshop, Format::Vhd, &[("subformat", kind)]);
            let footer = &bytes[bytes.len() - 512..];
            let exact = if kind == "fixed" { size.next_multiple_of(MIB) } else { size };
            assert_eq!(be64(footer, 40), exact, "original size");
            assert_eq!(be64(footer, 48), exact, "current size");
            // QEMU goes by geometry for "vpc " and "qemu", unless it is the largest one.
            assert_eq!(&footer[28..32], b"win ");
            let cylinders = u64::from(be32(footer, 56) >> 16);
            let (heads, sectors) = (u64::from(footer[58]), u64::from(footer[59]));
            let by_geometry = cylinders * heads * sectors * 512;
            let largest = (cylinders, heads, sectors) == (65535, 16, 255);
            assert!(by_geometry == exact || largest, "{cylinders}/{heads}/{sectors}");
            assert_eq!(be32(footer, 64), vhd_sum(footer, 64), "checksum");
            assert_eq!(be32(footer, 8) & 2, 2, "the reserved feature");
            assert_eq!(be32(footer, 60), if kind == "fixed" { 2 } else { 3 });
            if kind == "fixed" {
                assert_eq!(bytes.len() as u64, exact + 512);
                assert_eq!(be64(footer, 16), u64::MAX, "no data offset");
            } else {
                assert_eq!(&bytes[..512], footer, "the copy");
                let header = &bytes[512..1536];
                assert_eq!(be32(header, 36), vhd_sum(header, 36));
                assert_eq!(u64::from(be32(header, 28)), size.div_ceil(2 * MIB), "BAT entries");
                let bat = be64(header, 16) as usize;
                let entries = size.div_ceil(2 * MIB) as usize;
                assert!(bat + entries * 4 <= bytes.len() - 512);
                assert!(bytes[bat..bat + entries * 4].iter().all(|byte| *byte == 0xff));
            }
        }
    }
}

#[test]
fn vdi_has_what_virtualbox_looks_at() {
    let bytes = written(&disk(), Format::Vdi, &[]);
    assert_eq!(le32(&bytes, 64), 0xbeda_107f);
    assert_eq!(le32(&bytes, 68), 0x0001_0001, "version 1.1");
    assert_eq!((le32(&bytes, 376), le32(&bytes, 384)), (1 << 20, 11), "blocks of 1 MiB");
    let (map, data) = (le32(&bytes, 340) as usize, le32(&bytes, 344) as usize);
    assert_eq!(data % (1 << 20), 0, "data are aligned");
    assert!(bytes[392..424].chunks(16).all(|uuid| uuid != [0; 16]), "identifiers");
    assert_eq!(bytes[424..456], [0; 32], "no parent");
    let entries: Vec<u32> = (0..11).map(|index| le32(&bytes, map + index * 4)).collect();
    let free = u32::MAX;
    let expected = [free, 0, free, free, free, free, free, free, free, free, 1];
    assert_eq!(entries, expected, "blocks of zeroes have no place");
    assert_eq!(le32(&bytes, 388), 2);
    assert_eq!(bytes.len(), data + (2 << 20));
}

fn has_crc(bytes: &[u8]) -> bool {
    let mut cleared = bytes.to_vec();
    cleared[4..8].fill(0);
    crc32c(&cleared) == le32(bytes, 4)
}

#[test]
fn vhdx_has_what_hyper_v_virtualbox_and_7zip_look_at() {
    let bytes = written(&disk(), Format::Vhdx, &[]);
    assert_eq!(&bytes[..8], b"vhdxfile");
    let headers = [&bytes[64 << 10..][..4096], &bytes[128 << 10..][..4096]];
    for header in headers {
        assert_eq!(&header[..4], b"head");
        assert!(has_crc(header));
        assert_eq!(header[48..64], [0; 16], "nothing to replay");
        assert_ne!(header[16..32], [0; 16]);
        assert_ne!(header[32..48], [0; 16]);
        assert_eq!(header[66..68], [1, 0], "version");
        assert_eq!(le32(header, 68) % (1 << 20), 0);
        assert!(le32(header, 68) > 0 && le64(header, 72) >= MIB);
    }
    assert_ne!(le64(headers[0], 8), le64(headers[1], 8), "one header is the newer");
    let mut regions = Vec::new();
    for at in [192 << 10, 256 << 10] {
        let table = &bytes[at..at + (64 << 10)];
        assert_eq!(&table[..4], b"regi");
        assert!(has_crc(table));
        assert_eq!(le32(table, 8), 2);
        for entry in table[16..80].chunks(32) {
            assert_eq!(le32(entry, 28), 1, "both regions are required");
            let (offset, len) = (le64(entry, 16), u64::from(le32(entry, 24)));
            assert!(offset >= MIB && offset % MIB == 0 && len > 0 && len % MIB == 0);
            regions.push((offset, len));
        }
    }
    assert_eq!(regions[..2], regions[2..]);
    let mut places = regions[..2].to_vec();
    places.push((le64(headers[0], 72), u64::from(le32(headers[0], 68))));
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{places:?}");
    let metadata = &bytes[regions[1].0 as usize..][..128 << 10];
    assert_eq!(&metadata[..8], b"metadata");
    let items = u16::from_le_bytes([metadata[10], metadata[11]]);
    assert_eq!(items, 5);
    for entry in metadata[32..32 + 5 * 32].chunks(32) {
        assert_eq!(le32(entry, 24) & 4, 4, "every item is required");
        assert!(le32(entry, 16) >= 64 << 10);
    }
    // The block with data is fully present at a whole mebibyte, the one before has no place.
    let bat = regions[0].0 as usize;
    assert_eq!(le64(&bytes, bat), 0);
    assert_eq!(le64(&bytes, bat + 8) & 0xf_ffff, 6);
}

/// Returns the embedded descriptor.
fn descriptor(bytes: &[u8]) -> String {
    let start = le64(bytes, 28) as usize * 512;
    let len = le64(bytes, 36) as usize * 512;
    let text = &bytes[start..start + len];
    let end = text.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(text[..end].to_vec()).unwrap()
}

#[test]
fn vmdk_header_and_descriptor_agree() {
    for subformat in ["monolithicSparse", "streamOptimized"] {
        let settings = [("subformat", subformat), ("hwversion", "17")];
        let bytes = written(&disk(), Format::Vmdk, &settings);
        let text = descriptor(&bytes);
        assert!(text.starts_with("# Disk DescriptorFile\n"), "{text}");
        let sectors = (10 * MIB + 512) / 512;
        assert_eq!(le64(&bytes, 12), sectors, "the header's capacity");
        assert!(text.contains(&format!("RW {sectors} SPARSE \"disk.vmdk\"")), "{text}");
        assert!(text.contains(&format!("createType=\"{subformat}\"")), "{text}");
        assert!(text.contains("ddb.adapterType = \"lsilogic\""), "{text}");
        assert!(text.contains("ddb.virtualHWVersion = \"17\""), "{text}");
        assert!(text.contains("parentCID=ffffffff"), "{text}");
        let cid = text.lines().find_map(|line| line.strip_prefix("CID=")).unwrap();
        assert!(cid.len() == 8 && !["ffffffff", "fffffffe", "00000000"].contains(&cid), "{cid}");
    }
}

#[test]
fn vmdk_has_a_redundant_grain_directory() {
    let bytes = written(&disk(), Format::Vmdk, &[]);
    assert_eq!(le32(&bytes, 8) & 2, 2, "the flag");
    let table = |directory: usize| {
        let at = le32(&bytes, le64(&bytes, directory) as usize * 512) as usize * 512;
        bytes[at..at + 2048].to_vec()
    };
    assert_ne!(le64(&bytes, 48), le64(&bytes, 56));
    assert_eq!(table(48), table(56));
    assert_ne!(table(56), [0; 2048]);
    assert_eq!(bytes[73..77], *b"\n \r\n");
}

#[test]
fn streamed_vmdk_is_in_order() {
    let workshop = Workshop::new(70 * MIB + 512);
    // Grains in the first and the third table, the last one shorter than a grain.
    workshop.put(MIB, &Random::new(1).bytes(200_000));
    workshop.put(70 * MIB, b"the end");
    let bytes = written(&workshop, Format::Vmdk, &[("subformat", "streamOptimized")]);
    assert_eq!(le32(&bytes, 4), 3, "version");
    assert_eq!(le32(&bytes, 8), 0x3_0001, "compressed, with markers");
    assert_eq!(le64(&bytes, 56), u64::MAX, "the directory is at the end");
    assert_eq!(u16::from_le_bytes([bytes[77], bytes[78]]), 1, "deflate");
    let mut at = le64(&bytes, 64) as usize * 512;
    assert_eq!(at % (64 << 10), 0, "overhead in whole grains");
    let mut kinds = Vec::new();
    let mut grains = Vec::new();
    let mut directory = 0;
    loop {
        let (value, size) = (le64(&bytes, at), le32(&bytes, at + 8) as usize);
        if size > 0 {
            let mut plain = vec![0; 128 << 10];
            let mut inflate = flate2::Decompress::new(true);
            let packed = &bytes[at + 12..at + 12 + size];
            inflate.decompress(packed, &mut plain, flate2::FlushDecompress::Finish).unwrap();
            assert_eq!(inflate.total_out(), 64 << 10, "also the last grain is whole");
            grains.push((value, at / 512));
            kinds.push('g');
            at = (at + 12 + size).next_multiple_of(512);
            continue;
        }
        let kind = le32(&bytes, at + 12);
        kinds.push(['e', 't', 'd', 'f'][kind as usize]);
        if kind == 2 {
            directory = at / 512 + 1;
        }
        if kind == 3 {
            let footer = &bytes[at + 512..at + 1024];
            assert_eq!(le64(footer, 56), directory as u64);
            assert_eq!(footer[..56], bytes[..56], "the footer is the header");
        }
        if kind == 0 {
            assert_eq!(at + 512, bytes.len(), "nothing follows the end of the stream");
            break;
        }
        at += 512 + value as usize * 512;
    }
    let order: String = kinds.iter().collect();
    assert_eq!(order, "ggggtgtdfe");
    assert!(grains.windows(2).all(|pair| pair[0].0 < pair[1].0));
    // The directory leads to each grain's marker; the second table has none.
    let tables: Vec<u32> = (0..3).map(|index| le32(&bytes, directory * 512 + index * 4)).collect();
    assert_eq!(tables[1], 0);
    for (sector, place) in grains {
        let (table, entry) = ((sector / 128 / 512) as usize, (sector / 128 % 512) as usize);
        assert_eq!(le32(&bytes, tables[table] as usize * 512 + entry * 4) as usize, place);
    }
}

#[test]
fn ova_is_ustar_with_the_descriptor_first() {
    let bytes = written(&disk(), Format::Ova, &[("system", "vmx-15")]);
    assert_eq!(&bytes[257..265], b"ustar\x0000");
    assert!(bytes.starts_with(b"disk.ovf\0"));
    let octal = |at: usize| {
        let text = std::str::from_utf8(&bytes[at..at + 11]).unwrap();
        usize::from_str_radix(text, 8).unwrap()
    };
    let len = octal(124);
    let text = std::str::from_utf8(&bytes[512..512 + len]).unwrap();
    assert!(text.contains("<vssd:VirtualSystemType>vmx-15</vssd:VirtualSystemType>"), "{text}");
    let member = 512 + len.next_multiple_of(512);
    assert!(bytes[member..].starts_with(b"disk-disk1.vmdk\0"));
    let size = octal(member + 124);
    assert!(text.contains(&format!("ovf:size=\"{size}\"")), "{text}");
    assert!(text.contains(&format!("ovf:capacity=\"{}\"", 10 * MIB + 512)), "{text}");
    let manifest = member + 512 + size.next_multiple_of(512);
    assert!(bytes[manifest..].starts_with(b"disk.mf\0"));
    assert!(bytes[bytes.len() - 1024..].iter().all(|byte| *byte == 0));
    // Items have their elements in alphabetical order, as the schema demands.
    for item in text.split("<Item>").skip(1) {
        let item = item.split("</Item>").next().unwrap();
        let names: Vec<_> =
            item.split("<rasd:").skip(1).map(|rest| rest.split('>').next().unwrap()).collect();
        assert!(names.is_sorted() && names.len() >= 6, "{names:?}");
    }
}
