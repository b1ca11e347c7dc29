//! Payloads packed by the programs that the kernel's own build calls.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::boot::fixture::vmlinux as elf;

/// A bzImage around `payload`, as arch/x86/boot/header.S lays it out.
fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 64];
    file[SETUP_SECTS] = 4;
    file[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    file[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
    file[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
    file[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100u16.to_le_bytes());
    file[0x300..0x30c].copy_from_slice(b"6.1.0-test\0\0");
    file[LOADFLAGS] = 1;
    file[XLOADFLAGS] = 0x3f;
    file[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&64u32.to_le_bytes());
    file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend_from_slice(payload);
    file.extend_from_slice(&[0xcc; 100]);
    file
}

/// Runs a compressor over `input`.
fn pack(package: &str, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program} failed");
    output.stdout
}

fn unpacked(image: &KernelImage) -> Result<Vec<u8>, PayloadError> {
    let mut whole = Vec::new();
    image.unpack(&mut |bytes| {
        whole.extend_from_slice(bytes);
        Ok(())
    })?;
    image.verify()?;
    Ok(whole)
}

/// Parses a file and reads it to its end.
fn read(file: Vec<u8>) -> Result<Vec<u8>, PayloadError> {
    unpacked(&KernelImage::parse(file)?)
}

#[test]
fn every_compression_gives_the_kernel_back() {
    let kernel = elf(9 << 20);
    let xz: &[&str] = &["--check=crc32", "--x86", "--lzma2=dict=32MiB,preset=1"];
    let cases: [(&str, &str, &[&str], Compression); 6] = [
        ("gzip", "gzip", &["-n", "-1"], Compression::Gzip),
        ("xz-utils", "xz", xz, Compression::Xz),
        ("zstd", "zstd", &["-q", "-3"], Compression::Zstd),
        ("lz4", "lz4", &["-l", "-q", "-"], Compression::Lz4),
        ("bzip2", "bzip2", &["-1"], Compression::Bzip2),
        ("xz-utils", "xz", &["--format=lzma", "-1"], Compression::Lzma),
    ];
    for (package, program, arguments, compression) in cases {
        let mut payload = pack(package, program, arguments, &kernel);
        if compression != Compression::Gzip {
            payload.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
        }
        let image = KernelImage::parse(bz_image(&payload)).unwrap();
        assert_eq!(image.compression, compression);
        assert!(unpacked(&image).unwrap() == kernel, "{compression} gave other bytes");
        assert_eq!(image.version.as_deref(), Some("6.1.0-test"));
        let header = image.setup_header.unwrap();
        assert_eq!((header.len(), &header[0x11..0x15]), (0x26c - 0x1f1, b"HdrS".as_slice()));
    }
}

#[test]
fn a_plain_vmlinux_is_taken_as_it_is() {
    let image = KernelImage::parse(elf(0x2000)).unwrap();
    assert_eq!(image.compression, Compression::None);
    assert!(image.setup_header.is_none() && unpacked(&image).unwrap() == elf(0x2000));
}

#[test]
fn output_beyond_the_limit_is_refused() {
    let zeroes = vec![0; 3 << 20];
    let cases: [(&str, &[&str], Compression); 6] = [
        ("gzip", &[], Compression::Gzip),
        ("xz", &[], Compression::Xz),
        ("zstd", &["-q"], Compression::Zstd),
        ("lz4", &["-l", "-q", "-"], Compression::Lz4),
        ("bzip2", &[], Compression::Bzip2),
        ("xz", &["--format=lzma"], Compression::Lzma),
    ];
    for (program, arguments, compression) in cases {
        let packed = pack(program, program, arguments, &zeroes);
        let mut taken = 0;
        let mut take = |bytes: &[u8]| {
            taken += bytes.len();
            Ok(())
        };
        let error = decompress(compression, &packed, 1 << 20, &mut take).unwrap_err();
        assert!(matches!(error, PayloadError::TooLarge { .. }), "{error}");
        assert!(taken <= 1 << 20, "{taken} bytes got through");
        taken = 0;
        let mut take = |bytes: &[u8]| {
            taken += bytes.len();
            Ok(())
        };
        decompress(compression, &packed, 3 << 20, &mut take).unwrap();
        assert_eq!(taken, 3 << 20);
    }
}

#[test]
fn what_is_no_x86_64_kernel_says_what_it_is() {
    let message = |file: Vec<u8>| read(file).unwrap_err().to_string();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = bz_image(&elf(0x2000));
        change(&mut file);
        message(file)
    };
    assert_eq!(message(vec![0; 20]), "Not a Linux kernel: only 20 bytes");
    assert!(message(vec![0; 4096]).contains("neither a bzImage nor an ELF"));
    assert!(message(b"MZ\0\0zimg".repeat(100)).contains("EFI zboot"));
    assert!(message([b"MZ".as_slice(), &[0; 4096]].concat()).contains("unified kernel image"));
    assert!(changed(&|file| file[XLOADFLAGS] = 0).contains("32-bit kernel"));
    assert!(changed(&|file| file[VERSION] = 0x08).contains("2.08 is older than 2.12"));
    assert!(changed(&|file| file.truncate(0x1000)).contains("payload at 0xa40..0x2a40"));
    assert!(changed(&|file| file[0x201] = 0xff).contains("header ends at 0x301"));
    let mut object = elf(0x2000);
    object[0x10] = 1;
    assert!(message(object).contains("relocatable object"));
    let mut other = elf(0x2000);
    other[0x12] = 183;
    assert!(message(other).contains("machine 183"));
    let mut outside = elf(0x2000);
    outside[64 + 15] = 0xff;
    assert!(message(outside).contains("segment 0"));
    assert!(message(bz_image(b"\x89LZO\0\r\n")).contains("LZO"));
    assert!(message(bz_image(b"nonsense")).contains("6e 6f 6e 73 65 6e"));
}

#[test]
fn a_damaged_payload_is_an_error_not_a_panic() {
    let kernel = elf(1 << 20);
    let packed = pack("xz-utils", "xz", &["--check=crc32", "-1"], &kernel);
    for at in (12..packed.len()).step_by(packed.len() / 50) {
        let mut bad = packed.clone();
        bad[at] ^= 0x55;
        assert!(read(bz_image(&bad)).is_err(), "byte {at} changed");
    }
    let packed = pack("lz4", "lz4", &["-l", "-q", "-"], &kernel);
    assert!(read(bz_image(&packed[..packed.len() / 2])).is_err());
}
