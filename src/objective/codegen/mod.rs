//! CUDA C++ from a program: `kernels/objective.cuh` followed by one function per traversal and the entry points.
//!
//! The same functions stand behind two ways of running: `objective_one_block`, one launch in which one block waits at a
//! barrier between stages, and `objective_part_0`, `_1`, …, launched one after the other, for columns that a block would
//! be slow with. Both give the same bits. Numbers, sizes, offsets and addresses are arguments; only the types of the
//! columns stand in the text, and no name that a user chose.

mod emit;
mod launch;
mod schedule;
mod values;

pub use launch::{Call, Column, DeviceCut, Kernel, Launches, THREADS};

use std::fmt::Write;

use super::program::{Extent, Program};
use emit::Plan;
use schedule::{Schedule, Stage};
use values::Values;

/// Types of columns and outputs, which the text depends on: dtype, and whether elements are taken by index.
pub type Signature = Vec<(&'static str, bool)>;

/// A program as CUDA C++.
pub struct Generated {
    /// The argument and the traversals.
    body: String,
    /// The entry points of a single block, and of a chain of launches.
    one_block: String,
    chain: String,
    values: Values,
    schedule: Schedule,
    /// Runs of stages that one launch of the chain does.
    parts: Vec<std::ops::Range<usize>>,
}

impl Generated {
    pub fn new(program: &Program) -> Generated {
        let values = Values::new(program);
        let schedule = Schedule::new(program, &values);
        let mut used = 0;
        let space_index: Vec<Option<usize>> = program
            .extents
            .iter()
            .map(|extent| {
                matches!(extent, Extent::Given(_) | Extent::Pairs(_)).then(|| {
                    used += 1;
                    used - 1
                })
            })
            .collect();
        let parts = parts(&schedule.stages);
        let plan = Plan {
            program,
            values: &values,
            schedule: &schedule,
            space_index: &space_index,
        };
        let numbered = parts.iter().enumerate();
        Generated {
            body: body(&plan, used),
            one_block: entry(&plan, "objective_one_block", 0..schedule.stages.len()),
            chain: numbered
                .map(|(index, stages)| entry(&plan, &format!("objective_part_{index}"), stages.clone()))
                .collect(),
            values,
            schedule,
            parts,
        }
    }

    /// The generated text for columns and outputs of these types; it follows `kernels/objective.cuh`.
    pub fn text(&self, columns: &Signature, outputs: &Signature, one_block: bool) -> String {
        let mut text = String::from("// Generated from an objective's graph.\n\n");
        for (letter, signature) in [('C', columns), ('O', outputs)] {
            for (index, (dtype, take)) in signature.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "typedef {dtype} {letter}{index}; constexpr bool {letter}{index}_TAKE = {take};"
                );
            }
        }
        text + &self.body + if one_block { &self.one_block } else { &self.chain }
    }
}

/// Runs of stages that need no launch of their own between them: one block can wait for itself.
fn parts(stages: &[Stage]) -> Vec<std::ops::Range<usize>> {
    let small = |stage: &Stage| stage.iter().all(|traversal| traversal.walk.is_small());
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if small(stage) && small(&stages[index - 1]) => part.end = index + 1,
            _ => parts.push(index..index + 1),
        }
    }
    parts
}

fn body(plan: &Plan, spaces: usize) -> String {
    let program = plan.program;
    // An array without elements is not C++.
    let sizes = [
        program.columns.len(),
        program.outputs.len(),
        spaces,
        program.parameters.len(),
        plan.schedule.slots.len(),
    ]
    .map(|size| size.max(1));
    let [columns, outputs, spaces, parameters, slots] = sizes;
    let mut text = format!(
        "\nstruct Args {{\n    Array columns[{columns}], outputs[{outputs}];\n    Space spaces[{spaces}];\n    \
         f64 parameters[{parameters}];\n    f64* slots[{slots}];\n}};\n"
    );
    for (stage, traversals) in plan.schedule.stages.iter().enumerate() {
        for (number, traversal) in traversals.iter().enumerate() {
            text.push('\n');
            text += &emit::traversal(plan, stage, &format!("stage_{stage}_{number}"), traversal);
        }
    }
    text
}

/// An entry point that does these stages.
fn entry(plan: &Plan, name: &str, stages: std::ops::Range<usize>) -> String {
    let mut text = format!(
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {name}(const __grid_constant__ Args a) {{\n"
    );
    let first = stages.start;
    for stage in stages {
        if stage > first {
            text += "    __syncthreads();\n";
        }
        for number in 0..plan.schedule.stages[stage].len() {
            let _ = writeln!(text, "    stage_{stage}_{number}(a);");
        }
    }
    text + "}\n"
}
