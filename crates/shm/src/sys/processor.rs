//! What differs between processors.

/// Asks for the line that holds `address` to be brought near. A hint: it reads nothing that a program could
/// see, faults on no address, and does nothing on processors for which stable Rust has no such instruction.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: any address will do, see above; every x86-64 processor has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch`], for this processor alone, to be written soon.
///
/// A store would do the same, but the next locked instruction waits for stores, and not for hints.
#[inline(always)]
pub(crate) fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: any address will do; processors that lack the instruction take it for none (Intel SDM,
    // PREFETCHW).
    unsafe {
        core::arch::asm!(
            "prefetchw [{}]",
            in(reg) address,
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
