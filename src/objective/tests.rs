//! Tests of the module as a whole: values, gradients against central differences, programs.

use super::expr::{Graph, Id, Op};
use super::instruction::Operand;
use super::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp};
use super::run::{Cut, Run};
use super::space::BATCH;
use super::{GraphError, Program};
use crate::array::{Array, Dtype};

const SPACES: [(&str, &str); 3] = [
    ("group", "batch"),
    ("response", "group"),
    ("token", "response"),
];
const GROUPS: usize = 4;
/// The second group has no response.
const RESPONSES: [i64; 5] = [0, 2, 2, 3, 6];
/// The fourth response has no token.
const TOKENS: [i64; 7] = [0, 3, 4, 8, 8, 10, 13];
const SIZES: [usize; 4] = [1, GROUPS, 6, 13];

fn new_graph() -> Graph {
    let spaces = SPACES.map(|(space, parent)| (space.to_string(), parent.to_string()));
    Graph::new("test", &spaces).unwrap()
}

fn space(graph: &Graph, name: &str) -> usize {
    graph.spaces.find(name).unwrap()
}

fn array<T>(values: &[T], dtype: Dtype) -> Array {
    // SAFETY: the tests keep the vectors alive and, where they are written to, unaliased.
    unsafe { Array::new(values.as_ptr() as usize, dtype, &[values.len()], &[1]) }.unwrap()
}

fn cuts(program: &Program) -> Vec<Cut> {
    let cut = |&space: &usize| match program.space_name(space) {
        "group" => Cut::Count(GROUPS),
        "response" => Cut::Offsets(array(&RESPONSES, Dtype::I64)),
        _ => Cut::Offsets(array(&TOKENS, Dtype::I64)),
    };
    program.spaces.iter().map(cut).collect()
}

/// Values of columns and parameters by name.
type Data = Vec<(String, Vec<f64>)>;

fn lookup<'a>(data: &'a Data, name: &str) -> &'a [f64] {
    &data.iter().find(|(known, _)| known == name).unwrap().1
}

fn run_program(
    program: &Program,
    data: &Data,
    sizes: &[usize],
) -> Result<Vec<Vec<f64>>, GraphError> {
    let results: Vec<Vec<f64>> = sizes.iter().map(|&size| vec![f64::NAN; size]).collect();
    let columns: Vec<Array> = program
        .columns
        .iter()
        .map(|(name, _)| array(lookup(data, name), Dtype::F64))
        .collect();
    let outputs: Vec<Array> = results
        .iter()
        .map(|result| array(result, Dtype::F64))
        .collect();
    let parameters: Vec<f64> = program
        .parameters
        .iter()
        .map(|name| lookup(data, name)[0])
        .collect();
    program.run(&Run {
        columns: &columns,
        parameters: &parameters,
        cuts: &cuts(program),
        outputs: &outputs,
        threads: 2,
    })?;
    Ok(results)
}

fn size_of(graph: &Graph, space: usize) -> usize {
    match graph.spaces.name(space) {
        "batch" => 1,
        "group" => GROUPS,
        "response" => 6,
        "token" => 13,
        "group*group" => GROUPS * GROUPS,
        "response*response" => 4 + 1 + 9,
        _ => 9 + 1 + 16 + 4 + 9,
    }
}

fn evaluate(graph: &Graph, outputs: &[Id], data: &Data) -> Vec<Vec<f64>> {
    let program = graph.compile(outputs).unwrap();
    let sizes: Vec<usize> = outputs
        .iter()
        .map(|&id| size_of(graph, graph.node(id).space))
        .collect();
    run_program(&program, data, &sizes).unwrap()
}

/// Value of one node for one column called x.
fn value_of(graph: &Graph, id: Id, x: &[f64]) -> Vec<f64> {
    evaluate(graph, &[id], &vec![("x".into(), x.to_vec())]).remove(0)
}

/// A small generator of pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in [-1.5, 1.5].
    fn number(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * 3.0 - 1.5
    }
}

