//! Kernel sources, and what it takes to run one of them: a program, a grid, the bytes of its argument.

/// A file of `kernels/`, embedded in the module.
pub struct Source {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! sources {
    ($($identifier:ident = $file:literal),+ $(,)?) => {
        $(pub const $identifier: Source = Source { name: $file, text: include_str!(concat!("../../kernels/", $file)) };)+
    };
}

/// A program that can be asked for by name: entry point, sources, names of the constants it is compiled with.
pub type Entry = (
    &'static str,
    &'static [&'static Source],
    &'static [&'static str],
);

/// What a kernel is made of: files that are concatenated, and constants that are defined before them.
#[derive(Clone)]
pub struct Program {
    /// The entry point.
    pub kernel: &'static str,
    pub sources: &'static [&'static Source],
    pub defines: Vec<(&'static str, String)>,
}

impl Program {
    /// The complete CUDA C++ text, but for the definitions.
    pub fn text(&self) -> String {
        self.sources
            .iter()
            .map(|source| source.text)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Definitions as compiler options.
    pub fn definitions(&self) -> Vec<String> {
        self.defines
            .iter()
            .map(|(name, value)| format!("-D{name}={value}"))
            .collect()
    }
}

/// One launch, complete but for device and stream. The emulator runs the very same.
pub struct Launch {
    pub program: Program,
    /// Blocks, in one dimension.
    pub grid: u32,
    /// Threads of a block, in one dimension.
    pub block: u32,
    /// Blocks of a cluster; more than 1 needs compute capability 9.0. The grid is a multiple of it.
    pub cluster: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The kernel's one parameter, a struct by value.
    pub argument: Vec<u8>,
}

impl Launch {
    /// A launch of enough blocks for `items`, `per_block` of them in each; kernels stride over what exceeds the largest grid.
    pub fn new<T: Argument>(
        program: Program,
        items: usize,
        per_block: usize,
        argument: &T,
    ) -> Launch {
        const LARGEST_GRID: usize = i32::MAX as usize;
        let grid = items.div_ceil(per_block).clamp(1, LARGEST_GRID) as u32;
        // SAFETY: an `Argument` has no padding, so each of its bytes is initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts((argument as *const T).cast::<u8>(), size_of::<T>())
        };
        Launch {
            program,
            grid,
            block: THREADS,
            cluster: 1,
            shared: 0,
            argument: bytes.to_vec(),
        }
    }

    /// The same with `cluster` blocks in the place of each, which share their work, and so much dynamic shared memory for each block.
    pub fn in_clusters(self, cluster: u32, shared: u32) -> Launch {
        let largest = i32::MAX as u32 / cluster;
        Launch {
            grid: self.grid.min(largest) * cluster,
            cluster,
            shared,
            ..self
        }
    }
}

/// Threads of every block; `THREADS` in the sources.
pub const THREADS: u32 = 256;

/// A struct that a kernel takes by value.
///
/// # Safety
/// `#[repr(C)]`, made of 8-byte numbers only (so without padding), laid out as in the source.
pub unsafe trait Argument {}

sources! {
    PTX = "ptx.cuh",
    UNITS = "units.cuh",
    ROWS = "rows.cuh",
    TOPK = "topk.cuh",
    ROWS_VALUES = "rows_values.cuh",
    ROWS_TRAVERSE = "rows_traverse.cuh",
    ROWS_GRADIENT = "rows_gradient.cuh",
    ROWS_FORWARD = "rows_forward.cu",
    ROWS_COMBINE = "rows_combine.cu",
    ROWS_BACKWARD = "rows_backward.cu",
    ROWS_BOTH = "rows_both.cu",
    SEGMENTS = "segments.cu",
    DISTANCES = "distances.cuh",
    DISTANCE_FORWARD = "distance_forward.cu",
    DISTANCE_COMBINE = "distance_combine.cu",
    DISTANCE_BACKWARD = "distance_backward.cu",
    OBJECTIVE = "objective.cuh",
}
