//! What the two ways of printing an expression share: precedence, numbers, names, and a bound on length.

use std::collections::HashMap;

use super::expr::{Graph, Id, Op};

/// How tightly the outermost operator of a rendered expression binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Comparison, logic.
    Condition,
    /// Sum, difference.
    Sum,
    /// Leading minus.
    Negative,
    /// A big operator such as Σ, open to the right.
    Open,
    /// Product, quotient.
    Product,
    /// Power.
    Power,
    /// A function with its parentheses.
    Call,
    /// A name, a number, anything closed.
    Atom,
}

/// An expression as text.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Its outermost operator.
    pub level: Level,
}

impl Rendered {
    /// A text with its level.
    pub fn new(level: Level, text: String) -> Self {
        Rendered { text, level }
    }
}

/// Longer subexpressions are cut: shared subexpressions are written out at every use, so that the text of a small graph
/// can be exponentially long.
const LONGEST: usize = 20_000;

/// A way of printing nodes.
pub trait Style {
    /// What stands for a subexpression that is too long.
    const ELLIPSIS: &'static str;
    /// A node whose arguments have been printed before.
    fn node(&self, printer: &Printer<'_, Self>, id: Id) -> Rendered
    where
        Self: Sized;
}

/// A graph being printed.
pub struct Printer<'a, S: Style> {
    /// The graph.
    pub graph: &'a Graph,
    /// Texts given for some nodes, printed as they are.
    pub names: &'a HashMap<Id, String>,
    style: S,
    done: HashMap<Id, Rendered>,
}

impl<'a, S: Style> Printer<'a, S> {
    /// The text of a node.
    pub fn print(graph: &'a Graph, names: &'a HashMap<Id, String>, style: S, id: Id) -> String {
        let mut printer = Printer {
            graph,
            names,
            style,
            done: HashMap::new(),
        };
        // Arguments first, so that the depth of the graph is not the depth of the call stack.
        for id in graph.reachable(&[id]) {
            let rendered = match names.get(&id) {
                Some(name) => Rendered::new(Level::Atom, name.clone()),
                None => printer.style.node(&printer, id),
            };
            let rendered = if rendered.text.len() > LONGEST {
                Rendered::new(Level::Atom, S::ELLIPSIS.into())
            } else {
                rendered
            };
            printer.done.insert(id, rendered);
        }
        printer.text(id).into()
    }

    /// The printed text of an argument.
    pub fn text(&self, id: Id) -> &str {
        &self.done[&id].text
    }

    /// The outermost operator of an argument.
    pub fn level(&self, id: Id) -> Level {
        self.done[&id].level
    }

    /// The factors of a product of adjoints, numbers and parameters first.
    pub fn adjoint_factors(&self, id: Id) -> Vec<Id> {
        let mut factors = Vec::new();
        self.collect_factors(id, &mut factors);
        factors.sort_by_key(
            |&factor| match self.graph.node(self.graph.unbroadcast(factor)).op {
                Op::Constant(_) => 0,
                Op::Parameter(_) => 1,
                _ => 2,
            },
        );
        factors
    }

    fn collect_factors(&self, id: Id, factors: &mut Vec<Id>) {
        use super::ops::BinaryOp;
        let node = self.graph.node(id);
        match node.op {
            _ if self.names.contains_key(&id) => factors.push(id),
            Op::Broadcast => self.collect_factors(node.args()[0], factors),
            Op::Binary(BinaryOp::ScaleOrZero) => {
                self.collect_factors(node.args()[0], factors);
                self.collect_factors(node.args()[1], factors);
            }
            _ => factors.push(id),
        }
    }
}

/// A finite number without superfluous digits: `2`, `0.5`, or mantissa and exponent where that is shorter.
pub fn number(value: f64) -> (String, Option<i32>) {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e6).contains(&magnitude) {
        return (format!("{value}"), None);
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => (mantissa.into(), exponent.parse().ok()),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_tidy() {
        assert_eq!(number(0.5), ("0.5".into(), None));
        assert_eq!(number(-2.0), ("-2".into(), None));
        assert_eq!(number(1e-8), ("1".into(), Some(-8)));
        assert_eq!(number(2.5e300), ("2.5".into(), Some(300)));
        assert_eq!(number(0.0), ("0".into(), None));
    }
}