/// One more node on top of some of the others, of moderate size and smooth almost everywhere.
fn random_node(graph: &mut Graph, nodes: &[Id], random: &mut Random) -> Option<Id> {
    let x = nodes[random.below(nodes.len())];
    let y = nodes[random.below(nodes.len())];
    let z = nodes[random.below(nodes.len())];
    let at = graph.node(x).space;
    let one = graph.constant(1.0);
    let square = graph.unary(UnaryOp::Square, x);
    let positive = graph.binary(BinaryOp::Add, one, square).ok()?;
    let negative = graph.unary(UnaryOp::Neg, positive);
    let (domain, unary) = match random.below(17) {
        0 => (positive, UnaryOp::Log),
        1 => (square, UnaryOp::Log1p),
        2 => (negative, UnaryOp::Log1mexp),
        3 => (positive, UnaryOp::Sqrt),
        4 => (positive, UnaryOp::Reciprocal),
        index => (x, UnaryOp::ALL[index]),
    };
    let discount = graph.parameter("gamma");
    let parent = graph.spaces.parent(at).unwrap_or(BATCH);
    let above = [parent, graph.spaces.parent(parent).unwrap_or(BATCH), BATCH][random.below(3)];
    let descending = random.below(2) == 0;
    let side = Side::ALL[random.below(2)];
    let made = match random.below(16) {
        0 | 1 => {
            let value = graph.unary(unary, domain);
            Ok(graph.unary(UnaryOp::Tanh, value))
        }
        2 | 3 => {
            let op = BinaryOp::ALL[random.below(BinaryOp::ALL.len())];
            let base = if matches!(op, BinaryOp::Pow) {
                positive
            } else {
                x
            };
            let other = if matches!(op, BinaryOp::Div) {
                positive
            } else {
                y
            };
            graph
                .binary(op, base, other)
                .map(|value| graph.unary(UnaryOp::Tanh, value))
        }
        4 => {
            let zero = graph.constant(0.0);
            let condition = graph.binary(BinaryOp::Gt, x, zero).ok()?;
            graph.select(condition, y, z)
        }
        5..=7 => graph.reduce(ReduceOp::ALL[random.below(5)], x, above),
        8 => graph.project(x, side),
        9 => graph.collapse(x, side),
        10 => graph.sort(x, y, above, descending),
        11 => {
            let zero = graph.constant(0.0);
            let reset = graph.binary(BinaryOp::Gt, y, zero).ok()?;
            let reset = (random.below(2) == 0).then_some(reset);
            graph.scan(x, descending, discount, reset)
        }
        12 => graph.shift(x, random.below(5) as i64 - 2, 0.25),
        13 => graph.end(End::ALL[random.below(2)], x),
        14 => {
            let rank = graph.rank(x, above, descending).ok()?;
            graph.binary(BinaryOp::Mul, rank, y)
        }
        _ => {
            let position = graph.position(at).ok()?;
            let count = graph.count(at, above).ok()?;
            let part = graph.binary(BinaryOp::Div, position, count).ok()?;
            graph.binary(BinaryOp::Mul, part, y)
        }
    };
    made.ok()
}

