//! The keys of a profile, table by table, and what their values look like. The reader has the last word on
//! values; a test holds these keys against those that it asks for.

use kvmbake_convert::Format;

use crate::profile::{OnError, SeedKind};

/// What a value may be. Wherever it is no text alone, a text with a variable in it will do as well.
pub enum Value {
    /// Any text.
    Text,
    /// A text or a list of texts.
    Texts,
    /// A list of texts.
    List,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Whole(i64, i64),
    /// A whole number or a list of them.
    Wholes(i64, i64),
    /// A size such as `512M`.
    Size,
    /// A duration such as `1m30s`.
    Duration,
    /// One of these texts.
    OneOf(fn() -> Vec<&'static str>),
    /// A table of texts.
    TextTable,
    /// A table of texts, numbers and booleans.
    Settings,
    /// A text, a number or a boolean.
    Scalar,
    /// The table of this name.
    Table(&'static str),
    /// A list of tables of this name.
    Tables(&'static str),
    /// A table whose entries have names of their own, each of this kind.
    Named(&'static Value),
    /// Any of these.
    Any(&'static [Value]),
    /// `[matrix]`.
    Matrix,
}

/// One table of a profile.
pub struct Table {
    /// Its name in messages and in the documentation.
    pub name: &'static str,
    /// The keys that it must have.
    pub required: &'static [&'static str],
    /// Its keys, with their values.
    pub keys: &'static [(&'static str, Value)],
}

/// The profile itself. What it must have may come from a profile that it includes.
pub const ROOT: &str = "the profile";
/// The key by which profiles are included.
pub const INCLUDE: &str = "include";

/// All tables.
pub const TABLES: &[Table] = &[
    Table {
        name: ROOT,
        required: &[],
        keys: &[
            (INCLUDE, Value::List),
            ("vars", Value::Named(&Value::Any(&[Value::Scalar, Value::Table("[vars]")]))),
            ("matrix", Value::Matrix),
            ("image", Value::Table("[image]")),
            ("machine", Value::Table("[machine]")),
            ("boot", Value::Table("[boot]")),
            ("seed", Value::Table("[seed]")),
            ("ssh", Value::Table("[ssh]")),
            ("net", Value::Table("[net]")),
            ("cache", Value::Table("[cache]")),
            ("step", Value::Tables("[[step]]")),
            ("output", Value::Tables("[[output]]")),
            ("test", Value::Tables("[[test]]")),
        ],
    },
    Table {
        name: "[vars]",
        required: &[],
        keys: &[
            ("default", Value::Scalar),
            ("env", Value::Text),
            ("file", Value::Text),
            ("secret", Value::Flag),
            ("description", Value::Text),
        ],
    },
    Table {
        name: "[image]",
        required: &[],
        keys: &[
            ("name", Value::Text),
            ("source", Value::Texts),
            ("format", Value::OneOf(|| vec!["qcow2", "raw"])),
            ("checksum", Value::Text),
            ("size", Value::Size),
            ("build_size", Value::Size),
            ("allow_backing", Value::Texts),
        ],
    },
    Table {
        name: "[machine]",
        required: &[],
        keys: &[("cpus", Value::Whole(1, 64)), ("memory", Value::Size)],
    },
    Table {
        name: "[boot]",
        required: &[],
        keys: &[
            ("kernel", Value::Text),
            ("initrd", Value::Text),
            ("cmdline", Value::Text),
            ("append", Value::Text),
        ],
    },
    Table {
        name: "[seed]",
        required: &[],
        keys: &[
            ("kind", Value::OneOf(|| SeedKind::ALL.map(SeedKind::name).into())),
            ("user_data", Value::Text),
            ("vendor_data", Value::Text),
            ("network_config", Value::Text),
            ("hostname", Value::Text),
            ("label", Value::Text),
            ("files", Value::TextTable),
            ("eth0_names", Value::Flag),
        ],
    },
    Table {
        name: "[ssh]",
        required: &[],
        keys: &[
            ("user", Value::Text),
            ("private_key", Value::Text),
            ("sudo_password", Value::Text),
            ("timeout", Value::Duration),
        ],
    },
    Table {
        name: "[net]",
        required: &[],
        keys: &[
            ("serve", Value::Text),
            ("host_loopback", Value::Flag),
            ("dns", Value::Text),
            ("network", Value::Text),
            ("ipv6", Value::Flag),
            ("mtu", Value::Whole(576, 65_520)),
            ("hosts", Value::Named(&Value::Texts)),
            ("search", Value::Texts),
            ("restrict", Value::Flag),
            ("allow", Value::Texts),
            ("deny", Value::Texts),
            ("rate", Value::Size),
            ("log", Value::Text),
            ("pcap", Value::Text),
            ("forward", Value::Tables("[[net.forward]]")),
            ("inbound", Value::Tables("[[net.inbound]]")),
        ],
    },
    Table {
        name: "[[net.forward]]",
        required: &["at"],
        keys: &[
            ("at", Value::Text),
            ("serve", Value::Text),
            ("content", Value::Any(&[Value::Text, Value::TextTable])),
            ("connect", Value::Text),
            ("socket", Value::Text),
            ("command", Value::Texts),
            ("writable", Value::Flag),
        ],
    },
    Table {
        name: "[[net.inbound]]",
        required: &["host", "guest"],
        keys: &[
            ("host", Value::Text),
            ("guest", Value::Whole(1, 65_535)),
            ("protocol", Value::OneOf(|| vec!["tcp", "udp"])),
            ("public", Value::Flag),
        ],
    },
    Table {
        name: "[cache]",
        required: &[],
        keys: &[("enabled", Value::Flag), ("memory", Value::Flag)],
    },
    Table {
        name: "[[step]]",
        required: &[],
        keys: &[
            ("name", Value::Text),
            ("shell", Value::Any(&[Value::Texts, Value::Table("shell")])),
            ("upload", Value::Any(&[Value::Table("upload"), Value::Tables("upload")])),
            ("download", Value::Any(&[Value::Table("download"), Value::Tables("download")])),
            ("host", Value::Any(&[Value::Texts, Value::Table("host")])),
            ("ansible", Value::Table("ansible")),
            ("ansible_local", Value::Table("ansible_local")),
            ("sysprep", Value::Any(&[Value::Flag, Value::Table("sysprep")])),
            ("trim", Value::Flag),
            ("wait", Value::Table("wait")),
            ("vm_bootstrap", Value::Any(&[Value::Flag, Value::Table("vm_bootstrap")])),
            ("breakpoint", Value::Any(&[Value::Flag, Value::Text])),
            ("on_error", Value::Any(&[Value::OneOf(OnError::words), Value::Table("on_error")])),
            ("cache", Value::Flag),
            ("when", Value::Text),
            ("only", Value::Texts),
            ("except", Value::Texts),
            ("max_age", Value::Duration),
        ],
    },
    Table {
        name: "shell",
        required: &[],
        keys: &[
            ("inline", Value::Texts),
            ("script", Value::Text),
            ("scripts", Value::Texts),
            ("env", Value::TextTable),
            ("sudo", Value::Flag),
            ("user", Value::Text),
            ("workdir", Value::Text),
            ("shell", Value::Text),
            ("expect", Value::Wholes(0, 255)),
            ("timeout", Value::Duration),
            ("retries", Value::Whole(0, 100)),
            ("retry_delay", Value::Duration),
        ],
    },
    Table {
        name: "upload",
        required: &["source", "to"],
        keys: &[
            ("source", Value::Text),
            ("to", Value::Text),
            ("mode", Value::Text),
            ("owner", Value::Text),
            ("sudo", Value::Flag),
            ("template", Value::Flag),
        ],
    },
    Table {
        name: "download",
        required: &["source", "to"],
        keys: &[
            ("source", Value::Text),
            ("to", Value::Text),
            ("sudo", Value::Flag),
            ("limit", Value::Size),
        ],
    },
    Table {
        name: "host",
        required: &["inline"],
        keys: &[
            ("inline", Value::Texts),
            ("env", Value::TextTable),
            ("workdir", Value::Text),
            ("timeout", Value::Duration),
            ("inputs", Value::Texts),
        ],
    },
    Table {
        name: "ansible",
        required: &["playbook"],
        keys: &[
            ("playbook", Value::Text),
            ("inputs", Value::Texts),
            ("groups", Value::Texts),
            ("host_name", Value::Text),
            ("extra_vars", Value::TextTable),
            ("extra_args", Value::Texts),
            ("become", Value::Flag),
            ("galaxy", Value::Text),
            ("bootstrap", Value::Texts),
            ("timeout", Value::Duration),
            ("python", Value::Text),
            ("env", Value::TextTable),
        ],
    },
    Table {
        name: "ansible_local",
        required: &["playbook"],
        keys: &[
            ("playbook", Value::Text),
            ("inputs", Value::Texts),
            ("groups", Value::Texts),
            ("host_name", Value::Text),
            ("extra_vars", Value::TextTable),
            ("extra_args", Value::Texts),
            ("become", Value::Flag),
            ("galaxy", Value::Text),
            ("bootstrap", Value::Texts),
            ("timeout", Value::Duration),
        ],
    },
    Table {
        name: "sysprep",
        required: &[],
        keys: &[
            (
                "machine_id",
                Value::Any(&[Value::Flag, Value::OneOf(|| vec!["empty", "uninitialized"])]),
            ),
            ("ssh_host_keys", Value::Flag),
            ("cloud_init", Value::Flag),
            ("logs", Value::Flag),
            ("dhcp_leases", Value::Flag),
            ("history", Value::Flag),
            ("package_caches", Value::Flag),
            ("tmp", Value::Flag),
            ("random_seed", Value::Flag),
            ("persistent_net", Value::Flag),
            ("user", Value::Text),
        ],
    },
    Table {
        name: "wait",
        required: &[],
        keys: &[
            ("port", Value::Whole(1, 65_535)),
            ("file", Value::Text),
            ("command", Value::Text),
            ("timeout", Value::Duration),
            ("interval", Value::Duration),
            ("sudo", Value::Flag),
        ],
    },
    Table {
        name: "vm_bootstrap",
        required: &[],
        keys: &[("max_retry", Value::Whole(1, 1_000_000))],
    },
    Table { name: "on_error", required: &["retry"], keys: &[("retry", Value::Whole(1, 100))] },
    Table {
        name: "[[output]]",
        required: &["format"],
        keys: &[
            ("format", Value::OneOf(|| Format::ALL.map(Format::name).into())),
            ("name", Value::Text),
            ("options", Value::Settings),
            ("compress", Value::Flag),
        ],
    },
    Table {
        name: "[[test]]",
        required: &[],
        keys: &[
            ("name", Value::Text),
            ("shell", Value::Text),
            ("expect", Value::Wholes(0, 255)),
            ("contains", Value::Text),
            ("file", Value::Text),
            ("mode", Value::Text),
            ("absent", Value::Text),
            ("port", Value::Whole(1, 65_535)),
            ("service", Value::Text),
            ("bootstrap", Value::Table("bootstrap")),
            ("sudo", Value::Flag),
            ("when", Value::Text),
            ("timeout", Value::Duration),
        ],
    },
    Table { name: "bootstrap", required: &["fails"], keys: &[("fails", Value::Whole(0, 100))] },
];
