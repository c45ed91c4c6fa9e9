//! Token statistics: what they are. How they are computed on the CPU is in [`cpu`] (forward), [`backward`] and [`both`].
//!
//! For a row of raw logits `x` (V of them) and its label `y`:
//! `z = softcap·tanh(scale·x/softcap)/T` (softcap off: `z = scale·x/T`), `lse = log Σ e^z`, `p = e^{z−lse}`; `q` is the
//! same of the reference logits. All values are in nats.
//!
//! | name | value | dvalue/dz_j |
//! | --- | --- | --- |
//! | `logp` | z_y − lse | 1[j=y] − p_j |
//! | `lse` | lse | p_j |
//! | `entropy` H | lse − Σ p z | −p_j (log p_j + H) |
//! | `log_sum_sq` | log Σ p² | none |
//! | `mean_logit` | mean z | 1/V |
//! | `top1` | 1 if y is the first argmax of x, else 0 | none |
//! | `topk_mass` | Σ of the k largest p | none |
//! | `topk_entropy` | entropy of the k largest p, renormalised | none |
//! | `ref_logp`, `ref_lse` | as `logp` and `lse`, of the reference logits | none |
//! | `kl` | KL(π‖ref) = Σ p (log p − log q) | p_j (log p_j − log q_j − kl) |
//! | `rkl` | KL(ref‖π) = Σ q (log q − log p) | p_j − q_j |
//!
//! Special rows. An ignored row (mask false, label = ignore index) is never read; values and gradient are 0. A logit of
//! −inf has p = 0 and takes no part but in the mean, whose gradient it gets like any other (0 under a soft cap, where dz/dx
//! is). In a row of nothing but −inf every p is 0: `lse` and `log_sum_sq` are −inf, `logp` is −inf, sums of p are 0, the
//! gradient is 0. A NaN or +inf logit makes every value that is computed from its row NaN.
//! Where the logits are a block of a larger vocabulary, values are those of the block: a label of another block has no mass
//! in it, so `logp` is −inf and `top1` 0. Gradients are computed from the values of the whole vocabulary, which the caller
//! puts in the block's place, and V is that of the whole.
//! Where `kl` is +inf (q_j = 0 < p_j) it has no gradient: that of its row is NaN, unless the upstream gradient is 0.

pub mod backward;
pub mod both;
mod chunk;
mod combine;
pub mod cpu;
pub mod cuda;
mod exp;
pub mod lists;
pub mod projected;
#[cfg(test)]
mod tests;
mod topk;

use crate::array::{ArgumentError, Array, Dtype};

/// The largest `k` of `topk_mass` and `topk_entropy`.
pub const MAX_K: usize = 64;

/// A statistic of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    Logp,
    Lse,
    Entropy,
    LogSumSq,
    MeanLogit,
    Top1,
    TopkMass,
    TopkEntropy,
    RefLogp,
    RefLse,
    Kl,
    Rkl,
}

impl Stat {
    /// By their bits in a set.
    pub const ALL: [Stat; 12] = [
        Stat::Logp,
        Stat::Lse,
        Stat::Entropy,
        Stat::LogSumSq,
        Stat::MeanLogit,
        Stat::Top1,
        Stat::TopkMass,
        Stat::TopkEntropy,
        Stat::RefLogp,
        Stat::RefLse,
        Stat::Kl,
        Stat::Rkl,
    ];

    /// The statistics of a set, bit i being `ALL[i]`, lower bits first.
    pub fn of_bits(bits: u32) -> Result<Vec<Stat>, ArgumentError> {
        if bits == 0 || bits >> Stat::ALL.len() != 0 {
            return Err(ArgumentError::Value(format!(
                "stats: {bits:#b} is no set of statistics, expected some of {} bits",
                Stat::ALL.len()
            )));
        }
        let within = |stat: &Stat| bits >> *stat as u32 & 1 == 1;
        Ok(Stat::ALL.into_iter().filter(within).collect())
    }