#[test]
fn gradients_agree_with_central_differences() {
    let mut compared = 0;
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut graph = new_graph();
        let mut data: Data = Vec::new();
        let mut nodes = Vec::new();
        for (index, name) in ["batch", "group", "response", "token"]
            .into_iter()
            .enumerate()
        {
            for copy in 0..2 {
                let at = space(&graph, name);
                let column = format!("{name}{copy}");
                nodes.push(graph.column(&column, at).unwrap());
                data.push((column, (0..SIZES[index]).map(|_| random.number()).collect()));
            }
        }
        nodes.push(graph.parameter("gamma"));
        data.push(("gamma".into(), vec![0.7]));
        let leaves = nodes.clone();
        for _ in 0..14 {
            if let Some(node) = random_node(&mut graph, &nodes, &mut random) {
                nodes.push(node);
            }
        }
        let mut loss = graph.constant(0.0);
        for &node in nodes.iter().rev().take(5) {
            let bounded = graph.unary(UnaryOp::Tanh, node);
            let mean = graph.reduce(ReduceOp::Mean, bounded, BATCH).unwrap();
            loss = graph.binary(BinaryOp::Add, loss, mean).unwrap();
        }
        let one = graph.constant(1.0);
        let gradient = graph.gradient(loss, one, &leaves).unwrap();
        let gradients = evaluate(&graph, &gradient, &data);
        let program = graph.compile(&[loss]).unwrap();
        let h = 1e-6;
        for (leaf, exact) in gradients.iter().enumerate() {
            for (element, &exact) in exact.iter().enumerate() {
                let mut at = |offset: f64| {
                    let original = data[leaf].1[element];
                    data[leaf].1[element] = original + offset;
                    let value = run_program(&program, &data, &[1]).unwrap()[0][0];
                    data[leaf].1[element] = original;
                    value
                };
                let (low, middle, high) = (at(-h), at(0.0), at(h));
                let (left, right) = ((middle - low) / h, (high - middle) / h);
                // Beside a kink or a jump there is no derivative to compare with.
                if !middle.is_finite() || (left - right).abs() > 1e-3 {
                    continue;
                }
                let difference = (high - low) / (2.0 * h);
                assert!(
                    (difference - exact).abs() < 1e-6 + 1e-5 * exact.abs(),
                    "seed {seed}, {}[{element}]: {exact} against {difference}\n{}",
                    data[leaf].0,
                    graph.text(loss, &Default::default())
                );
                compared += usize::from(exact != 0.0);
            }
        }
    }
    assert!(
        compared > 5_000,
        "only {compared} derivatives that are not 0"
    );
}

#[test]
fn a_branch_not_taken_contributes_exactly_zero() {
    // where(x > 0, log(x), 0) at x = 0 and below: log'(0) is infinite, log'(-1) is negative.
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let x = graph.column("x", group).unwrap();
    let (zero, one) = (graph.constant(0.0), graph.constant(1.0));
    let positive = graph.binary(BinaryOp::Gt, x, zero).unwrap();
    let log = graph.unary(UnaryOp::Log, x);
    let loss = graph.select(positive, log, zero).unwrap();
    let gradient = graph.gradient(loss, one, &[x]).unwrap();
    let result = value_of(&graph, gradient[0], &[0.0, -1.0, 2.0, 4.0]);
    assert_eq!(result, [0.0, 0.0, 0.5, 0.25]);
}

#[test]
fn derivatives_stay_finite_at_the_ends() {
    let far = [-800.0, -1e-300, 800.0, 0.0];
    for (op, expected) in [
        (UnaryOp::LogSigmoid, [1.0, 0.5, 0.0, 0.5]),
        (UnaryOp::Softplus, [0.0, 0.5, 1.0, 0.5]),
        (UnaryOp::Sigmoid, [0.0, 0.25, 0.0, 0.25]),
        (UnaryOp::Tanh, [0.0, 1.0, 0.0, 1.0]),
        (UnaryOp::Relu, [0.0, 0.0, 1.0, 0.0]),
        (UnaryOp::Abs, [-1.0, -1.0, 1.0, 0.0]),
    ] {
        let mut graph = new_graph();
        let group = space(&graph, "group");
        let x = graph.column("x", group).unwrap();
        let one = graph.constant(1.0);
        let value = graph.unary(op, x);
        let gradient = graph.gradient(value, one, &[x]).unwrap();
        let result = value_of(&graph, gradient[0], &far);
        for (got, expected) in result.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{}: {result:?}", op.name());
        }
    }
    // log(1 - e^x): -e^x/(1 - e^x), without cancellation next to 0.
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let x = graph.column("x", group).unwrap();
    let one = graph.constant(1.0);
    let value = graph.unary(UnaryOp::Log1mexp, x);
    let gradient = graph.gradient(value, one, &[x]).unwrap();
    let result = value_of(&graph, gradient[0], &[-1e-10, -1.0, -50.0, -1e4]);
    for (got, expected) in result.iter().zip([
        -1e10,
        -0.581_976_706_869_326_4,
        -1.928_749_847_963_918e-22,
        0.0,
    ]) {
        assert!(
            (got - expected).abs() <= 1e-9 * f64::abs(expected),
            "{result:?}"
        );
    }
}

