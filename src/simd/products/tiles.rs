//! Matrix tiles (AMX): eight registers of 16 rows of 64 bytes, of which 0 to 3 are sums here, of 16×16 f32; operands are 16
//! rows of 16 pairs of bf16, the right one with pairs down its columns. The instructions are written as assembly, since the
//! language has no stable names for them.

use std::sync::OnceLock;

use super::{Line, STEP, Sums};

/// Instructions of this machine; elsewhere there are no tiles, and what needs them does not run.
macro_rules! asm {
    ($($line:tt)*) => {{
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!($($line)*);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("there are no tiles");
    }};
}

/// Whether this machine has tiles of bf16 and the system lets the process use them.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(detect)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn detect() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    let known = __cpuid(0).eax >= 7;
    if !known || __cpuid_count(7, 0).edx & BF16_AND_TILES != BF16_AND_TILES {
        return false;
    }
    // SAFETY: asks for the process's permission to use the registers; changes nothing else.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn detect() -> bool {
    false
}

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tiles of this thread, from their configuration until the end of their use; whoever had them before finds his own.
pub struct Tiles(Configuration);

impl Tiles {
    const NONE: Configuration = Configuration {
        palette: 0,
        start: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };

    /// # Safety
    /// Tiles are [`available`].
    pub unsafe fn take() -> Tiles {
        let mut before = Self::NONE;
        let mut full = Self::NONE;
        full.palette = 1;
        full.row_bytes[..8].fill(64);
        full.rows[..8].fill(16);
        // SAFETY: the first writes and the second reads 64 bytes.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack, preserves_flags));
            asm!("ldtilecfg [{}]", in(reg) &raw const full, options(nostack, preserves_flags));
        }
        Tiles(before)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as in `take`; a palette of 0 is a configuration as well, that of tiles which nobody uses.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const self.0, options(nostack, preserves_flags))
        };
    }
}

/// Sums in four tiles, [row half][column half].
pub struct TileSums;

impl Sums for TileSums {
    const TERMS: usize = 2;
    const STEPS: usize = 1;
    type Registers = Tiles;

    #[inline(always)]
    unsafe fn registers() -> Tiles {
        // SAFETY: the caller's promise.
        unsafe { Tiles::take() }
    }

    #[inline(always)]
    fn new(_: &Tiles) -> TileSums {
        // SAFETY: the tiles are configured.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags)
            );
        }
        TileSums
    }

    #[inline(always)]
    unsafe fn add(&mut self, left: *const Line, right: *const Line, steps: usize) {
        for step in 0..steps {
            // SAFETY: passed on to the caller.
            unsafe { self.add_step(left.add(step * STEP), right.add(step * STEP)) };
        }
    }

    #[inline(always)]
    fn write(self, target: &mut [[f32; 16]; 64]) {
        // SAFETY: writes 4 KiB.
        unsafe {
            asm!(
                "tilestored [{target} + {line}], tmm0",
                "tilestored [{target} + {line} + 1024], tmm2",
                "tilestored [{target} + {line} + 2048], tmm1",
                "tilestored [{target} + {line} + 3072], tmm3",
                target = in(reg) target.as_mut_ptr(),
                line = in(reg) 64usize,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl TileSums {
    /// # Safety
    /// As for `add`.
    #[inline(always)]
    unsafe fn add_step(&mut self, left: *const Line, right: *const Line) {
        // SAFETY: reads 2 KiB of each.
        unsafe {
            asm!(
                "tileloadd tmm4, [{left} + {line}]",
                "tileloaddt1 tmm6, [{right} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{left} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloaddt1 tmm7, [{right} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                left = in(reg) left,
                right = in(reg) right,
                line = in(reg) 64usize,
                options(nostack, readonly, preserves_flags)
            );
        }
    }
}
