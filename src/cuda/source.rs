//! Kernel sources, and what it takes to run one of them: a program, a grid, the bytes of its argument.

/// A CUDA C++ text: a file of `kernels/`, embedded in the module, or one that was generated.
pub struct Source {
    /// What `#include` calls it, and the compiler where it complains.
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! file {
    ($file:literal) => {
        Source {
            name: $file,
            text: include_str!(concat!("../../kernels/", $file)),
        }
    };
}

macro_rules! kernels {
    ($($identifier:ident = $file:literal),+ $(,)?) => {
        $(pub static $identifier: Source = file!($file);)+
        /// Every file with a kernel of its own.
        #[cfg(test)]
        static KERNELS: &[&Source] = &[$(&$identifier),+];
    };
}

macro_rules! headers {
    ($($file:literal),+ $(,)?) => {
        /// What kernels, those generated at run time too, may name by `#include "…"`.
        pub static HEADERS: &[Source] = &[$(file!($file)),+];
    };
}

impl Source {
    /// The names that stand behind `#include` in double quotes at the begin of a line. Only these are handed to the compiler,
    /// which says so where it asks for another one.
    fn includes(&self) -> impl Iterator<Item = &'static str> {
        self.text
            .lines()
            .filter_map(|line| line.strip_prefix("#include \"")?.split('"').next())
    }

    /// The headers of `library` that this text includes, and that they include in turn, each once.
    pub fn headers<'a>(&self, library: &'a [Source]) -> Vec<&'a Source> {
        let mut found: Vec<&Source> = Vec::new();
        let mut read = 0;
        let mut names: Vec<&str> = self.includes().collect();
        loop {
            for name in names {
                let is_new = !found.iter().any(|known| known.name == name);
                found.extend(
                    library
                        .iter()
                        .filter(|header| is_new && header.name == name),
                );
            }
            let Some(next) = found.get(read) else {
                return found;
            };
            names = next.includes().collect();
            read += 1;
        }
    }
}

/// A program that can be asked for by name: entry point, its file, names of the constants it is compiled with.
pub type Entry = (&'static str, &'static Source, &'static [&'static str]);

/// What a kernel is compiled from.
#[derive(Clone)]
pub struct Program {
    /// The entry point.
    pub kernel: &'static str,
    /// The text that holds it. It says by `#include` which of [`HEADERS`] it needs.
    pub source: &'static Source,
    /// Constants that are defined before the text.
    pub defines: Vec<(&'static str, String)>,
}

impl Program {
    /// The headers that it includes, directly or not.
    pub fn headers(&self) -> Vec<&'static Source> {
        self.source.headers(HEADERS)
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

    /// The same with so many bytes of dynamic shared memory for each block.
    pub fn with_shared(self, shared: u32) -> Launch {
        Launch { shared, ..self }
    }

    /// The same with `cluster` blocks in the place of each, which share their work.
    pub fn in_clusters(self, cluster: u32) -> Launch {
        let largest = i32::MAX as u32 / cluster;
        Launch {
            grid: self.grid.min(largest) * cluster,
            cluster,
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

kernels! {
    ROWS_FORWARD = "rows_forward.cu",
    ROWS_COMBINE = "rows_combine.cu",
    ROWS_BACKWARD = "rows_backward.cu",
    ROWS_BOTH = "rows_both.cu",
    SEGMENTS = "segments.cu",
    COLUMNS_FIND = "columns_find.cu",
    COLUMNS_GATHER = "columns_gather.cu",
    COLUMNS_ADD = "columns_add.cu",
    COLUMNS_TO_INPUT = "columns_to_input.cu",
    COLUMNS_TO_WEIGHT = "columns_to_weight.cu",
    DISTANCE_FORWARD = "distance_forward.cu",
    DISTANCE_COMBINE = "distance_combine.cu",
    DISTANCE_BACKWARD = "distance_backward.cu",
}

headers! {
    "ptx.cuh",
    "units.cuh",
    "rows.cuh",
    "topk.cuh",
    "rows_values.cuh",
    "rows_traverse.cuh",
    "rows_gradient.cuh",
    "columns.cuh",
    "products.cuh",
    "distances.cuh",
    "objective.cuh",
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(headers: &[&Source]) -> Vec<&'static str> {
        headers.iter().map(|header| header.name).collect()
    }

    #[test]
    fn headers_are_found_through_headers_each_once() {
        assert_eq!(names(&SEGMENTS.headers(HEADERS)), ["units.cuh", "ptx.cuh"]);
        let mut both = names(&ROWS_BOTH.headers(HEADERS));
        both.sort_unstable();
        let expected = [
            "ptx.cuh",
            "rows.cuh",
            "rows_gradient.cuh",
            "rows_traverse.cuh",
            "rows_values.cuh",
            "topk.cuh",
            "units.cuh",
        ];
        assert_eq!(both, expected);
    }

    #[test]
    fn every_file_is_embedded_and_every_header_that_is_named_is_there() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
            .collect();
        let files = || KERNELS.iter().copied().chain(HEADERS);
        let mut embedded = names(&files().collect::<Vec<_>>());
        found.sort_unstable();
        embedded.sort_unstable();
        assert_eq!(embedded, found);
        for file in files() {
            for name in file.includes() {
                assert!(
                    HEADERS.iter().any(|header| header.name == name),
                    "{}: {name}",
                    file.name
                );
            }
            let lines = file.text.lines();
            let written = lines.filter(|line| line.contains("#include")).count();
            assert_eq!(written, file.includes().count(), "{}", file.name);
        }
    }
}
