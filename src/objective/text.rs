//! Expressions as plain text, in the words of the Python language.

use std::collections::HashMap;

use super::expr::{Graph, Id, Op};
use super::ops::{BinaryOp, UnaryOp};
use super::render::{Level, Printer, Rendered, Style, number};

impl Graph {
    /// A node as text; `names` replaces nodes by texts.
    pub fn text(&self, id: Id, names: &HashMap<Id, String>) -> String {
        Printer::print(self, names, Text, id)
    }
}

struct Text;

impl Style for Text {
    const ELLIPSIS: &'static str = "...";

    fn node(&self, printer: &Printer<'_, Self>, id: Id) -> Rendered {
        let graph = printer.graph;
        let node = graph.node(id);
        let args = node.args();
        let call = |name: &str, extra: &[String]| {
            let mut all: Vec<String> = args.iter().map(|&arg| printer.text(arg).into()).collect();
            all.extend_from_slice(extra);
            Rendered::new(Level::Call, format!("{name}({})", all.join(", ")))
        };
        let space = |id: usize| format!("\"{}\"", graph.spaces.name(id));
        match node.op {
            Op::Constant(bits) => constant(f64::from_bits(bits)),
            Op::Parameter(index) => atom(&graph.parameters()[index as usize]),
            Op::Column(index) => atom(&graph.columns()[index as usize].0),
            Op::Position => call("position", &[space(node.space)]),
            Op::Count(of) => call("count", &[space(of), space(node.space)]),
            Op::Unary(op) => unary(printer, op, args[0]),
            Op::Binary(op) => binary(printer, op, id),
            Op::Where => call("where", &[]),
            Op::Broadcast => {
                Rendered::new(printer.level(args[0]), printer.text(args[0]).to_string())
            }
            Op::Reduce(op) => call(op.name(), &[format!("to={}", space(node.space))]),
            Op::Project(side) => call(side.name(), &[]),
            Op::Collapse(side) => call("collapse", &[format!("\"{}\"", side.name())]),
            Op::Rank { within, descending } => call("rank", &order(&space(within), descending)),
            Op::Order { within, descending } => call("order", &order(&space(within), descending)),
            Op::Gather => call("gather", &[]),
            Op::Scatter => call("scatter", &[]),
            Op::Scan { reverse: true } => call("suffix_sum", &[]),
            Op::Scan { reverse: false } => call("prefix_sum", &[]),
            Op::Shift { by, fill } => {
                let fill = constant(f64::from_bits(fill)).text;
                call("shift", &[format!("{by}"), format!("fill={fill}")])
            }
            Op::Select(end) => call(end.name(), &[]),
            Op::Place(end) => call(&format!("place_{}", end.name()), &[]),
            Op::StopGradient => call("stop_gradient", &[]),
        }
    }
}

fn atom(text: &str) -> Rendered {
    Rendered::new(Level::Atom, text.into())
}

fn constant(value: f64) -> Rendered {
    let text = match number(value) {
        (mantissa, Some(exponent)) => format!("{mantissa}e{exponent}"),
        (plain, None) => plain,
    };
    let level = if value.is_sign_negative() {
        Level::Negative
    } else {
        Level::Atom
    };
    Rendered::new(level, text)
}

fn order(within: &str, descending: bool) -> Vec<String> {
    let mut options = vec![format!("within={within}")];
    if descending {
        options.push("descending=True".into());
    }
    options
}

/// An argument, in parentheses unless it binds at least as tightly as `level`.
fn at_least(printer: &Printer<'_, Text>, id: Id, level: Level) -> String {
    let text = printer.text(id);
    if printer.level(id) >= level {
        text.into()
    } else {
        format!("({text})")
    }
}

fn unary(printer: &Printer<'_, Text>, op: UnaryOp, x: Id) -> Rendered {
    match op {
        UnaryOp::Neg => Rendered::new(
            Level::Negative,
            format!("-{}", at_least(printer, x, Level::Open)),
        ),
        UnaryOp::Square => Rendered::new(
            Level::Power,
            format!("{}**2", at_least(printer, x, Level::Call)),
        ),
        UnaryOp::Reciprocal => Rendered::new(
            Level::Product,
            format!("1 / {}", at_least(printer, x, Level::Power)),
        ),
        UnaryOp::Not => Rendered::new(
            Level::Condition,
            format!("~{}", at_least(printer, x, Level::Call)),
        ),
        _ => Rendered::new(Level::Call, format!("{}({})", op.name(), printer.text(x))),
    }
}

fn binary(printer: &Printer<'_, Text>, op: BinaryOp, id: Id) -> Rendered {
    let node = printer.graph.node(id);
    let (a, b) = (node.args()[0], node.args()[1]);
    // Sign, the level of the result, and the levels from which the arguments need no parentheses.
    let (sign, level, left, right) = match op {
        BinaryOp::Add => ("+", Level::Sum, Level::Sum, Level::Open),
        BinaryOp::Sub => ("-", Level::Sum, Level::Sum, Level::Open),
        BinaryOp::Mul => ("*", Level::Product, Level::Product, Level::Product),
        BinaryOp::Div => ("/", Level::Product, Level::Product, Level::Power),
        BinaryOp::Pow => ("**", Level::Power, Level::Call, Level::Call),
        BinaryOp::Lt => ("<", Level::Condition, Level::Sum, Level::Sum),
        BinaryOp::Le => ("<=", Level::Condition, Level::Sum, Level::Sum),
        BinaryOp::Gt => (">", Level::Condition, Level::Sum, Level::Sum),
        BinaryOp::Ge => (">=", Level::Condition, Level::Sum, Level::Sum),
        BinaryOp::Eq => ("==", Level::Condition, Level::Sum, Level::Sum),
        BinaryOp::Ne => ("!=", Level::Condition, Level::Sum, Level::Sum),
        BinaryOp::And => ("&", Level::Condition, Level::Call, Level::Call),
        BinaryOp::Or => ("|", Level::Condition, Level::Call, Level::Call),
        BinaryOp::ScaleOrZero => {
            let factors = printer.adjoint_factors(id);
            let factors = factors
                .iter()
                .map(|&factor| at_least(printer, factor, Level::Product));
            let product = factors.collect::<Vec<_>>().join(" * ");
            return Rendered::new(Level::Product, product);
        }
        BinaryOp::Minimum | BinaryOp::ClampMax | BinaryOp::Maximum | BinaryOp::ClampMin => {
            let smaller = matches!(op, BinaryOp::Minimum | BinaryOp::ClampMax);
            let name = if smaller { "minimum" } else { "maximum" };
            let (a, b) = (printer.text(a), printer.text(b));
            return Rendered::new(Level::Call, format!("{name}({a}, {b})"));
        }
    };
    let (a, b) = (at_least(printer, a, left), at_least(printer, b, right));
    Rendered::new(level, format!("{a} {sign} {b}"))
}