#[test]
fn ties_share_the_gradient() {
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let x = graph.column("x", group).unwrap();
    let (one, two) = (graph.constant(1.0), graph.constant(2.0));
    let data = [2.0, 1.0, 2.0, 2.0];
    for (op, expected) in [
        (BinaryOp::Maximum, [0.5, 0.0, 0.5, 0.5]),
        (BinaryOp::Minimum, [0.5, 1.0, 0.5, 0.5]),
        (BinaryOp::ClampMin, [1.0, 0.0, 1.0, 1.0]),
        (BinaryOp::ClampMax, [1.0, 1.0, 1.0, 1.0]),
    ] {
        let value = graph.binary(op, x, two).unwrap();
        let gradient = graph.gradient(value, one, &[x]).unwrap();
        assert_eq!(
            value_of(&graph, gradient[0], &data),
            expected,
            "{}",
            op.name()
        );
    }
    let max = graph.reduce(ReduceOp::Max, x, BATCH).unwrap();
    let gradient = graph.gradient(max, one, &[x]).unwrap();
    let third = 1.0 / 3.0;
    assert_eq!(
        value_of(&graph, gradient[0], &data),
        [third, 0.0, third, third]
    );
}

#[test]
fn logsumexp_of_impossible_elements_has_zero_weights() {
    let mut graph = new_graph();
    let response = space(&graph, "response");
    let group = space(&graph, "group");
    let x = graph.column("x", response).unwrap();
    let one = graph.constant(1.0);
    let value = graph.reduce(ReduceOp::LogSumExp, x, group).unwrap();
    let gradient = graph.gradient(value, one, &[x]).unwrap();
    let lowest = f64::NEG_INFINITY;
    let data = [lowest, lowest, 3.0, 0.0, lowest, 0.0];
    assert_eq!(
        value_of(&graph, value, &data),
        [lowest, lowest, 3.0, 2.0_f64.ln()]
    );
    assert_eq!(
        value_of(&graph, gradient[0], &data),
        [0.0, 0.0, 1.0, 0.5, 0.0, 0.5]
    );
}

#[test]
fn sorting_is_stable_and_puts_nan_last() {
    let mut graph = new_graph();
    let response = space(&graph, "response");
    let x = graph.column("x", response).unwrap();
    let position = graph.position(response).unwrap();
    let data = [1.0, f64::NAN, 5.0, 2.0, 3.0, 2.0];
    let up = graph.rank(x, BATCH, false).unwrap();
    let down = graph.rank(x, BATCH, true).unwrap();
    assert_eq!(value_of(&graph, up, &data), [1.0, 6.0, 5.0, 2.0, 4.0, 3.0]);
    assert_eq!(
        value_of(&graph, down, &data),
        [5.0, 6.0, 1.0, 3.0, 2.0, 4.0]
    );
    let group = space(&graph, "group");
    let sorted = graph.sort(position, x, group, true).unwrap();
    assert_eq!(
        value_of(&graph, sorted, &data),
        [0.0, 1.0, 0.0, 1.0, 0.0, 2.0]
    );
    // The transpose takes each adjoint back to where its value came from.
    let one = graph.constant(1.0);
    let sorted = graph.sort(x, x, group, false).unwrap();
    let weighted = graph.binary(BinaryOp::Mul, sorted, position).unwrap();
    let gradient = graph.gradient(weighted, one, &[x]).unwrap();
    assert_eq!(
        value_of(&graph, gradient[0], &data),
        [0.0, 1.0, 0.0, 0.0, 2.0, 1.0]
    );
}

#[test]
fn scans_stop_at_resets() {
    let mut graph = new_graph();
    let token = space(&graph, "token");
    let x = graph.column("x", token).unwrap();
    let position = graph.position(token).unwrap();
    let (two, half) = (graph.constant(2.0), graph.constant(0.5));
    let reset = graph.binary(BinaryOp::Eq, position, two).unwrap();
    let suffix = graph.scan(x, true, half, Some(reset)).unwrap();
    let prefix = graph.scan(x, false, half, Some(reset)).unwrap();
    let ones = [1.0; 13];
    assert_eq!(
        value_of(&graph, suffix, &ones),
        [
            1.5, 1.0, 1.0, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.0, 1.0
        ]
    );
    assert_eq!(
        value_of(&graph, prefix, &ones),
        [
            1.0, 1.5, 1.0, 1.0, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.0, 1.5, 1.0
        ]
    );
}