    pub fn name(self) -> &'static str {
        match self {
            Stat::Logp => "logp",
            Stat::Lse => "lse",
            Stat::Entropy => "entropy",
            Stat::LogSumSq => "log_sum_sq",
            Stat::MeanLogit => "mean_logit",
            Stat::Top1 => "top1",
            Stat::TopkMass => "topk_mass",
            Stat::TopkEntropy => "topk_entropy",
            Stat::RefLogp => "ref_logp",
            Stat::RefLse => "ref_lse",
            Stat::Kl => "kl",
            Stat::Rkl => "rkl",
        }
    }

    pub fn needs_reference(self) -> bool {
        matches!(self, Stat::RefLogp | Stat::RefLse | Stat::Kl | Stat::Rkl)
    }

    pub fn has_gradient(self) -> bool {
        matches!(
            self,
            Stat::Logp | Stat::Lse | Stat::Entropy | Stat::MeanLogit | Stat::Kl | Stat::Rkl
        )
    }

    /// The saved values that the gradient of this statistic is computed from.
    fn gradient_needs(self) -> &'static [Stat] {
        match self {
            Stat::Logp | Stat::Lse | Stat::MeanLogit => &[Stat::Lse],
            Stat::Entropy => &[Stat::Lse, Stat::Entropy],
            Stat::Kl => &[Stat::Lse, Stat::RefLse, Stat::Kl],
            Stat::Rkl => &[Stat::Lse, Stat::RefLse],
            _ => &[],
        }
    }
}

/// Temperature: one for all rows or one per row.
pub enum Temperature {
    Same(f64),
    PerRow(Array),
}

/// The rows of a call: logits `(*lead, V)` with what belongs to each row, of shape `lead`.
///
/// The V logits are those of the classes from `first_class` on, out of `classes`: all of them, or a block.
pub struct Rows {
    pub logits: Array,
    /// Numbers of classes, whichever block the logits are.
    pub labels: Array,
    pub mask: Option<Array>,
    /// Logits of the reference model, same shape.
    pub reference: Option<Array>,
    pub temperature: Temperature,
    pub scale: f64,
    /// 0 switches it off.
    pub softcap: f64,
    pub ignore_index: i64,
    pub first_class: i64,
    pub classes: i64,
}

/// A row that is not ignored.
#[derive(Clone, Copy, Debug)]
pub struct LiveRow {
    /// Row-major number of the row.
    pub index: usize,
    /// The label's place in the row; `None` where it belongs to another block.
    pub label: Option<usize>,
    pub temperature: f64,
}

impl Rows {
    /// Number of leading dimensions.
    pub fn rank(&self) -> usize {
        self.logits.shape.len() - 1
    }

    /// The shape of everything that has one entry per row.
    pub fn lead(&self) -> &[usize] {
        &self.logits.shape[..self.rank()]
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.lead().iter().product()
    }

    /// Number of logits in a row, V.
    pub fn width(&self) -> usize {
        self.logits.shape[self.rank()]
    }

    /// The dtype of statistics: f64 for f64 logits, f32 for all others.
    pub fn stat_dtype(&self) -> Dtype {
        if self.logits.dtype == Dtype::F64 {
            Dtype::F64
        } else {
            Dtype::F32
        }
    }

    /// Checks everything but the contents of arrays.
    pub fn check(&self) -> Result<(), ArgumentError> {
        check_logits("logits", &self.logits)?;
        self.check_per_row("labels", &self.labels, |dtype| dtype == Dtype::I64, "i64")?;
        if let Some(mask) = &self.mask {
            self.check_per_row("mask", mask, |dtype| dtype == Dtype::Bool, "bool")?;
        }
        if let Some(reference) = &self.reference {
            check_logits("reference", reference)?;
            check_shape(
                "reference",
                reference,
                &self.logits.shape,
                "the shape of logits",
            )?;
        }
        match &self.temperature {
            Temperature::Same(value) => check_positive("temperature", *value)?,
            Temperature::PerRow(view) => {
                self.check_per_row("temperature", view, Dtype::is_float, "a float dtype")?
            }
        }
        check_positive("scale", self.scale)?;
        if self.softcap != 0.0 {
            check_positive("softcap", self.softcap)?;
        }
        self.check_block()
    }

    /// Checks that the block lies within the classes.
    fn check_block(&self) -> Result<(), ArgumentError> {
        let width = self.width() as i64;
        if self.classes < width {
            return Err(ArgumentError::Value(format!(
                "classes: {}, expected at least {width}, the last dimension of logits",
                self.classes
            )));
        }
        if !(0..=self.classes - width).contains(&self.first_class) {
            return Err(ArgumentError::Value(format!(
                "first_class: {}, expected 0 <= first_class <= {}, which leaves the {width} classes of logits among {}",
                self.first_class,
                self.classes - width,
                self.classes
            )));
        }
        Ok(())
    }

