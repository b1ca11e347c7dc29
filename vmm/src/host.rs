//! What the host offers: opening `/dev/kvm`, and the probe that explains why it cannot be used.
//!
//! Every failure is told by its errno, because each has another remedy: a missing module, a container without the device, a
//! user outside the group, firmware that turned virtualization off.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::{
    KVM_CAP_EXT_CPUID, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IOEVENTFD_ANY_LENGTH,
    KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_MP_STATE, KVM_CAP_PIT2,
    KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR, KVM_CAP_SIGNAL_MSI, KVM_CAP_USER_MEMORY,
};
use kvm_ioctls::{Kvm, VmFd};

use crate::error::Error;

const DEVICE: &str = "/dev/kvm";
const API_VERSION: i32 = 12;

/// Capabilities the machine cannot do without.
const REQUIRED: &[(u32, &str)] = &[
    (KVM_CAP_IRQCHIP, "in-kernel interrupt controllers"),
    (KVM_CAP_USER_MEMORY, "user memory regions"),
    (KVM_CAP_SET_TSS_ADDR, "the task segment address"),
    (KVM_CAP_SET_IDENTITY_MAP_ADDR, "the identity map address"),
    (KVM_CAP_PIT2, "the in-kernel timer"),
    (KVM_CAP_EXT_CPUID, "CPUID by the kernel"),
    (KVM_CAP_MP_STATE, "the vCPU run state"),
    (KVM_CAP_IRQFD, "interrupts by eventfd"),
    (KVM_CAP_IRQ_ROUTING, "interrupt routing"),
    (KVM_CAP_SIGNAL_MSI, "message-signalled interrupts"),
    (KVM_CAP_IOEVENTFD, "doorbells by eventfd"),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, "doorbells of any length (Linux 4.4)"),
    (KVM_CAP_IMMEDIATE_EXIT, "immediate exit (Linux 4.12)"),
];

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// Works, but something is not as a user would expect.
    Warning,
    /// No machine can run.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, a few words.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found, one sentence without a full stop.
    pub detail: String,
    /// What to do about it; empty when nothing.
    pub hint: String,
}

impl Check {
    fn new(
        name: &'static str,
        outcome: Outcome,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { name, outcome, detail: detail.into(), hint: hint.into() }
    }
}

/// Opens `/dev/kvm` and checks its version and capabilities.
///
/// # Errors
/// [`Error::NoKvm`] with what is wrong and what to do about it.
pub(crate) fn open() -> Result<Kvm, Error> {
    let refuse = |(problem, hint)| Error::NoKvm { problem, hint };
    let kvm = Kvm::new()
        .map_err(|error| refuse(explain_open(&io::Error::from_raw_os_error(error.errno()))))?;
    check_version(&kvm).map_err(refuse)?;
    check_capabilities(&kvm).map_err(refuse)?;
    Ok(kvm)
}

/// Creates the VM.
///
/// # Errors
/// [`Error::NoKvm`] with what is wrong and what to do about it.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            // Creating a VM takes a lock that any signal interrupts.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => {
                let (problem, hint) = explain_create(&io::Error::from_raw_os_error(error.errno()));
                return Err(Error::NoKvm { problem, hint });
            }
        }
    }
}

/// Looks at everything the machine needs of the host and says what to do about what is missing.
///
/// The checks build on each other: the list ends with the first that fails.
pub fn probe() -> Vec<Check> {
    let mut checks =
        vec![check_processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())];
    let kvm = match Kvm::new() {
        Ok(kvm) => {
            checks.push(Check::new(DEVICE, Outcome::Good, "Opened for reading and writing", ""));
            kvm
        }
        Err(error) => {
            let (problem, hint) = explain_open(&io::Error::from_raw_os_error(error.errno()));
            checks.push(Check::new(DEVICE, Outcome::Failed, problem, hint));
            return checks;
        }
    };
    let mut push = |name, result: Result<String, (String, String)>| {
        let failed = result.is_err();
        checks.push(match result {
            Ok(detail) => Check::new(name, Outcome::Good, detail, ""),
            Err((problem, hint)) => Check::new(name, Outcome::Failed, problem, hint),
        });
        failed
    };
    if push("KVM interface", check_version(&kvm).map(|()| format!("Version {API_VERSION}")))
        || push("KVM capabilities", check_capabilities(&kvm).map(|()| "All present".to_owned()))
    {
        return checks;
    }
    let vm = match create_vm(&kvm) {
        Ok(vm) => vm,
        Err(Error::NoKvm { problem, hint }) => {
            push("Virtual machine", Err((problem, hint)));
            return checks;
        }
        Err(other) => {
            push("Virtual machine", Err((other.to_string(), String::new())));
            return checks;
        }
    };
    let vcpu = vm.create_irq_chip().and_then(|()| vm.create_vcpu(0)).map(|_| {
        format!(
            "Created with interrupt controllers and a vCPU; at most {} vCPUs",
            kvm.get_max_vcpus()
        )
    });
    push(
        "Virtual machine",
        vcpu.map_err(|error| explain_create(&io::Error::from_raw_os_error(error.errno()))),
    );
    checks
}

