//! Expressions as LaTeX.

use std::collections::HashMap;

use super::expr::{Graph, Id, Op};
use super::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp};
use super::render::{Level, Printer, Rendered, Style, number};
use super::space::SpaceId;

impl Graph {
    /// A node as LaTeX (without delimiters); `names` gives the LaTeX of columns and parameters, or of any node.
    pub fn latex(&self, id: Id, names: &HashMap<Id, String>) -> String {
        Printer::print(self, names, Latex, id)
    }
}

struct Latex;

type LatexPrinter<'a> = Printer<'a, Latex>;

const GREEK: [&str; 20] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu",
    "nu", "xi", "pi", "rho", "sigma", "tau", "phi", "psi", "omega",
];

impl Style for Latex {
    const ELLIPSIS: &'static str = r"\ldots";

    fn node(&self, printer: &LatexPrinter, id: Id) -> Rendered {
        let graph = printer.graph;
        let node = graph.node(id);
        let args = node.args();
        let index = index_of(graph, node.space);
        match node.op {
            Op::Constant(bits) => constant(f64::from_bits(bits)),
            Op::Parameter(position) => atom(symbol(&graph.parameters()[position as usize])),
            Op::Column(position) => atom(symbol(&graph.columns()[position as usize].0)),
            Op::Position => atom(index),
            Op::Count(of) => atom(format!("N_{{{}}}", space_text(graph, of))),
            Op::Unary(op) => unary(printer, op, args[0]),
            Op::Binary(op) => binary(printer, op, id),
            Op::Where => cases(printer, args),
            Op::Broadcast => Rendered::new(printer.level(args[0]), printer.text(args[0]).into()),
            Op::Reduce(op) => reduction(printer, op, args[0]),
            Op::Project(side) => subscript(printer, args[0], side.name()),
            Op::Collapse(side) => {
                let summed = if side == Side::I { "j" } else { "i" };
                big_operator(printer, &format!(r"\sum_{{{summed}}}"), args[0])
            }
            Op::Rank { descending, .. } => {
                let direction = if descending {
                    r"_{\downarrow}"
                } else {
                    r"_{\uparrow}"
                };
                call(
                    &format!(r"\operatorname{{rank}}{direction}"),
                    printer.text(args[0]),
                )
            }
            Op::Order { .. } => call(r"\operatorname{order}", printer.text(args[0])),
            Op::Gather => permutation(printer, "sort", args),
            Op::Scatter => permutation(printer, "unsort", args),
            Op::Scan { reverse } => scan(printer, &index, reverse, args),
            Op::Shift { by, .. } => {
                // x[t - by]
                let sign = if by > 0 { "-" } else { "+" };
                subscript(
                    printer,
                    args[0],
                    &format!("{index}{sign}{}", by.unsigned_abs()),
                )
            }
            Op::Select(end) => subscript(printer, args[0], end_text(end)),
            Op::Place(end) => {
                let x = at_least(printer, args[0], Level::Product);
                let indicator = format!(r"\mathbb{{1}}\left[{index} = {}\right]", end_text(end));
                Rendered::new(Level::Product, format!("{indicator} {x}"))
            }
            Op::StopGradient => Rendered::new(
                Level::Call,
                format!(r"\operatorname{{sg}}\left[{}\right]", printer.text(args[0])),
            ),
        }
    }
}

fn atom(text: String) -> Rendered {
    Rendered::new(Level::Atom, text)
}

fn call(function: &str, argument: &str) -> Rendered {
    Rendered::new(Level::Call, format!(r"{function}\left({argument}\right)"))
}

/// A name as a symbol: Greek letters by their command, anything else upright.
fn symbol(name: &str) -> String {
    if GREEK.contains(&name) {
        format!(r"\{name}")
    } else if name.len() == 1 {
        name.into()
    } else {
        format!(r"\mathrm{{{}}}", escaped(name))
    }
}