    fn check_per_row(
        &self,
        argument: &str,
        view: &Array,
        accepts: impl Fn(Dtype) -> bool,
        expected: &str,
    ) -> Result<(), ArgumentError> {
        if !accepts(view.dtype) {
            return Err(ArgumentError::Type(format!(
                "{argument}: dtype {}, expected {expected}",
                view.dtype.name()
            )));
        }
        check_shape(
            argument,
            view,
            self.lead(),
            "the shape of logits without the last dimension",
        )
    }

    /// The rows that are not ignored, in order; an error if any of their labels or temperatures is out of range.
    ///
    /// # Safety
    /// The views of labels, mask and temperature describe live memory, and [`Rows::check`] has passed.
    pub unsafe fn live(&self) -> Result<Vec<LiveRow>, ArgumentError> {
        let mut live = Vec::new();
        for index in 0..self.count() {
            // SAFETY: `index` is within `lead`, the shape of mask and labels; the caller vouches for the memory.
            let (masked, label) = unsafe {
                (
                    self.mask
                        .as_ref()
                        .is_some_and(|mask| !mask.read_bool(index)),
                    self.labels.read_i64(index),
                )
            };
            if masked || label == self.ignore_index {
                continue;
            }
            let label = self.place_of(label, index)?;
            // SAFETY: as above.
            let temperature = unsafe { self.temperature_of(index)? };
            live.push(LiveRow {
                index,
                label,
                temperature,
            });
        }
        Ok(live)
    }

    /// Where in the row the class `label` of row `index` stands, if its block is this one.
    fn place_of(&self, label: i64, index: usize) -> Result<Option<usize>, ArgumentError> {
        if !(0..self.classes).contains(&label) {
            let meaning = if self.classes == self.width() as i64 {
                "the last dimension of logits"
            } else {
                "the number of classes"
            };
            return Err(ArgumentError::Value(format!(
                "labels: {label} at {:?}, expected 0 <= label < {} ({meaning}) or ignore_index = {}",
                self.logits.coordinates(index, self.rank()),
                self.classes,
                self.ignore_index
            )));
        }
        Ok(usize::try_from(label - self.first_class)
            .ok()
            .filter(|place| *place < self.width()))
    }

    /// # Safety
    /// As for [`Rows::live`], and `index < self.count()`.
    unsafe fn temperature_of(&self, index: usize) -> Result<f64, ArgumentError> {
        match &self.temperature {
            Temperature::Same(value) => Ok(*value),
            Temperature::PerRow(view) => {
                // SAFETY: passed on to the caller.
                let value = unsafe { view.read_float(index) };
                check_positive("temperature", value).map_err(|_| {
                    ArgumentError::Value(format!(
                        "temperature: {value} at {:?}, expected a finite number > 0",
                        self.logits.coordinates(index, self.rank())
                    ))
                })?;
                Ok(value)
            }
        }
    }

    /// Checks the table `[stats, rows]` that is named `argument`.
    fn check_table(
        &self,
        argument: &str,
        view: &Array,
        stats: &[Stat],
    ) -> Result<(), ArgumentError> {
        if view.dtype != self.stat_dtype() {
            return Err(ArgumentError::Type(format!(
                "{argument}: dtype {}, expected {} for logits of dtype {}",
                view.dtype.name(),
                self.stat_dtype().name(),
                self.logits.dtype.name()
            )));
        }
        check_shape(
            argument,
            view,
            &[stats.len(), self.count()],
            "[statistics, rows]",
        )?;
        if !view.is_contiguous() {
            return Err(ArgumentError::Value(format!(
                "{argument}: strides {:?}, expected a contiguous array",
                view.strides
            )));
        }
        Ok(())
    }

    /// Checks that no statistic is named twice: of two upstream gradients one would be lost.
    fn check_distinct(stats: &[Stat]) -> Result<(), ArgumentError> {
        for (position, stat) in stats.iter().enumerate() {
            if stats[..position].contains(stat) {
                return Err(ArgumentError::Value(format!(
                    "stats: {:?} twice, expected distinct names",
                    stat.name()
                )));
            }
        }
        Ok(())
    }

