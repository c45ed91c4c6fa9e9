//! Backward on the CPU.

use half::{bf16, f16};

use super::cpu::{read_row, transform};
use super::{Rows, Stat};
use crate::view::{ArgumentError, Dtype, View};

/// Writes the gradient.
///
/// # Safety
/// Every view describes live memory.
pub unsafe fn backward(
    rows: &Rows,
    stats: &[Stat],
    grads: &View,
    saved: &View,
    gradient: &View,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_backward(stats, grads, saved, gradient)?;
    let _ = threads;
    // SAFETY: checked.
    let live = unsafe { rows.live()? };
    let count = rows.count();
    let rank = rows.rank();
    let get = |view: &View, stat: Stat, row: usize| -> f64 {
        let Some(position) = stats.iter().position(|s| *s == stat) else {
            return 0.0;
        };
        // SAFETY: within the table.
        unsafe { view.read_float(position * count + row) }
    };
    let put = |row: usize, j: usize, value: f64| {
        let offset = gradient.offset(row, rank) + j as isize;
        // SAFETY: within gradient.
        unsafe {
            match gradient.dtype {
                Dtype::F16 => gradient
                    .pointer::<f16>(offset)
                    .write_unaligned(f16::from_f64(value)),
                Dtype::Bf16 => gradient
                    .pointer::<bf16>(offset)
                    .write_unaligned(bf16::from_f64(value)),
                Dtype::F32 => gradient
                    .pointer::<f32>(offset)
                    .write_unaligned(value as f32),
                _ => gradient.pointer::<f64>(offset).write_unaligned(value),
            }
        }
    };
    let mut next = live.iter().peekable();
    for index in 0..count {
        let Some(row) = next.next_if(|row| row.index == index) else {
            (0..rows.width()).for_each(|j| put(index, j, 0.0));
            continue;
        };
        // SAFETY: live.
        let x = unsafe { read_row(&rows.logits, rank, index) };
        let w: Vec<f64> = match &rows.reference {
            // SAFETY: live.
            Some(r) => unsafe { read_row(r, rank, index) }
                .iter()
                .map(|x| transform(rows, row, *x))
                .collect(),
            None => vec![f64::NEG_INFINITY; x.len()],
        };
        let coefficient = |stat| get(grads, stat, index);
        let value = |stat| get(saved, stat, index);
        let (lse, ref_lse) = (value(Stat::Lse), value(Stat::RefLse));
        for (j, x) in x.iter().enumerate() {
            let z = transform(rows, row, *x);
            let prob = |v: f64, l: f64| {
                if v == f64::NEG_INFINITY && !l.is_nan() {
                    0.0
                } else {
                    (v - l).exp()
                }
            };
            let p = prob(z, lse);
            let mut g = 0.0;
            let mut add = |c: f64, d: f64| {
                if c != 0.0 {
                    g += c * d
                }
            };
            let guarded = |p: f64, term: f64| if p == 0.0 { 0.0 } else { p * term };
            add(
                coefficient(Stat::Logp),
                f64::from(j == row.label && lse != f64::NEG_INFINITY) - p,
            );
            add(coefficient(Stat::Lse), p);
            add(
                coefficient(Stat::Entropy),
                -guarded(p, z - lse + value(Stat::Entropy)),
            );
            add(
                coefficient(Stat::Kl),
                guarded(p, (z - lse) - (w[j] - ref_lse) - value(Stat::Kl)),
            );
            add(coefficient(Stat::Rkl), p - prob(w[j], ref_lse));
            let slope = if rows.softcap == 0.0 {
                rows.scale / row.temperature
            } else {
                rows.scale / row.temperature
                    * (1.0 - (rows.scale * x / rows.softcap).tanh().powi(2))
            };
            put(index, j, if slope == 0.0 { 0.0 } else { g * slope });
        }
    }
    Ok(())
}