fn escaped(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => format!(r"\{c}"),
            '\\' | '^' | '~' => String::from("-"),
            _ => c.to_string(),
        })
        .collect()
}

/// The letter over which a space is summed.
fn index_of(graph: &Graph, space: SpaceId) -> String {
    if graph.spaces.pairs_of(space).is_some() {
        return "i, j".into();
    }
    match graph.spaces.name(space).split(':').next() {
        Some("token") => "t".into(),
        Some("response") => "i".into(),
        Some("group") => "x".into(),
        _ => space_text(graph, space),
    }
}

fn space_text(graph: &Graph, space: SpaceId) -> String {
    format!(r"\text{{{}}}", escaped(graph.spaces.name(space)))
}

fn end_text(end: End) -> &'static str {
    match end {
        End::First => "1",
        End::Last => r"\mathrm{last}",
    }
}

fn constant(value: f64) -> Rendered {
    let level = if value.is_sign_negative() {
        Level::Negative
    } else {
        Level::Atom
    };
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_nan() {
        return atom(r"\mathrm{NaN}".into());
    }
    if value.is_infinite() {
        return Rendered::new(level, format!(r"{sign}\infty"));
    }
    match number(value) {
        (plain, None) => Rendered::new(level, plain),
        (mantissa, Some(exponent)) if mantissa.trim_start_matches('-') == "1" => {
            Rendered::new(level.min(Level::Power), format!("{sign}10^{{{exponent}}}"))
        }
        (mantissa, Some(exponent)) => Rendered::new(
            level.min(Level::Product),
            format!(r"{mantissa} \cdot 10^{{{exponent}}}"),
        ),
    }
}

/// An argument, in parentheses unless it binds at least as tightly as `level`.
fn at_least(printer: &LatexPrinter, id: Id, level: Level) -> String {
    let text = printer.text(id);
    if printer.level(id) >= level {
        text.into()
    } else {
        format!(r"\left({text}\right)")
    }
}

/// Subscripts go on bare names only; anything else is put in parentheses first.
fn subscript(printer: &LatexPrinter, x: Id, index: &str) -> Rendered {
    let text = printer.text(x);
    let bare = printer.level(x) == Level::Atom && !text.contains(['_', '^']);
    atom(if bare {
        format!("{text}_{{{index}}}")
    } else {
        format!(r"\left({text}\right)_{{{index}}}")
    })
}

fn big_operator(printer: &LatexPrinter, operator: &str, x: Id) -> Rendered {
    let x = at_least(printer, x, Level::Open);
    Rendered::new(Level::Open, format!("{operator} {x}"))
}

fn unary(printer: &LatexPrinter, op: UnaryOp, x: Id) -> Rendered {
    let text = printer.text(x);
    match op {
        UnaryOp::Neg => {
            let x = at_least(printer, x, Level::Open);
            Rendered::new(Level::Negative, format!("-{x}"))
        }
        UnaryOp::Exp => call(r"\exp", text),
        UnaryOp::Log => call(r"\log", text),
        UnaryOp::Log1p => call(
            r"\log",
            &format!("1 + {}", at_least(printer, x, Level::Open)),
        ),
        UnaryOp::Expm1 => Rendered::new(Level::Sum, format!(r"\exp\left({text}\right) - 1")),
        UnaryOp::Log1mexp => call(r"\log", &format!(r"1 - \exp\left({text}\right)")),
        UnaryOp::Sigmoid => call(r"\sigma", text),
        UnaryOp::LogSigmoid => call(r"\log\sigma", text),
        UnaryOp::Softplus => call(r"\operatorname{softplus}", text),
        UnaryOp::Tanh => call(r"\tanh", text),
        UnaryOp::Relu => call(r"\max", &format!("0, {text}")),
        UnaryOp::Abs => atom(format!(r"\left|{text}\right|")),
        UnaryOp::Sign => call(r"\operatorname{sign}", text),
        UnaryOp::Square => {
            let x = at_least(printer, x, Level::Atom);
            Rendered::new(Level::Power, format!("{x}^{{2}}"))
        }
        UnaryOp::Sqrt => atom(format!(r"\sqrt{{{text}}}")),
        UnaryOp::Reciprocal => fraction("1", text),
        UnaryOp::Not => indicator(&negated(printer, x)),
    }
}