    /// Checks a request for the values of `stats`.
    fn check_forward(&self, stats: &[Stat], k: usize, out: &Array) -> Result<(), ArgumentError> {
        self.check()?;
        Rows::check_distinct(stats)?;
        if let (Some(stat), None) = (
            stats.iter().find(|stat| stat.needs_reference()),
            &self.reference,
        ) {
            return Err(ArgumentError::Value(format!(
                "reference: missing, {:?} needs it",
                stat.name()
            )));
        }
        if !(1..=MAX_K).contains(&k) {
            return Err(ArgumentError::Value(format!(
                "k: {k}, expected 1 <= k <= {MAX_K}"
            )));
        }
        self.check_table("out", out, stats)
    }

    /// Checks a request for the values of `stats` and the gradient of `Σ grads·stats`, computed from those values.
    fn check_both(
        &self,
        (stats, k): (&[Stat], usize),
        grads: &Array,
        out: &Array,
        gradient: &Array,
    ) -> Result<(), ArgumentError> {
        self.check_forward(stats, k, out)?;
        self.check_backward(stats, grads, out, gradient)
    }

    /// Checks a request for the gradient of `Σ grads·stats`.
    fn check_backward(
        &self,
        stats: &[Stat],
        grads: &Array,
        saved: &Array,
        gradient: &Array,
    ) -> Result<(), ArgumentError> {
        self.check()?;
        Rows::check_distinct(stats)?;
        for stat in stats.iter().filter(|stat| stat.has_gradient()) {
            if let Some(missing) = stat
                .gradient_needs()
                .iter()
                .find(|need| !stats.contains(need))
            {
                return Err(ArgumentError::Value(format!(
                    "stats: the gradient of {:?} needs {:?} among the saved values",
                    stat.name(),
                    missing.name()
                )));
            }
            if stat.needs_reference() && self.reference.is_none() {
                return Err(ArgumentError::Value(format!(
                    "reference: missing, the gradient of {:?} needs it",
                    stat.name()
                )));
            }
        }
        self.check_table("grads", grads, stats)?;
        self.check_table("saved", saved, stats)?;
        check_logits("gradient", gradient)?;
        check_shape(
            "gradient",
            gradient,
            &self.logits.shape,
            "the shape of logits",
        )?;
        if gradient.dtype != self.logits.dtype {
            return Err(ArgumentError::Type(format!(
                "gradient: dtype {}, expected {}, that of logits",
                gradient.dtype.name(),
                self.logits.dtype.name()
            )));
        }
        if gradient.address == self.logits.address && !gradient.steps_like(&self.logits) {
            return Err(ArgumentError::Value(format!(
                "gradient: strides {:?} over the memory of logits with strides {:?}, expected the same",
                gradient.strides, self.logits.strides
            )));
        }
        if !gradient.is_disjoint() {
            return Err(ArgumentError::Value(format!(
                "gradient: rows share memory (shape {:?}, strides {:?}), expected each element to have its own",
                gradient.shape, gradient.strides
            )));
        }
        Ok(())
    }
}

/// Checks that `view` is a float array with at least one dimension, the last of which is dense.
fn check_logits(argument: &str, view: &Array) -> Result<(), ArgumentError> {
    if !view.dtype.is_float() {
        return Err(ArgumentError::Type(format!(
            "{argument}: dtype {}, expected f16, bf16, f32 or f64",
            view.dtype.name()
        )));
    }
    let (Some(&width), Some(&stride)) = (view.shape.last(), view.strides.last()) else {
        return Err(ArgumentError::Value(format!(
            "{argument}: no dimensions, expected shape (*lead, V)"
        )));
    };
    if width > 1 && stride != 1 {
        return Err(ArgumentError::Value(format!(
            "{argument}: stride {stride} in the last dimension, expected 1 (each row dense)"
        )));
    }
    Ok(())
}

fn check_shape(
    argument: &str,
    view: &Array,
    expected: &[usize],
    meaning: &str,
) -> Result<(), ArgumentError> {
    if view.shape != expected {
        return Err(ArgumentError::Value(format!(
            "{argument}: shape {:?}, expected {expected:?}, {meaning}",
            view.shape
        )));
    }
    Ok(())
}

fn check_positive(argument: &str, value: f64) -> Result<(), ArgumentError> {
    if !(value.is_finite() && value > 0.0) {
        return Err(ArgumentError::Value(format!(
            "{argument}: {value}, expected a finite number > 0"
        )));
    }
    Ok(())
}
