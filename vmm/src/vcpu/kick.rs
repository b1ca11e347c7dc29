//! Getting a vCPU thread out of the guest.
//!
//! A kick first sets the vCPU's `immediate_exit`, then sends its thread a real-time signal. The signal ends a KVM_RUN that is under
//! way; the flag ends at once one that begins just then. Once set, the flag stays, so that one kick is enough, until the thread itself clears it
//! after a pause.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Mutex, Once, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

fn signal() -> libc::c_int {
    SIGRTMIN() + 7
}

/// The kick of one vCPU; empty while its thread does not run.
#[derive(Default)]
pub(crate) struct Kick(Mutex<Option<Target>>);

struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer goes to the vCPU's kvm_run page, which is shared with the kernel and accessed atomically; `Armed` takes
// it away before the page is unmapped.
unsafe impl Send for Target {}

impl Kick {
    /// Arms the kick for the calling thread, which is about to run `vcpu`, until the guard is dropped.
    pub(crate) fn arm<'a>(&'a self, vcpu: &mut VcpuFd) -> Armed<'a> {
        let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.lock() = Some(Target { thread, immediate_exit: flag.cast() });
        Armed(self)
    }

    /// Makes the vCPU leave the guest, if its thread runs.
    pub(crate) fn kick(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: while the target is there, its thread has not ended and its kvm_run page is mapped.
            unsafe {
                (*target.immediate_exit).store(1, SeqCst);
                libc::pthread_kill(target.thread, signal());
            }
        }
    }

    /// Sets or clears the flag of the calling thread's own vCPU. A kick that comes after the clearing is not lost; for one that
    /// came before, its reason must be looked at after the clearing.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        if let Some(target) = &*self.lock() {
            // SAFETY: as in `kick`.
            unsafe { (*target.immediate_exit).store(on.into(), SeqCst) };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a kick armed.
pub(crate) struct Armed<'a>(&'a Kick);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// Installs the signal's empty handler, once a process: without one the signal would end the process.
pub(crate) fn install_handler() {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = register_signal_handler(signal(), ignore) {
            tracing::error!(%error, "cannot install the vCPU signal's handler");
        }
    });
}

/// Leaves all signals but the kick to the process's other threads.
pub(crate) fn block_other_signals() {
    // SAFETY: the set is initialized by sigfillset before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::sigdelset(&mut set, signal());
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT] {
            libc::sigdelset(&mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}
