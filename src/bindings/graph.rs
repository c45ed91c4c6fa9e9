//! Bindings of `objective::Graph`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::program::Program;
use crate::objective::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp};
use crate::objective::{self, GraphError, Id};

impl From<GraphError> for PyErr {
    fn from(error: GraphError) -> Self {
        PyValueError::new_err(error.0)
    }
}

/// The expressions of one objective; nodes are integers.
#[pyclass(frozen, module = "prefuse._prefuse")]
pub struct Graph {
    inner: Mutex<objective::Graph>,
}

impl Graph {
    fn lock(&self) -> MutexGuard<'_, objective::Graph> {
        // The arena only grows, so that a panic elsewhere leaves it usable.
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn check_all(graph: &objective::Graph, ids: &[i64]) -> Result<Vec<Id>, GraphError> {
    ids.iter().map(|&id| graph.check(id)).collect()
}

fn check_names(
    graph: &objective::Graph,
    names: Option<HashMap<i64, String>>,
) -> Result<HashMap<Id, String>, GraphError> {
    let names = names.unwrap_or_default().into_iter();
    names
        .map(|(id, name)| Ok((graph.check(id)?, name)))
        .collect()
}

#[pymethods]
impl Graph {
    #[new]
    fn new(name: &str, spaces: &Bound<'_, PyDict>) -> PyResult<Self> {
        let spaces = spaces
            .iter()
            .map(|(space, parent)| Ok((space.extract()?, parent.extract()?)))
            .collect::<PyResult<Vec<(String, String)>>>()?;
        let inner = Mutex::new(objective::Graph::new(name, &spaces)?);
        Ok(Graph { inner })
    }

    #[getter]
    fn name(&self) -> String {
        self.lock().name().into()
    }

    fn __len__(&self) -> usize {
        self.lock().size()
    }

    fn constant(&self, value: f64) -> Id {
        self.lock().constant(value)
    }

    fn parameter(&self, name: &str) -> Id {
        self.lock().parameter(name)
    }

    fn column(&self, name: &str, space: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let space = graph.spaces.find(space)?;
        Ok(graph.column(name, space)?)
    }

    fn position(&self, space: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let space = graph.spaces.find(space)?;
        Ok(graph.position(space)?)
    }

    fn count(&self, space: &str, to: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let (space, to) = (graph.spaces.find(space)?, graph.spaces.find(to)?);
        Ok(graph.count(space, to)?)
    }

    fn unary(&self, op: &str, x: i64) -> PyResult<Id> {
        let mut graph = self.lock();
        let (op, x) = (UnaryOp::parse(op)?, graph.check(x)?);
        Ok(graph.unary(op, x))
    }

    fn binary(&self, op: &str, a: i64, b: i64) -> PyResult<Id> {
        let mut graph = self.lock();
        let (op, a, b) = (BinaryOp::parse(op)?, graph.check(a)?, graph.check(b)?);
        Ok(graph.binary(op, a, b)?)
    }

    fn r#where(&self, condition: i64, a: i64, b: i64) -> PyResult<Id> {
        let mut graph = self.lock();
        let condition = graph.check(condition)?;
        let (a, b) = (graph.check(a)?, graph.check(b)?);
        Ok(graph.select(condition, a, b)?)
    }

    fn broadcast(&self, x: i64, to: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let (x, to) = (graph.check(x)?, graph.spaces.find(to)?);
        Ok(graph.broadcast(x, to)?)
    }

    fn reduce(&self, op: &str, x: i64, to: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let (op, x, to) = (
            ReduceOp::parse(op)?,
            graph.check(x)?,
            graph.spaces.find(to)?,
        );
        Ok(graph.reduce(op, x, to)?)
    }

    fn project(&self, x: i64, side: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let (x, side) = (graph.check(x)?, Side::parse(side)?);
        Ok(graph.project(x, side)?)
    }

