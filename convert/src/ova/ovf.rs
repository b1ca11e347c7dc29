//! The OVF descriptor (DSP0243 1.1, which includes 1.0): one virtual system with one disk.
//!
//! The order of elements is the schema's; within an `Item` it is alphabetical, as the schema of
//! the resource settings demands.

use std::fmt::Write;

use super::OvaOptions;

const FORMAT: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
const NETWORK: &str = "VM Network";

/// What the descriptor tells besides the options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appliance<'a> {
    /// The machine's name.
    pub(super) name: &'a str,
    /// The disk's file in the archive, and its length in bytes.
    pub(super) file: &'a str,
    pub(super) file_size: u64,
    /// The disk's virtual size in bytes.
    pub(super) capacity: u64,
}

/// Returns the descriptor.
pub(super) fn encode(appliance: &Appliance<'_>, options: &OvaOptions) -> String {
    let name = escaped(appliance.name);
    let file = escaped(appliance.file);
    let Appliance { file_size, capacity, .. } = appliance;
    let mut text = format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:href="{file}" ovf:id="file1" ovf:size="{file_size}"/>
  </References>
  <DiskSection>
    <Info>The virtual disk</Info>
    <Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="{FORMAT}"/>
  </DiskSection>
"#
    );
    if options.nic.is_some() {
        let _ = write!(
            text,
            r#"  <NetworkSection>
    <Info>The networks</Info>
    <Network ovf:name="{NETWORK}">
      <Description>The network of the machine's adapter</Description>
    </Network>
  </NetworkSection>
"#
        );
    }
    let _ = write!(
        text,
        r#"  <VirtualSystem ovf:id="{name}">
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="101">
      <Info>The kind of operating system</Info>
      <Description>Linux 64-Bit</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>{}</vssd:VirtualSystemType>
      </System>
"#,
        escaped(&options.system)
    );
    for item in items(options) {
        text.push_str("      <Item>\n");
        for (element, value) in item {
            let _ = writeln!(text, "        <rasd:{element}>{}</rasd:{element}>", escaped(&value));
        }
        text.push_str("      </Item>\n");
    }
    text.push_str("    </VirtualHardwareSection>\n    <ProductSection>\n");
    text.push_str("      <Info>What is on the disk</Info>\n");
    let product = options.product.as_deref().unwrap_or(appliance.name);
    for (element, value) in [
        ("Product", Some(product)),
        ("Vendor", options.vendor.as_deref()),
        ("Version", options.version.as_deref()),
    ] {
        if let Some(value) = value {
            let _ = writeln!(text, "      <{element}>{}</{element}>", escaped(value));
        }
    }
    text.push_str("    </ProductSection>\n  </VirtualSystem>\n</Envelope>\n");
    text
}

type Item = Vec<(&'static str, String)>;

/// Returns the hardware: the numbers are CIM's resource types.
fn items(options: &OvaOptions) -> Vec<Item> {
    let OvaOptions { cpus, memory, .. } = options;
    let (kind, subtype, name) = match options.controller.as_str() {
        "ide" => ("5", None, "IDE controller 0"),
        "ahci" => ("20", Some("AHCI"), "SATA controller 0"),
        model => ("6", Some(model), "SCSI controller 0"),
    };
    let mut items: Vec<Item> = vec![
        vec![
            ("AllocationUnits", "hertz * 10^6".to_owned()),
            ("Description", "Number of virtual CPUs".to_owned()),
            ("ElementName", format!("{cpus} virtual CPU(s)")),
            ("InstanceID", "1".to_owned()),
            ("ResourceType", "3".to_owned()),
            ("VirtualQuantity", cpus.to_string()),
        ],
        vec![
            ("AllocationUnits", "byte * 2^20".to_owned()),
            ("Description", "Memory size".to_owned()),
            ("ElementName", format!("{memory} MB of memory")),
            ("InstanceID", "2".to_owned()),
            ("ResourceType", "4".to_owned()),
            ("VirtualQuantity", memory.to_string()),
        ],
        [
            ("Address", Some("0")),
            ("Description", Some("Disk controller")),
            ("ElementName", Some(name)),
            ("InstanceID", Some("3")),
            ("ResourceSubType", subtype),
            ("ResourceType", Some(kind)),
        ]
        .into_iter()
        .filter_map(|(element, value)| Some((element, value?.to_owned())))
        .collect(),
        vec![
            ("AddressOnParent", "0".to_owned()),
            ("Description", "Disk".to_owned()),
            ("ElementName", "Disk 1".to_owned()),
            ("HostResource", "ovf:/disk/vmdisk1".to_owned()),
            ("InstanceID", "4".to_owned()),
            ("Parent", "3".to_owned()),
            ("ResourceType", "17".to_owned()),
        ],
    ];
    if let Some(nic) = &options.nic {
        items.push(vec![
            ("AddressOnParent", "7".to_owned()),
            ("AutomaticAllocation", "true".to_owned()),
            ("Connection", NETWORK.to_owned()),
            ("Description", "Network adapter".to_owned()),
            ("ElementName", "Ethernet 1".to_owned()),
            ("InstanceID", "5".to_owned()),
            ("ResourceSubType", nic.clone()),
            ("ResourceType", "10".to_owned()),
        ]);
    }
    items
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