#[test]
fn empty_segments_have_the_documented_values() {
    let mut graph = new_graph();
    let (response, group) = (space(&graph, "response"), space(&graph, "group"));
    let x = graph.column("x", response).unwrap();
    for (op, empty) in [
        (ReduceOp::Sum, 0.0),
        (ReduceOp::Mean, 0.0),
        (ReduceOp::Max, f64::NEG_INFINITY),
        (ReduceOp::Min, f64::INFINITY),
        (ReduceOp::LogSumExp, f64::NEG_INFINITY),
    ] {
        let value = graph.reduce(op, x, group).unwrap();
        assert_eq!(
            value_of(&graph, value, &[1.0; 6])[1],
            empty,
            "{}",
            op.name()
        );
    }
    for end in End::ALL {
        let value = graph.end(*end, x).unwrap();
        assert_eq!(value_of(&graph, value, &[1.0; 6]), [1.0, 0.0, 1.0, 1.0]);
    }
}

#[test]
fn identities_are_applied() {
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let x = graph.column("x", group).unwrap();
    let y = graph.column("y", group).unwrap();
    let [zero, one, minus, two] = [0.0, 1.0, -1.0, 2.0].map(|value| graph.constant(value));
    let negative = graph.unary(UnaryOp::Neg, x);
    let square = graph.unary(UnaryOp::Square, x);
    let difference = graph.binary(BinaryOp::Sub, y, x).unwrap();
    let sum = graph.binary(BinaryOp::Add, x, y).unwrap();
    for (op, a, b, expected) in [
        (BinaryOp::Add, x, zero, x),
        (BinaryOp::Add, zero, x, x),
        (BinaryOp::Sub, x, zero, x),
        (BinaryOp::Sub, zero, x, negative),
        (BinaryOp::Mul, x, one, x),
        (BinaryOp::Mul, one, x, x),
        (BinaryOp::Mul, x, minus, negative),
        (BinaryOp::Mul, minus, x, negative),
        (BinaryOp::Div, x, one, x),
        (BinaryOp::Pow, x, one, x),
        (BinaryOp::Pow, x, two, square),
        (BinaryOp::Add, y, negative, difference),
        (BinaryOp::Add, negative, y, difference),
        (
            BinaryOp::Sub,
            x,
            negative,
            graph.binary(BinaryOp::Add, x, x).unwrap(),
        ),
        (BinaryOp::Add, y, x, sum),
        (BinaryOp::ScaleOrZero, x, one, x),
    ] {
        assert_eq!(graph.binary(op, a, b).unwrap(), expected, "{}", op.name());
    }
    assert_eq!(graph.unary(UnaryOp::Neg, negative), x);
    assert_eq!(graph.unary(UnaryOp::Square, negative), square);
    let stopped = graph.stop_gradient(x);
    assert_eq!(graph.stop_gradient(stopped), stopped);
    assert_eq!(graph.select(one, x, y).unwrap(), x);
    assert_eq!(graph.select(zero, x, y).unwrap(), y);
    assert_eq!(graph.select(y, x, x).unwrap(), x);
    let folded = graph.binary(BinaryOp::Pow, two, two).unwrap();
    assert_eq!(graph.constant_value(folded), Some(4.0));
    // 0·x may be NaN: it stays.
    let product = graph.binary(BinaryOp::Mul, zero, x).unwrap();
    assert_eq!(graph.node(product).op, Op::Binary(BinaryOp::Mul));
}

#[test]
fn the_sum_of_a_constant_counts_elements() {
    let mut graph = new_graph();
    let (token, group) = (space(&graph, "token"), space(&graph, "group"));
    let three = graph.constant(3.0);
    let broadcast = graph.broadcast(three, token).unwrap();
    let sum = graph.reduce(ReduceOp::Sum, broadcast, group).unwrap();
    assert_eq!(value_of(&graph, sum, &[]), [12.0, 0.0, 12.0, 15.0]);
}