    fn collapse(&self, x: i64, side: &str) -> PyResult<Id> {
        let mut graph = self.lock();
        let (x, side) = (graph.check(x)?, Side::parse(side)?);
        Ok(graph.collapse(x, side)?)
    }

    fn rank(&self, x: i64, within: &str, descending: bool) -> PyResult<Id> {
        let mut graph = self.lock();
        let (x, within) = (graph.check(x)?, graph.spaces.find(within)?);
        Ok(graph.rank(x, within, descending)?)
    }

    fn sort(&self, x: i64, key: i64, within: &str, descending: bool) -> PyResult<Id> {
        let mut graph = self.lock();
        let (x, key, within) = (
            graph.check(x)?,
            graph.check(key)?,
            graph.spaces.find(within)?,
        );
        Ok(graph.sort(x, key, within, descending)?)
    }

    #[pyo3(signature = (x, reverse, discount, reset=None))]
    fn scan(&self, x: i64, reverse: bool, discount: i64, reset: Option<i64>) -> PyResult<Id> {
        let mut graph = self.lock();
        let (x, discount) = (graph.check(x)?, graph.check(discount)?);
        let reset = reset.map(|reset| graph.check(reset)).transpose()?;
        Ok(graph.scan(x, reverse, discount, reset)?)
    }

    fn shift(&self, x: i64, by: i64, fill: f64) -> PyResult<Id> {
        let mut graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.shift(x, by, fill)?)
    }

    fn first(&self, x: i64) -> PyResult<Id> {
        let mut graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.end(End::First, x)?)
    }

    fn last(&self, x: i64) -> PyResult<Id> {
        let mut graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.end(End::Last, x)?)
    }

    fn stop_gradient(&self, x: i64) -> PyResult<Id> {
        let mut graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.stop_gradient(x))
    }

    fn space(&self, x: i64) -> PyResult<String> {
        let graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.spaces.name(graph.node(x).space).into())
    }

    fn is_constant(&self, x: i64) -> PyResult<Option<f64>> {
        let graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.constant_value(x))
    }

    #[pyo3(signature = (x, names=None))]
    fn text(&self, x: i64, names: Option<HashMap<i64, String>>) -> PyResult<String> {
        let graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.text(x, &check_names(&graph, names)?))
    }

    #[pyo3(signature = (x, names=None))]
    fn latex(&self, x: i64, names: Option<HashMap<i64, String>>) -> PyResult<String> {
        let graph = self.lock();
        let x = graph.check(x)?;
        Ok(graph.latex(x, &check_names(&graph, names)?))
    }

    fn gradient(&self, loss: i64, upstream: i64, wrt: Vec<i64>) -> PyResult<Vec<Id>> {
        let mut graph = self.lock();
        let (loss, upstream) = (graph.check(loss)?, graph.check(upstream)?);
        let wrt = check_all(&graph, &wrt)?;
        Ok(graph.gradient(loss, upstream, &wrt)?)
    }

    fn compile(&self, outputs: Vec<i64>) -> PyResult<Program> {
        let graph = self.lock();
        let outputs = check_all(&graph, &outputs)?;
        Ok(graph.compile(&outputs)?.into())
    }

    fn crosses_batch(&self, outputs: Vec<i64>, columns: Vec<i64>) -> PyResult<bool> {
        let graph = self.lock();
        let (outputs, columns) = (check_all(&graph, &outputs)?, check_all(&graph, &columns)?);
        Ok(graph.crosses_batch(&outputs, &columns))
    }

    fn columns_of(&self, outputs: Vec<i64>) -> PyResult<Vec<Id>> {
        let graph = self.lock();
        let outputs = check_all(&graph, &outputs)?;
        Ok(graph.leaves_of(&outputs))
    }

    fn __repr__(&self) -> String {
        let graph = self.lock();
        format!("<Graph '{}' with {} nodes>", graph.name(), graph.size())
    }
}
