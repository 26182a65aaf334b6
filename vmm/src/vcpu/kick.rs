//! Getting a vCPU out of the guest, and the signals of this crate's threads.
//!
//! `immediate_exit` in the shared `kvm_run` page is set first, then the thread is signalled: whether the
//! signal comes before, in or after `KVM_RUN`, the vCPU is out soon and not in again (KVM API 5,
//! "immediate_exit").
#![expect(
    unsafe_code,
    reason = "one byte of the kvm_run page is shared between threads; signal masks"
)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// Real-time signals are for applications; the C library keeps those below `SIGRTMIN` to itself.
pub fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Asks a vCPU to leave the guest; harmless when the vCPU is gone.
#[derive(Debug, Clone, Default)]
pub struct Kick(Arc<Mutex<Option<ImmediateExit>>>);

#[derive(Debug)]
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: the pointer leads to one byte that all threads access atomically, and KVM reads; `Kick::revoke`
// takes it away, under the lock, before the page is unmapped.
unsafe impl Send for ImmediateExit {}

impl Kick {
    /// A kick for this vCPU. Its owner must call [`Kick::revoke`] before it drops `vcpu`.
    pub fn new(vcpu: &mut VcpuFd) -> Kick {
        let byte = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        Kick(Arc::new(Mutex::new(Some(ImmediateExit(byte)))))
    }

    /// Makes the next `KVM_RUN` return at once. Signal the thread afterwards.
    pub fn request(&self) {
        self.store(1);
    }

    /// Lets the vCPU run again. The caller looks at what it was kicked for after this.
    pub fn clear(&self) {
        self.store(0);
    }

    /// Cuts the connection to the vCPU.
    pub fn revoke(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn store(&self, value: u8) {
        let byte = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ImmediateExit(byte)) = &*byte {
            // SAFETY: the page is mapped, for `revoke` was not called and the lock is held; an AtomicU8 has
            // the size and alignment of a byte.
            unsafe { byte.as_ref() }.store(value, Ordering::SeqCst);
        }
    }
}

/// Makes the kick signal interrupt system calls instead of ending the process. For the whole process.
///
/// # Errors
/// What sigaction answers.
pub fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(signal(), nothing).map_err(io::Error::from)
}

/// Leaves all signals to the threads of the embedding program, but for the kick on vCPU threads.
///
/// # Errors
/// What sigprocmask answers.
pub fn prepare_thread(is_vcpu: bool) -> io::Result<()> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset demands room for a sigset_t and initialises it.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set was initialised above; no old mask is asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    if is_vcpu {
        unblock_signal(signal()).map_err(|_| io::Error::last_os_error())?;
    }
    Ok(())
}