#[test]
fn coarse_work_is_done_at_the_coarse_space() {
    let mut graph = new_graph();
    let (token, group) = (space(&graph, "token"), space(&graph, "group"));
    let x = graph.column("x", group).unwrap();
    let fine = graph.broadcast(x, token).unwrap();
    let value = graph.unary(UnaryOp::Exp, fine);
    assert_eq!(graph.node(value).op, Op::Broadcast);
    assert_eq!(graph.node(value).space, token);
    let pair = graph.binary(BinaryOp::Add, fine, x).unwrap();
    assert_eq!(graph.node(pair).op, Op::Broadcast);
    let expected: Vec<f64> = [0.0, 2.0, 3.0]
        .map(f64::exp)
        .iter()
        .zip([4, 4, 5])
        .flat_map(|(v, n)| vec![*v; n])
        .collect();
    assert_eq!(value_of(&graph, value, &[0.0, 1.0, 2.0, 3.0]), expected);
}

#[test]
fn unrelated_spaces_are_refused_by_name() {
    let spaces = [
        ("group", "batch"),
        ("token:chosen", "group"),
        ("token:rejected", "group"),
    ]
    .map(|(space, parent)| (space.to_string(), parent.to_string()));
    let mut graph = Graph::new("pairs", &spaces).unwrap();
    let (chosen, rejected) = (
        space(&graph, "token:chosen"),
        space(&graph, "token:rejected"),
    );
    let a = graph.column("a", chosen).unwrap();
    let b = graph.column("b", rejected).unwrap();
    let error = graph.binary(BinaryOp::Sub, a, b).unwrap_err();
    assert_eq!(
        error.0,
        "sub: 'token:chosen' and 'token:rejected' cannot be combined, neither contains the other"
    );
    assert!(
        graph
            .reduce(ReduceOp::Sum, a, rejected)
            .unwrap_err()
            .0
            .contains("does not contain")
    );
    assert!(
        graph
            .column("a", rejected)
            .unwrap_err()
            .0
            .contains("already declared")
    );
    let pairs = graph.project(a, Side::I).unwrap();
    assert!(graph.binary(BinaryOp::Sub, a, pairs).is_err());
    assert!(graph.project(pairs, Side::I).is_err());
    assert!(graph.collapse(a, Side::I).is_err());
    assert!(graph.check(-1).is_err() && graph.check(1_000).is_err());
    assert!(Graph::new("x", &[("a".into(), "b".into()), ("b".into(), "a".into())]).is_err());
}