fn fraction(numerator: &str, denominator: &str) -> Rendered {
    let text = format!(r"\frac{{{numerator}}}{{{denominator}}}");
    Rendered::new(Level::Product, text)
}

fn binary(printer: &LatexPrinter, op: BinaryOp, id: Id) -> Rendered {
    let node = printer.graph.node(id);
    let (a, b) = (node.args()[0], node.args()[1]);
    match op {
        BinaryOp::Add | BinaryOp::Sub => {
            let sign = if op == BinaryOp::Add { "+" } else { "-" };
            let (a, b) = (
                at_least(printer, a, Level::Sum),
                at_least(printer, b, Level::Open),
            );
            Rendered::new(Level::Sum, format!("{a} {sign} {b}"))
        }
        BinaryOp::Mul => product(printer, &[a, b]),
        BinaryOp::ScaleOrZero => product(printer, &printer.adjoint_factors(id)),
        BinaryOp::Div => fraction(printer.text(a), printer.text(b)),
        BinaryOp::Pow => {
            let base = at_least(printer, a, Level::Atom);
            Rendered::new(Level::Power, format!("{base}^{{{}}}", printer.text(b)))
        }
        BinaryOp::Minimum | BinaryOp::ClampMax => extremum(printer, r"\min", a, b),
        BinaryOp::Maximum | BinaryOp::ClampMin => extremum(printer, r"\max", a, b),
        _ => indicator(&condition(printer, id)),
    }
}

fn extremum(printer: &LatexPrinter, function: &str, a: Id, b: Id) -> Rendered {
    let arguments = format!("{}, {}", printer.text(a), printer.text(b));
    call(function, &arguments)
}

/// Factors side by side, with a dot where two numbers would run into each other.
fn product(printer: &LatexPrinter, factors: &[Id]) -> Rendered {
    let mut text = String::new();
    let mut level = Level::Product;
    for (position, &factor) in factors.iter().enumerate() {
        let last = position + 1 == factors.len();
        // A big operator may stand open at the end of a product, nowhere else.
        let needed = if last && position > 0 {
            Level::Open
        } else {
            Level::Product
        };
        let factor_text = at_least(printer, factor, needed);
        if position > 0 {
            let digit = factor_text.starts_with(|c: char| c.is_ascii_digit());
            text.push_str(if digit { r" \cdot " } else { r" \, " });
        }
        text.push_str(&factor_text);
        if printer.level(factor) == Level::Open && last {
            level = Level::Open;
        }
    }
    Rendered::new(level, text)
}

fn indicator(condition: &str) -> Rendered {
    Rendered::new(
        Level::Call,
        format!(r"\mathbb{{1}}\left[{condition}\right]"),
    )
}

/// A flag as a condition, without the indicator around it.
fn condition(printer: &LatexPrinter, id: Id) -> String {
    let id = printer.graph.unbroadcast(id);
    let node = printer.graph.node(id);
    let Op::Binary(op) = node.op else {
        if node.op == Op::Unary(UnaryOp::Not) {
            return negated(printer, node.args()[0]);
        }
        return printer.text(id).into();
    };
    let (a, b) = match node.args() {
        &[a, b] if !printer.names.contains_key(&id) => (a, b),
        _ => return printer.text(id).into(),
    };
    let relation = match op {
        BinaryOp::Lt => "<",
        BinaryOp::Le => r"\le",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => r"\ge",
        BinaryOp::Eq => "=",
        BinaryOp::Ne => r"\ne",
        BinaryOp::And | BinaryOp::Or => {
            let sign = if op == BinaryOp::And {
                r"\wedge"
            } else {
                r"\vee"
            };
            let clause = |id: Id| match printer.graph.node(printer.graph.unbroadcast(id)).op {
                // A different connective inside needs parentheses, the same one does not.
                Op::Binary(inner @ (BinaryOp::And | BinaryOp::Or)) if inner != op => {
                    format!(r"\left({}\right)", condition(printer, id))
                }
                _ => condition(printer, id),
            };
            return format!("{} {sign} {}", clause(a), clause(b));
        }
        _ => return printer.text(id).into(),
    };
    format!("{} {relation} {}", printer.text(a), printer.text(b))
}

