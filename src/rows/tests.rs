//! The row statistics as a whole, on rows wide enough to have several chunks. Values are checked against independent
//! references from Python; here it is bits.

use super::*;

const NAN: f32 = f32::NAN;

fn table<T>(address: *const T, dtype: &str, shape: &[usize]) -> Array {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim] as isize;
    }
    let dtype = Dtype::from_name(dtype).unwrap();
    // SAFETY: the tests keep the memory alive.
    unsafe { Array::new(address as usize, dtype, shape, &strides) }.unwrap()
}

/// Logits that look random, without two equal rows.
fn logits(rows: usize, width: usize) -> Vec<f32> {
    (0..rows * width)
        .map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0)
        .collect()
}

struct Case {
    logits: Vec<f32>,
    reference: Vec<f32>,
    labels: Vec<i64>,
    width: usize,
}

impl Case {
    fn new(rows: usize, width: usize) -> Case {
        let labels = (0..rows).map(|row| (row * 7919 % width) as i64).collect();
        let reference = logits(rows, width).iter().map(|x| x * 0.9 + 0.3).collect();
        Case {
            logits: logits(rows, width),
            reference,
            labels,
            width,
        }
    }

    fn rows(&self, softcap: f64) -> Rows {
        let shape = [self.labels.len(), self.width];
        Rows {
            logits: table(self.logits.as_ptr(), "f32", &shape),
            labels: table(self.labels.as_ptr(), "i64", &shape[..1]),
            mask: None,
            reference: Some(table(self.reference.as_ptr(), "f32", &shape)),
            temperature: Temperature::Same(0.8),
            scale: 1.0,
            softcap,
            ignore_index: -100,
            first_class: 0,
            classes: self.width as i64,
        }
    }

    fn forward(
        &self,
        softcap: f64,
        stats: &[Stat],
        threads: usize,
    ) -> Result<Vec<f32>, ArgumentError> {
        let mut out = vec![NAN; stats.len() * self.labels.len()];
        let view = table(out.as_mut_ptr(), "f32", &[stats.len(), self.labels.len()]);
        // SAFETY: all views are of vectors that live here.
        unsafe { cpu::forward(&self.rows(softcap), stats, 10, &view, threads)? };
        Ok(out)
    }

    fn backward(&self, softcap: f64, stats: &[Stat], gradient: &Array, threads: usize) {
        let saved = self.forward(softcap, stats, 1).unwrap();
        let shape = [stats.len(), self.labels.len()];
        let grads: Vec<f32> = (0..saved.len()).map(|i| (i % 5) as f32 - 1.5).collect();
        let (grads, saved) = (
            table(grads.as_ptr(), "f32", &shape),
            table(saved.as_ptr(), "f32", &shape),
        );
        // SAFETY: as above.
        unsafe {
            backward::backward(
                &self.rows(softcap),
                stats,
                &grads,
                &saved,
                gradient,
                threads,
            )
            .unwrap()
        };
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn all() -> Vec<Stat> {
    Stat::ALL.to_vec()
}

const WIDTH: usize = 3 * chunk::CHUNK + 77;

#[test]
fn bits_do_not_depend_on_threads() {
    // Three rows are shared among threads, forty are not.
    for rows in [3, 40] {
        let case = Case::new(rows, WIDTH);
        for softcap in [0.0, 5.0] {
            let alone = case.forward(softcap, &all(), 1).unwrap();
            assert!(alone.iter().all(|value| value.is_finite()));
            let mut gradient = vec![NAN; case.logits.len()];
            case.backward(
                softcap,
                &all(),
                &table(gradient.as_mut_ptr(), "f32", &[rows, WIDTH]),
                1,
            );
            for threads in [2, 5] {
                assert_eq!(
                    bits(&case.forward(softcap, &all(), threads).unwrap()),
                    bits(&alone)
                );
                let mut again = vec![NAN; case.logits.len()];
                case.backward(
                    softcap,
                    &all(),
                    &table(again.as_mut_ptr(), "f32", &[rows, WIDTH]),
                    threads,
                );
                assert_eq!(bits(&again), bits(&gradient));
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_company() {
    let case = Case::new(40, WIDTH);
    let together = case.forward(0.0, &all(), 2).unwrap();
    for row in [0, 17, 39] {
        let part = row * WIDTH..(row + 1) * WIDTH;
        let alone = Case {
            logits: case.logits[part.clone()].to_vec(),
            reference: case.reference[part].to_vec(),
            labels: vec![case.labels[row]],
            width: WIDTH,
        };
        for (position, stat) in all().into_iter().enumerate() {
            // Each statistic alone, too: what else is asked for must not matter.
            let value = alone.forward(0.0, &[stat], 2).unwrap()[0];
            assert_eq!(
                value.to_bits(),
                together[position * 40 + row].to_bits(),
                "{}",
                stat.name()
            );
        }
    }
}

#[test]
fn equal_logits_give_equal_log_probabilities() {
    let mut case = Case::new(3, WIDTH);
    case.reference = case.logits.clone();
    let stats = [Stat::Logp, Stat::RefLogp, Stat::Kl, Stat::Rkl];
    let out = case.forward(0.0, &stats, 2).unwrap();
    assert_eq!(bits(&out[..3]), bits(&out[3..6]));
    assert!(out[6..].iter().all(|divergence| *divergence == 0.0));
}

#[test]
fn gradients_in_place_and_around_the_caches_are_the_same() {
    // Rows of odd width, hence of every alignment; large enough to be streamed.
    let (rows, width) = (2100, 4099);
    let mut case = Case::new(rows, width);
    let stats = [Stat::Logp, Stat::Lse];
    let mut streamed = vec![NAN; rows * width];
    case.backward(
        0.0,
        &stats,
        &table(streamed.as_mut_ptr(), "f32", &[rows, width]),
        2,
    );
    let gradient = table(case.logits.as_mut_ptr(), "f32", &[rows, width]);
    case.backward(0.0, &stats, &gradient, 2);
    assert_eq!(bits(&case.logits), bits(&streamed));
}

#[test]
fn ignored_rows_are_not_read() {
    let mut case = Case::new(3, WIDTH);
    case.labels[1] = -100;
    case.logits[WIDTH..2 * WIDTH].fill(NAN);
    let out = case.forward(0.0, &all(), 2).unwrap();
    assert!(out.iter().skip(1).step_by(3).all(|value| *value == 0.0));
    let mut gradient = vec![NAN; case.logits.len()];
    case.backward(
        0.0,
        &all(),
        &table(gradient.as_mut_ptr(), "f32", &[3, WIDTH]),
        2,
    );
    assert!(gradient[WIDTH..2 * WIDTH].iter().all(|value| *value == 0.0));
    assert!(gradient.iter().all(|value| value.is_finite()));
}

#[test]
fn a_label_out_of_range_is_reported_before_any_work() {
    let mut case = Case::new(3, 10);
    case.labels[2] = 10;
    let error = case.forward(0.0, &[Stat::Logp], 1).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("labels: 10 at [2], expected 0 <= label < 10"),
        "{error}"
    );
}

/// The kernels number statistics as a set's bits do.
#[test]
fn kernels_number_statistics_alike() {
    let header = include_str!("../../kernels/rows.cuh");
    let listed = header.split("enum Stat { ").nth(1).unwrap();
    let listed = listed.split(" };").next().unwrap().to_lowercase();
    let names: Vec<&str> = Stat::ALL.iter().map(|stat| stat.name()).collect();
    assert_eq!(listed, format!("{}, stat_count", names.join(", ")));
}