#[test]
fn slots_are_reused_and_never_read_after() {
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let x = graph.column("x", group).unwrap();
    let mut value = x;
    for _ in 0..50 {
        let shifted = graph.unary(UnaryOp::Tanh, value);
        value = graph.binary(BinaryOp::Add, shifted, x).unwrap();
    }
    let program = graph.compile(&[value, x]).unwrap();
    assert!(program.slots <= 4, "{}", program.slots);
    for instruction in &program.instructions {
        for arg in &instruction.args {
            assert!(
                !matches!(arg, Operand::Scalar(slot) | Operand::Vector(slot) if *slot == instruction.into)
            );
        }
    }
    let mut expected = 0.3_f64;
    for _ in 0..50 {
        expected = expected.tanh() + 0.3;
    }
    let data = vec![("x".into(), vec![0.3; GROUPS])];
    assert_eq!(
        run_program(&program, &data, &[GROUPS, GROUPS]).unwrap(),
        [[expected; GROUPS], [0.3; GROUPS]]
    );
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let spaces = [
        ("group".to_string(), "batch".to_string()),
        ("token".to_string(), "group".to_string()),
    ];
    let mut graph = Graph::new("big", &spaces).unwrap();
    let (group, token) = (space(&graph, "group"), space(&graph, "token"));
    let x = graph.column("x", token).unwrap();
    let gamma = graph.constant(0.9);
    let squashed = graph.unary(UnaryOp::Sigmoid, x);
    let scanned = graph.scan(squashed, true, gamma, None).unwrap();
    let level = graph.reduce(ReduceOp::LogSumExp, scanned, group).unwrap();
    let weight = graph.binary(BinaryOp::Sub, scanned, level).unwrap();
    let sorted = graph.sort(weight, x, group, true).unwrap();
    let loss = graph.reduce(ReduceOp::Mean, sorted, BATCH).unwrap();
    let one = graph.constant(1.0);
    let gradient = graph.gradient(loss, one, &[x]).unwrap()[0];
    let program = graph.compile(&[loss, gradient]).unwrap();
    let mut random = Random(7);
    let mut offsets = vec![0_i64];
    while offsets[offsets.len() - 1] < 100_000 {
        offsets.push(offsets[offsets.len() - 1] + random.below(3_000) as i64);
    }
    let tokens = offsets[offsets.len() - 1] as usize;
    let data: Vec<f64> = (0..tokens).map(|_| random.number()).collect();
    let results: Vec<(Vec<f64>, Vec<f64>)> = [1, 2, 5]
        .into_iter()
        .map(|threads| {
            let (loss, gradient) = (vec![0.0; 1], vec![0.0; tokens]);
            program
                .run(&Run {
                    columns: &[array(&data, Dtype::F64)],
                    parameters: &[],
                    cuts: &[
                        Cut::Count(offsets.len() - 1),
                        Cut::Offsets(array(&offsets, Dtype::I64)),
                    ],
                    outputs: &[array(&loss, Dtype::F64), array(&gradient, Dtype::F64)],
                    threads,
                })
                .unwrap();
            (loss, gradient)
        })
        .collect();
    assert!(results[0].1.iter().any(|&value| value != 0.0));
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn long_spaces_are_computed_like_short_ones() {
    let spaces = [("group".to_string(), "batch".to_string())];
    let mut graph = Graph::new("long", &spaces).unwrap();
    let group = space(&graph, "group");
    let x = graph.column("x", group).unwrap();
    let scale = graph.parameter("scale");
    let scaled = graph.binary(BinaryOp::Mul, scale, x).unwrap();
    let positive = graph.binary(BinaryOp::Gt, x, scale).unwrap();
    let value = graph.unary(UnaryOp::LogSigmoid, scaled);
    let value = graph.select(positive, value, scaled).unwrap();
    let one = graph.constant(1.0);
    let gradient = graph.gradient(value, one, &[x]).unwrap()[0];
    let program = graph.compile(&[value, gradient]).unwrap();
    let mut random = Random(3);
    let data: Vec<f64> = (0..10_007).map(|_| random.number()).collect();
    let run = |data: &[f64]| {
        let outputs = [vec![0.0; data.len()], vec![0.0; data.len()]];
        program
            .run(&Run {
                columns: &[array(data, Dtype::F64)],
                parameters: &[0.3],
                cuts: &[Cut::Count(data.len())],
                outputs: &[
                    array(&outputs[0], Dtype::F64),
                    array(&outputs[1], Dtype::F64),
                ],
                threads: 2,
            })
            .unwrap();
        outputs
    };
    let whole = run(&data);
    let pieces: Vec<[Vec<f64>; 2]> = data.chunks(100).map(run).collect();
    for output in 0..2 {
        let joined: Vec<f64> = pieces
            .iter()
            .flat_map(|piece| piece[output].clone())
            .collect();
        assert_eq!(whole[output], joined);
    }
}

#[test]
fn arrays_that_do_not_fit_are_refused_by_name() {
    let mut graph = new_graph();
    let (response, group) = (space(&graph, "response"), space(&graph, "group"));
    let x = graph.column("x", response).unwrap();
    let sum = graph.reduce(ReduceOp::Sum, x, group).unwrap();
    let program = graph.compile(&[sum]).unwrap();
    let (five, four, six) = (vec![0.0; 5], vec![0.0; 4], vec![0.0; 6]);
    let attempt = |column: &[f64], groups: usize, offsets: &[i64], output: &[f64]| {
        let run = Run {
            columns: &[array(column, Dtype::F64)],
            parameters: &[],
            cuts: &[Cut::Count(groups), Cut::Offsets(array(offsets, Dtype::I64))],
            outputs: &[array(output, Dtype::F64)],
            threads: 1,
        };
        program.run(&run).map_err(|error| error.0)
    };
    assert_eq!(
        attempt(&five, 4, &RESPONSES, &four).unwrap_err(),
        "column 'x': expected 6 values (one per element of 'response'), got 5"
    );
    assert_eq!(
        attempt(&six, 4, &RESPONSES, &six).unwrap_err(),
        "outputs: 2 values are not filled"
    );
    assert_eq!(
        attempt(&six, 3, &RESPONSES, &four).unwrap_err(),
        "offsets of 'response': expected 4 values (one more than 'group' has elements), got 5"
    );
    assert_eq!(
        attempt(&six, 4, &[0, 3, 2, 4, 6], &four).unwrap_err(),
        "offsets of 'response' must not decrease, got 2 after 3 at index 2"
    );
    assert!(attempt(&six, 4, &RESPONSES, &four).is_ok());
}

#[test]
fn formulas_are_printed_with_few_parentheses() {
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let (a, b) = (
        graph.column("a", group).unwrap(),
        graph.column("b", group).unwrap(),
    );
    let beta = graph.parameter("beta");
    let difference = graph.binary(BinaryOp::Sub, a, b).unwrap();
    let scaled = graph.binary(BinaryOp::Mul, beta, difference).unwrap();
    let log_sigmoid = graph.unary(UnaryOp::LogSigmoid, scaled);
    let loss = graph.unary(UnaryOp::Neg, log_sigmoid);
    let names = [(a, "h_w".to_string()), (b, "h_l".to_string())].into();
    assert_eq!(
        graph.latex(loss, &names),
        r"-\log\sigma\left(\beta \, \left(h_w - h_l\right)\right)"
    );
    assert_eq!(
        graph.text(loss, &Default::default()),
        "-log_sigmoid(beta * (a - b))"
    );
    let one = graph.constant(1.0);
    let gradient = graph.gradient(loss, one, &[a]).unwrap()[0];
    assert_eq!(
        graph.latex(gradient, &names),
        r"-\beta \, \sigma\left(-\beta \, \left(h_w - h_l\right)\right)"
    );
    let half = graph.constant(0.5);
    let ratio = graph.binary(BinaryOp::Div, difference, b).unwrap();
    let shifted = graph.binary(BinaryOp::Sub, ratio, half).unwrap();
    let square = graph.unary(UnaryOp::Square, shifted);
    let detached = graph.stop_gradient(square);
    assert_eq!(
        graph.latex(detached, &names),
        r"\operatorname{sg}\left[\left(\frac{h_w - h_l}{h_l} - 0.5\right)^{2}\right]"
    );
    assert_eq!(
        graph.text(detached, &Default::default()),
        "stop_gradient(((a - b) / b - 0.5)**2)"
    );
    let greater = graph.binary(BinaryOp::Gt, a, b).unwrap();
    let masked = graph.select(greater, a, half).unwrap();
    assert_eq!(
        graph.latex(masked, &names),
        r"\begin{cases} h_w & \text{if } h_w > h_l \\ 0.5 & \text{otherwise} \end{cases}"
    );
    let sum = graph.reduce(ReduceOp::Sum, masked, BATCH).unwrap();
    let doubled = graph.binary(BinaryOp::Mul, beta, sum).unwrap();
    assert!(
        graph
            .latex(doubled, &names)
            .starts_with(r"\beta \, \sum_{x} \begin")
    );
}

#[test]
fn exponentially_long_formulas_are_cut() {
    let mut graph = new_graph();
    let group = space(&graph, "group");
    let mut x = graph.column("x", group).unwrap();
    for _ in 0..200 {
        x = graph.binary(BinaryOp::Mul, x, x).unwrap();
    }
    assert!(graph.text(x, &Default::default()).len() < 100_000);
    assert!(graph.latex(x, &Default::default()).len() < 100_000);
}