fn negated(printer: &LatexPrinter, id: Id) -> String {
    format!(r"\neg\left({}\right)", condition(printer, id))
}

fn cases(printer: &LatexPrinter, args: &[Id]) -> Rendered {
    let (test, a, b) = (args[0], args[1], args[2]);
    let masked = |condition: String, x: Id| {
        let indicator = indicator(&condition).text;
        match printer.graph.constant_value(x) {
            Some(1.0) => Rendered::new(Level::Call, indicator),
            _ => {
                let x = at_least(printer, x, Level::Product);
                Rendered::new(Level::Product, format!(r"{indicator} \, {x}"))
            }
        }
    };
    if printer.graph.constant_value(b) == Some(0.0) {
        return masked(condition(printer, test), a);
    }
    if printer.graph.constant_value(a) == Some(0.0) {
        return masked(negated(printer, test), b);
    }
    atom(format!(
        r"\begin{{cases}} {} & \text{{if }} {} \\ {} & \text{{otherwise}} \end{{cases}}",
        printer.text(a),
        condition(printer, test),
        printer.text(b)
    ))
}

fn reduction(printer: &LatexPrinter, op: ReduceOp, x: Id) -> Rendered {
    let index = index_of(printer.graph, printer.graph.node(x).space);
    let function = match op {
        ReduceOp::Sum => return big_operator(printer, &format!(r"\sum_{{{index}}}"), x),
        ReduceOp::LogSumExp => {
            let text = format!(
                r"\log \sum_{{{index}}} \exp\left({}\right)",
                printer.text(x)
            );
            return Rendered::new(Level::Open, text);
        }
        ReduceOp::Mean => r"\operatorname{mean}",
        ReduceOp::Max => r"\max",
        ReduceOp::Min => r"\min",
    };
    call(&format!("{function}_{{{index}}}"), printer.text(x))
}

fn permutation(printer: &LatexPrinter, name: &str, args: &[Id]) -> Rendered {
    let (x, order) = (args[0], args[1]);
    let key = printer
        .graph
        .node(order)
        .args()
        .first()
        .copied()
        .unwrap_or(order);
    let arguments = if key == x {
        printer.text(x).to_string()
    } else {
        format!("{}; {}", printer.text(x), printer.text(key))
    };
    call(&format!(r"\operatorname{{{name}}}"), &arguments)
}

fn scan(printer: &LatexPrinter, index: &str, reverse: bool, args: &[Id]) -> Rendered {
    let relation = if reverse { r"\ge" } else { r"\le" };
    let until = if args.len() > 2 {
        r"^{\mathrm{reset}}"
    } else {
        ""
    };
    let steps = if reverse {
        format!("{index}' - {index}")
    } else {
        format!("{index} - {index}'")
    };
    let discount = match printer.graph.constant_value(args[1]) {
        Some(1.0) => String::new(),
        _ => format!(
            r"{}^{{{steps}}} \, ",
            at_least(printer, args[1], Level::Atom)
        ),
    };
    let x = subscript(printer, args[0], &format!("{index}'"));
    Rendered::new(
        Level::Open,
        format!(
            r"\sum_{{{index}' {relation} {index}}}{until} {discount}{}",
            x.text
        ),
    )
}
