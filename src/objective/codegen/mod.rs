//! CUDA C++ from a program: `#include "objective.cuh"` (of `kernels/`), one function per traversal and the entry points.
//!
//! The same functions stand behind two ways of running: `objective_one_block`, one launch in which one block waits at a
//! barrier between stages, and `objective_part_0`, `_1`, …, launched one after the other, for columns that a block would
//! be slow with. Both give the same bits. Each entry point is compiled by itself, with the stages it needs. Numbers, sizes, offsets and addresses are arguments; only the types of the
//! columns stand in the text, and no name that a user chose.

mod emit;
mod launch;
mod schedule;
mod values;

pub use launch::{Call, Column, DeviceCut};

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::instruction::Extent;
use super::program::Program;
use crate::cuda;
use emit::Plan;
use schedule::{Schedule, Stage};
use values::Values;

/// Types of columns and outputs, which the text depends on: dtype, and whether elements are taken by index.
pub type Signature = Vec<(&'static str, bool)>;

/// A program as CUDA C++.
pub struct Generated {
    /// The kernel's argument.
    argument: String,
    /// The functions of each stage.
    stages: Vec<String>,
    /// Stages that one launch of the chain does.
    parts: Vec<Range<usize>>,
    values: Values,
    schedule: Schedule,
    /// What has been asked for, by its signature.
    interned: Mutex<HashMap<(Signature, Signature, bool), Vec<cuda::Program>>>,
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
        let plan = Plan {
            program,
            values: &values,
            schedule: &schedule,
            space_index: &space_index,
        };
        Generated {
            argument: argument(&plan, used),
            stages: (0..schedule.stages.len())
                .map(|stage| functions(&plan, stage))
                .collect(),
            parts: parts(&schedule.stages),
            values,
            schedule,
            interned: Mutex::new(HashMap::new()),
        }
    }

    /// The entry points: name and text, for columns and outputs of these types.
    pub fn entries(
        &self,
        columns: &Signature,
        outputs: &Signature,
        one_block: bool,
    ) -> Vec<(String, String)> {
        if one_block {
            let name = "objective_one_block".to_string();
            let text = self.entry(columns, outputs, &name, 1, 0..self.stages.len());
            return vec![(name, text)];
        }
        let parts = self.parts.iter().enumerate();
        parts
            .map(|(index, stages)| {
                let name = format!("objective_part_{index}");
                let text = self.entry(columns, outputs, &name, 2, stages.clone());
                (name, text)
            })
            .collect()
    }

    /// The text of an entry point that does these stages. At least `resident` blocks fit on a multiprocessor: left to
    /// choose, the compiler spills registers to make room for more.
    fn entry(
        &self,
        columns: &Signature,
        outputs: &Signature,
        name: &str,
        resident: usize,
        stages: Range<usize>,
    ) -> String {
        let mut text = String::from(
            "// Generated from an objective's graph.\n\n#include \"objective.cuh\"\n\n",
        );
        for (letter, signature) in [('C', columns), ('O', outputs)] {
            for (index, (dtype, take)) in signature.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "typedef {dtype} {letter}{index}; constexpr bool {letter}{index}_TAKE = {take};"
                );
            }
        }
        text += &self.argument;
        text.extend(self.stages[stages.clone()].iter().map(String::as_str));
        let _ = writeln!(
            text,
            "\nextern \"C\" __global__ void __launch_bounds__(THREADS, {resident}) {name}(const __grid_constant__ Args a) {{"
        );
        let first = stages.start;
        for stage in stages {
            if stage > first {
                text += "    __syncthreads();\n";
            }
            for number in 0..self.schedule.stages[stage].len() {
                let _ = writeln!(text, "    stage_{stage}_{number}(a);");
            }
        }
        text + "}\n"
    }

    /// The programs of the entry points. They live as long as the process, as the modules that are made of them do.
    pub fn programs(
        &self,
        columns: &Signature,
        outputs: &Signature,
        one_block: bool,
    ) -> Vec<cuda::Program> {
        let key = (columns.clone(), outputs.clone(), one_block);
        // The map is complete at any time: an entry is made before it is put in.
        let mut interned = self
            .interned
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = interned
            .entry(key)
            .or_insert_with_key(|(columns, outputs, one_block)| {
                let entries = self.entries(columns, outputs, *one_block).into_iter();
                entries.map(|(name, text)| intern(name, text)).collect()
            });
        known.clone()
    }
}

/// A program of a text made at run time. The definition tells programs apart whose kernels have the same name.
fn intern(name: String, text: String) -> cuda::Program {
    let hash = Sha256::digest(text.as_bytes());
    let number: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let generated: &'static cuda::Source = Box::leak(Box::new(cuda::Source {
        name: String::leak(format!("{name}.cu")),
        text: String::leak(text),
    }));
    cuda::Program {
        kernel: String::leak(name),
        source: generated,
        defines: vec![("GENERATED", format!("0x{number}"))],
    }
}

/// Runs of stages that need no launch of their own between them: one block can wait for itself.
fn parts(stages: &[Stage]) -> Vec<Range<usize>> {
    let small = |stage: &Stage| stage.iter().all(|traversal| traversal.walk.is_small());
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if small(stage) && small(&stages[index - 1]) => part.end = index + 1,
            _ => parts.push(index..index + 1),
        }
    }
    parts
}

/// The kernel's argument.
fn argument(plan: &Plan, spaces: usize) -> String {
    let program = plan.program;
    // An array without elements is not C++.
    let [columns, outputs, spaces, parameters, slots] = [
        program.columns.len(),
        program.outputs.len(),
        spaces,
        program.parameters.len(),
        plan.schedule.slots.len(),
    ]
    .map(|size| size.max(1));
    format!(
        "\nstruct Args {{\n    Array columns[{columns}], outputs[{outputs}];\n    Space spaces[{spaces}];\n    \
         f64 parameters[{parameters}];\n    f64* slots[{slots}];\n}};\n"
    )
}

/// The functions of a stage.
fn functions(plan: &Plan, stage: usize) -> String {
    let traversals = plan.schedule.stages[stage].iter().enumerate();
    traversals.fold(String::new(), |text, (number, traversal)| {
        text + "\n" + &emit::traversal(plan, stage, &format!("stage_{stage}_{number}"), traversal)
    })
}
