//! Objectives as graphs: built once, differentiated symbolically, compiled to a flat program, printed as a formula.
//!
//! The graph knows columns and index spaces; roles such as chosen and rejected are names to it.

pub mod codegen;
mod eval;
pub mod expr;
mod grad;
pub mod instruction;
mod latex;
pub mod ops;
pub mod program;
mod render;
pub mod run;
mod simplify;
pub mod space;
mod step;
#[cfg(test)]
mod tests;
mod text;

pub use expr::{Graph, Id};
pub use program::Program;

/// What is wrong with a graph or with the arrays given to its program, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphError(pub String);

impl std::fmt::Display for GraphError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GraphError {}