/// Reads from `/proc/cpuinfo` whether hardware virtualization stands behind KVM.
fn check_processor(cpuinfo: &str) -> Check {
    let name = "Processor";
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag| flags.split_ascii_whitespace().any(|word| word == flag);
    if has("svm") {
        Check::new(name, Outcome::Good, "AMD hardware virtualization (svm)", "")
    } else if has("vmx") {
        Check::new(name, Outcome::Good, "Intel hardware virtualization (vmx)", "")
    } else {
        let detail = "No hardware virtualization: /proc/cpuinfo shows neither svm nor vmx";
        let hint = "If /dev/kvm exists all the same, it emulates, and guests run very slowly or not at all. On a real machine, \
                    turn on VT-x or AMD-V (SVM) in the firmware setup; in a virtual machine, turn on nested virtualization in \
                    its host";
        Check::new(name, Outcome::Warning, detail, hint)
    }
}

type Explained = (String, String);

fn explain_open(error: &io::Error) -> Explained {
    match error.raw_os_error() {
        Some(libc::ENOENT) => (
            "There is no /dev/kvm".to_owned(),
            "Load the module (sudo modprobe kvm_amd or kvm_intel); in a container, hand the device in \
             (docker run --device /dev/kvm)"
                .to_owned(),
        ),
        Some(libc::EACCES | libc::EPERM) => explain_permission(),
        Some(libc::ENODEV | libc::ENXIO) => (
            "/dev/kvm exists, but no KVM module serves it".to_owned(),
            "Load the module (sudo modprobe kvm_amd or kvm_intel); if that fails, virtualization is off in the firmware setup"
                .to_owned(),
        ),
        Some(libc::EBUSY) => (
            "/dev/kvm is busy".to_owned(),
            "Another hypervisor holds the processor's virtualization: stop it (VirtualBox, VMware) and try again".to_owned(),
        ),
        _ => (format!("Cannot open /dev/kvm: {error}"), "See the kernel log (dmesg | grep kvm)".to_owned()),
    }
}

fn explain_permission() -> Explained {
    let Ok(metadata) = fs::metadata(DEVICE) else {
        return (
            "No permission to look at /dev/kvm".to_owned(),
            "Check the permissions of /dev".to_owned(),
        );
    };
    // SAFETY: the call has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    let mode = metadata.mode() & 0o777;
    let group = group_name(metadata.gid());
    let problem =
        format!("No permission to open /dev/kvm (mode {mode:o}, group {group}) as user {user}");
    let hint = if metadata.gid() != 0 && mode & 0o060 == 0o060 {
        format!(
            "Join the group and log in again (sudo usermod -aG {group} $USER), or give yourself access until the next boot \
             (sudo setfacl -m u:$USER:rw /dev/kvm); in a container, add the group \
             (docker run --device /dev/kvm --group-add {})",
            metadata.gid()
        )
    } else {
        "Give yourself access until the next boot (sudo setfacl -m u:$USER:rw /dev/kvm), or let udev do it: \
         KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\""
            .to_owned()
    };
    (problem, hint)
}

fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid.to_string()).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| gid.to_string())
}

fn explain_create(error: &io::Error) -> Explained {
    match error.raw_os_error() {
        Some(libc::EBUSY) => (
            "KVM cannot enable virtualization: the processor is in use by another hypervisor"
                .to_owned(),
            "Stop the other hypervisor (VirtualBox, VMware) and try again".to_owned(),
        ),
        Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EIO) => (
            "KVM cannot enable hardware virtualization".to_owned(),
            "Turn on VT-x or AMD-V (SVM) in the firmware setup".to_owned(),
        ),
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE) => (
            format!("The host has no room for a virtual machine: {error}"),
            "Free memory or raise the limits (ulimit -n)".to_owned(),
        ),
        _ => (
            format!("KVM cannot create a virtual machine: {error}"),
            "See the kernel log (dmesg | grep kvm)".to_owned(),
        ),
    }
}

fn check_version(kvm: &Kvm) -> Result<(), Explained> {
    match kvm.get_api_version() {
        API_VERSION => Ok(()),
        other => Err((
            format!("/dev/kvm speaks interface version {other}, not {API_VERSION}"),
            "Something else than Linux's KVM answers there".to_owned(),
        )),
    }
}

fn check_capabilities(kvm: &Kvm) -> Result<(), Explained> {
    let missing: Vec<&str> = REQUIRED
        .iter()
        .filter(|(cap, _)| kvm.check_extension_raw((*cap).into()) <= 0)
        .map(|&(_, what)| what)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err((
        format!("KVM lacks {}", missing.join(", ")),
        "Use a newer host kernel (4.20 or later)".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_flags_are_read_as_words() {
        assert_eq!(
            check_processor("processor: 0\nflags\t\t: fpu svm_lock vmx2\n").outcome,
            Outcome::Warning
        );
        assert_eq!(check_processor("flags\t\t: fpu svm lm\n").outcome, Outcome::Good);
        assert_eq!(check_processor("flags\t\t: fpu vmx\n").outcome, Outcome::Good);
        assert_eq!(check_processor("").outcome, Outcome::Warning);
    }

    #[test]
    fn every_open_error_has_its_own_explanation() {
        let explain = |errno| explain_open(&io::Error::from_raw_os_error(errno));
        assert!(explain(libc::ENOENT).1.contains("--device /dev/kvm"));
        assert!(explain(libc::ENODEV).0.contains("no KVM module"));
        assert!(
            explain(libc::EACCES).1.contains("setfacl")
                || explain(libc::EACCES).1.contains("usermod")
        );
    }

    #[test]
    fn probe_finds_this_machine_usable() {
        let checks = probe();
        assert!(checks.iter().all(|check| check.outcome != Outcome::Failed), "{checks:?}");
        assert_eq!(checks.last().map(|check| check.name), Some("Virtual machine"));
    }
}
