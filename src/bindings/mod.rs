//! What Python sees: arguments checked, buffers borrowed, the GIL released, errors mapped; no arithmetic.

mod arrays;
mod codegen;
mod columns;
mod cuda;
mod curate;
mod distances;
mod dlpack;
mod graph;
mod lists;
mod plain;
mod program;
mod rows;
mod segments;
mod storage;

/// The extension module. Free-threaded Python may call it from several threads: what they share is behind locks.
#[pyo3::pymodule(gil_used = false)]
mod _prefuse {
    #[pymodule_export]
    use super::columns::{
        cuda_columns_add, cuda_columns_find, cuda_columns_gather, cuda_columns_parts,
        cuda_columns_to_input, cuda_columns_to_weight, cuda_plan_columns_add,
        cuda_plan_columns_find, cuda_plan_columns_gather, cuda_plan_columns_to_input,
        cuda_plan_columns_to_weight,
    };
    #[pymodule_export]
    use super::cuda::{
        cuda_cache_directory, cuda_compile, cuda_devices, cuda_distance_backward,
        cuda_distance_forward, cuda_distance_workspace, cuda_driver_version, cuda_nvrtc,
        cuda_plan_distance_backward, cuda_plan_distance_forward, cuda_plan_rows_backward,
        cuda_plan_rows_both, cuda_plan_rows_forward, cuda_plan_segment_expand,
        cuda_plan_segment_sum, cuda_rows_backward, cuda_rows_both, cuda_rows_forward,
        cuda_rows_workspace, cuda_search_nvrtc, cuda_segment_expand, cuda_segment_sum,
    };
    #[pymodule_export]
    use super::curate::{curate_ends, curate_first_beaten, curate_pairs, curate_rank};
    #[pymodule_export]
    use super::distances::{distance_backward, distance_forward};
    #[pymodule_export]
    use super::lists::{Lists, lists_by_class, lists_by_row, projected_lists, rows_lists};
    #[pymodule_export]
    use super::plain::{is_one, versions_of};
    #[pymodule_export]
    use super::rows::{
        prefer_huge_pages, projects_rows, rows_backward, rows_both, rows_forward, rows_projected,
        simd_level, statistic_names,
    };
    #[pymodule_export]
    use super::segments::{segment_expand, segment_sum};
    #[pymodule_export]
    use super::storage::{kept_storage, release_storage, storage_idle};
    #[pymodule_export]
    use super::{graph::Graph, plain::Short, program::Program};

    #[pymodule_export]
    const PARALLEL: usize = super::plain::PARALLEL;
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
