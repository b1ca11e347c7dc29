//! The ACPI tables: what tells the guest which hardware there is.
//!
//! RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT lie in [`layout::ACPI_TABLES`], where guests search for the RSDP; Linux is also
//! told its address. The tables name only what exists, and say of the PC's heirlooms (keyboard controller, VGA) that they are
//! absent, so that the guest does not probe for them. See ACPI 6.5, section 5.2, and the PCI Firmware Specification 3.3, 4.1.

mod dsdt;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, facs::FACS};

use crate::devices::{acpi_pm, cmos, reset};
use crate::layout;

const OEM: [u8; 6] = *b"KVMBKE";
const OEM_TABLE: [u8; 8] = *b"KVMBAKE ";
const OEM_REVISION: u32 = 1;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// Number of CPUs; CPU `n` has APIC id `n`.
    pub cpus: u8,
    /// Bytes of RAM: the 64-bit PCI window depends on it.
    pub memory: u64,
}

/// The tables as they go into guest memory.
pub struct Tables {
    /// Bytes for [`layout::ACPI_TABLES`], from its start.
    pub bytes: Vec<u8>,
    /// Guest-physical address of the RSDP.
    pub rsdp: u64,
}

/// Builds the tables of `hardware`.
pub fn build(hardware: Hardware) -> Tables {
    let mut image = Image { base: layout::ACPI_TABLES.start, bytes: Vec::with_capacity(4096) };
    // The RSDP comes first and needs to know where the XSDT is: its place is kept free.
    let rsdp = image.put(&[0; 36]);
    let facs = image.put(&encode(&FACS::new()));
    let dsdt = image.put(&sealed(*b"DSDT", 2, &dsdt::body(hardware)));
    let fadt = image.put(&encode(&fadt(facs, dsdt)));
    let madt = image.put(&madt(hardware.cpus));
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    let mcfg = image.put(&encode(&mcfg));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = image.put(&encode(&xsdt));
    image.bytes[..36].copy_from_slice(&encode(&Rsdp::new(OEM, xsdt)));
    Tables { bytes: image.bytes, rsdp }
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table, aligned to 64 bytes as the FACS wants it, and returns its address.
    fn put(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn encode(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Returns `body` behind a table header with length and checksum.
fn sealed(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

fn io_register(bits: u8, access: AccessSize, port: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port)
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    // No C2 and C3 states.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let pm = layout::ACPI_PM;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is fixed hardware (flag clear); there is no sleep button, and the RTC wakes nobody.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (layout::SCI_IRQ as u16).into();
    fadt.pm1a_evt_blk = ((pm + acpi_pm::EVENT) as u32).into();
    fadt.pm1a_cnt_blk = ((pm + acpi_pm::CONTROL) as u32).into();
    fadt.pm_tmr_blk = ((pm + acpi_pm::TIMER) as u32).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = cmos::CENTURY;
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM).into();
    fadt.reset_reg = io_register(8, AccessSize::ByteAccess, layout::RESET_CONTROL);
    fadt.reset_value = reset::RESET_VALUE;
    fadt.x_pm1a_evt_blk = io_register(32, AccessSize::WordAccess, pm + acpi_pm::EVENT);
    fadt.x_pm1a_cnt_blk = io_register(16, AccessSize::WordAccess, pm + acpi_pm::CONTROL);
    fadt.x_pm_tmr_blk = io_register(32, AccessSize::DwordAccess, pm + acpi_pm::TIMER);
    fadt.finalize()
}

fn madt(cpus: u8) -> Vec<u8> {
    const PC_AT_COMPATIBLE: u32 = 1;
    const ENABLED: u32 = 1;
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    const AS_BUS: u16 = 0;
    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LOCAL_APIC as u32).to_le_bytes());
    body.extend_from_slice(&PC_AT_COMPATIBLE.to_le_bytes());
    for cpu in 0..cpus {
        body.extend_from_slice(&[0, 8, cpu, cpu]);
        body.extend_from_slice(&ENABLED.to_le_bytes());
    }
    let ioapic_id = 0;
    body.extend_from_slice(&[1, 12, ioapic_id, 0]);
    body.extend_from_slice(&(layout::IOAPIC as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    for (irq, pin, flags) in
        [(0, 2, AS_BUS), (layout::SCI_IRQ as u8, layout::SCI_IRQ, ACTIVE_HIGH_LEVEL)]
    {
        body.extend_from_slice(&[2, 10, 0, irq]);
        body.extend_from_slice(&pin.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    // Local APIC NMI: LINT1 of every processor.
    body.extend_from_slice(&[4, 6, 0xff]);
    body.extend_from_slice(&AS_BUS.to_le_bytes());
    body.push(1);
    sealed(*b"APIC", 5, &body)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const HARDWARE: Hardware = Hardware { cpus: 2, memory: 5 << 30 };

    fn at(tables: &Tables, address: u64) -> &[u8] {
        &tables.bytes[(address - layout::ACPI_TABLES.start) as usize..]
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// Follows the pointers from the RSDP as a guest does and returns every table with its name.
    fn walk(tables: &Tables) -> Vec<(String, Vec<u8>)> {
        let rsdp = at(tables, tables.rsdp);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let table = |address: u64| {
            let bytes = at(tables, address);
            let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
            bytes[..len].to_vec()
        };
        let xsdt = table(u64_at(rsdp, 24));
        let mut found: Vec<Vec<u8>> =
            xsdt[36..].chunks_exact(8).map(|entry| table(u64_at(entry, 0))).collect();
        found.push(table(u64_at(&found[0], 140)));
        found.push(xsdt);
        found
            .into_iter()
            .map(|bytes| (String::from_utf8_lossy(&bytes[..4]).into_owned(), bytes))
            .collect()
    }

    #[test]
    fn every_table_is_reachable_and_its_checksum_holds() {
        let tables = build(HARDWARE);
        let room = layout::GENERATION_ID - layout::ACPI_TABLES.start;
        assert!(tables.bytes.len() <= room as usize);
        assert!(layout::ACPI_TABLES.contains(&(layout::GENERATION_ID + 15)));
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let rsdp = at(&tables, tables.rsdp);
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0));
        let found = walk(&tables);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
        for (name, bytes) in &found {
            assert_eq!(sum(bytes), 0, "{name}");
        }
    }

    #[test]
    fn the_acpi_disassembler_reads_every_table() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in walk(&build(HARDWARE)) {
            let path = folder.path().join(format!("{name}.aml"));
            std::fs::write(&path, bytes).unwrap();
            let run = Command::new("iasl").arg("-d").arg(&path).output();
            let output = run.expect("iasl must be installed: Debian package acpica-tools");
            let said =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && !said.contains("Error") && !said.contains("Invalid"),
                "{name}: {said}"
            );
            if name == "DSDT" {
                let source = std::fs::read_to_string(path.with_extension("dsl")).unwrap();
                for part in ["PNP0A08", "PNP0501", "PNP0C02", "_S5", "VM_Gen_Counter", "ACPI0013"] {
                    assert!(source.contains(part), "{part} is missing in {source}");
                }
                // As Linux reads it: what ADDR returns, and what the event device does with its interrupt.
                let method = source.split("Method (ADDR").nth(1).unwrap();
                let dense: String = method.chars().filter(|c| !c.is_whitespace()).collect();
                assert!(dense.contains("{0x000FF000,Zero}"), "{method}");
                assert!(dense.contains("If((Arg0==0x0A)){Notify(\\_SB.VGEN,0x80)"), "{method}");
                compile(&path.with_extension("dsl"));
            }
        }
    }

    fn compile(source: &std::path::Path) {
        let output = Command::new("iasl")
            .arg("-p")
            .arg(source.with_extension("again"))
            .arg(source)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("0 Errors, 0 Warnings"), "{said}");
    }
}
