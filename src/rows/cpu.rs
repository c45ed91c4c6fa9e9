//! Forward on the CPU.

use half::{bf16, f16};

use super::{LiveRow, Rows, Stat};
use crate::view::{ArgumentError, Dtype, View};

/// # Safety
/// Live memory.
pub(super) unsafe fn read_row(view: &View, rank: usize, index: usize) -> Vec<f64> {
    let width = view.shape[rank] as isize;
    let base = view.offset(index, rank);
    // SAFETY: within the view.
    (0..width)
        .map(|j| unsafe {
            match view.dtype {
                Dtype::F16 => view.pointer::<f16>(base + j).read_unaligned().to_f64(),
                Dtype::Bf16 => view.pointer::<bf16>(base + j).read_unaligned().to_f64(),
                Dtype::F32 => view.pointer::<f32>(base + j).read_unaligned().into(),
                _ => view.pointer::<f64>(base + j).read_unaligned(),
            }
        })
        .collect()
}

pub(super) fn transform(rows: &Rows, row: &LiveRow, x: f64) -> f64 {
    if rows.softcap == 0.0 {
        x * (rows.scale / row.temperature)
    } else {
        rows.softcap * (rows.scale * x / rows.softcap).tanh() / row.temperature
    }
}

fn lse(z: &[f64]) -> f64 {
    let m = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if m == f64::NEG_INFINITY {
        return if z.iter().any(|v| v.is_nan()) {
            f64::NAN
        } else {
            m
        };
    }
    m + z.iter().map(|v| (v - m).exp()).sum::<f64>().ln()
}

fn guarded(p: f64, term: f64) -> f64 {
    if p == 0.0 { 0.0 } else { p * term }
}

/// Writes statistics.
///
/// # Safety
/// Every view describes live memory.
pub unsafe fn forward(
    rows: &Rows,
    stats: &[Stat],
    k: usize,
    out: &View,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_forward(stats, k, out)?;
    let _ = threads;
    // SAFETY: checked.
    let live = unsafe { rows.live()? };
    let count = rows.count();
    let put = |stat: usize, row: usize, value: f64| {
        let offset = (stat * count + row) as isize;
        // SAFETY: within out.
        unsafe {
            if out.dtype == Dtype::F64 {
                out.pointer::<f64>(offset).write_unaligned(value)
            } else {
                out.pointer::<f32>(offset).write_unaligned(value as f32)
            }
        }
    };
    for stat in 0..stats.len() {
        (0..count).for_each(|row| put(stat, row, 0.0));
    }
    for row in &live {
        // SAFETY: live.
        let x = unsafe { read_row(&rows.logits, rows.rank(), row.index) };
        let z: Vec<f64> = x.iter().map(|x| transform(rows, row, *x)).collect();
        let l = lse(&z);
        // SAFETY: live.
        let w: Vec<f64> = match &rows.reference {
            Some(r) => unsafe { read_row(r, rows.rank(), row.index) }
                .iter()
                .map(|x| transform(rows, row, *x))
                .collect(),
            None => vec![],
        };
        let rl = lse(&w);
        let prob = |v: f64, l: f64| {
            if v == f64::NEG_INFINITY {
                0.0
            } else {
                (v - l).exp()
            }
        };
        let mut top: Vec<f64> = z.iter().map(|v| prob(*v, l)).collect();
        top.sort_by(|a, b| b.total_cmp(a));
        top.truncate(k);
        let mass: f64 = top.iter().sum();
        for (s, stat) in stats.iter().enumerate() {
            let value = match stat {
                Stat::Logp if z[row.label] == f64::NEG_INFINITY && !l.is_nan() => z[row.label],
                Stat::Logp => z[row.label] - l,
                Stat::Lse => l,
                Stat::Entropy => -z.iter().map(|v| guarded(prob(*v, l), v - l)).sum::<f64>(),
                Stat::LogSumSq if l == f64::NEG_INFINITY => l,
                Stat::LogSumSq => z.iter().map(|v| prob(*v, l).powi(2)).sum::<f64>().ln(),
                Stat::MeanLogit => z.iter().sum::<f64>() / z.len() as f64,
                Stat::Top1 => {
                    let best = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    f64::from(x.iter().position(|v| *v == best) == Some(row.label))
                }
                Stat::TopkMass => mass,
                Stat::TopkEntropy if mass == 0.0 => 0.0,
                Stat::TopkEntropy => -top
                    .iter()
                    .map(|p| guarded(p / mass, (p / mass).ln()))
                    .sum::<f64>(),
                Stat::RefLogp if w[row.label] == f64::NEG_INFINITY => w[row.label],
                Stat::RefLogp => w[row.label] - rl,
                Stat::RefLse => rl,
                Stat::Kl => z
                    .iter()
                    .zip(&w)
                    .map(|(z, w)| guarded(prob(*z, l), (z - l) - (w - rl)))
                    .sum(),
                Stat::Rkl if l == f64::NEG_INFINITY && rl != l => f64::INFINITY,
                Stat::Rkl => z
                    .iter()
                    .zip(&w)
                    .map(|(z, w)| guarded(prob(*w, rl), (w - rl) - (z - l)))
                    .sum(),
            };
            put(s, row.index, if l.is_nan() { f64::NAN } else { value });
        }
    }
    Ok(())
}
