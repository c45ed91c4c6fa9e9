//! Matrix tiles (AMX): products of bf16 matrices, added up in f32.
//!
//! Eight registers of 16 rows of 64 bytes, of which 0 to 3 are sums here. A step of [`Sums::add`] multiplies 32 rows by 32
//! columns over 32 terms: sums of 16×16 f32, operands of 16 rows of 16 pairs of bf16, the right one with pairs down its
//! columns. The instructions are written as assembly, since the language has no stable names for them. [`PlainSums`] computes
//! the same without tiles: far slower, so that what is built on them can be tested on every machine.

use std::sync::OnceLock;

/// Instructions of this machine; elsewhere there are no tiles, and what needs them does not run.
macro_rules! asm {
    ($($line:tt)*) => {{
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!($($line)*);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("there are no tiles");
    }};
}

/// A row of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

impl Line {
    pub const ZERO: Line = Line([0; 16]);
}

/// Lines of an operand that a step takes: two tiles.
pub const STEP: usize = 32;

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

/// Sums of 32×32 products.
pub trait Sums: Sized {
    /// What has to be there while there are sums.
    type Registers;

    /// # Safety
    /// Tiles are [`available`], where the registers are such.
    unsafe fn registers() -> Self::Registers;

    /// Zeros.
    fn new(registers: &Self::Registers) -> Self;

    /// Adds a step's products.
    ///
    /// # Safety
    /// `left` and `right` have [`STEP`] lines.
    unsafe fn add(&mut self, left: *const Line, right: *const Line);

    /// Writes the sums: 32 rows of the left 16 columns, then 32 rows of the right ones.
    fn write(self, target: &mut [[f32; 16]; 64]);
}

/// Sums in four tiles, [row half][column half].
pub struct TileSums;

impl Sums for TileSums {
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
    unsafe fn add(&mut self, left: *const Line, right: *const Line) {
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

/// Sums in memory.
pub struct PlainSums([[f32; 16]; 64]);

impl Sums for PlainSums {
    type Registers = ();

    unsafe fn registers() {}

    fn new((): &()) -> PlainSums {
        PlainSums([[0.0; 16]; 64])
    }

    unsafe fn add(&mut self, left: *const Line, right: *const Line) {
        let halves = |pair: u32| {
            [
                f32::from_bits(pair << 16),
                f32::from_bits(pair & 0xffff_0000),
            ]
        };
        // SAFETY: the caller's promise.
        let (left, right) = unsafe {
            (
                std::slice::from_raw_parts(left, STEP),
                std::slice::from_raw_parts(right, STEP),
            )
        };
        for (place, sums) in self.0.iter_mut().enumerate() {
            let (half, row) = (place / STEP, place % STEP);
            for (pair, line) in right[half * 16..][..16].iter().enumerate() {
                let [a, b] = halves(left[row].0[pair]);
                for (sum, column) in sums.iter_mut().zip(line.0) {
                    let [x, y] = halves(column);
                    *sum += a * x + b * y;
                }
            }
        }
    }

    fn write(self, target: &mut [[f32; 16]; 64]) {
        *target = self.0;
    }
}
