//! From chunks to a row: partial sums relative to a chunk's own maximum are brought to a common one, in f64 and in the
//! order of the chunks, so that a row's statistics do not depend on who computed which chunk.

use super::chunk::Mass;
use super::chunk::forward::{Crossed, Moments};

/// What is kept of a chunk of one row of logits, where more than its mass is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Partial {
    /// The origin of all sums; −inf where the chunk holds nothing above that.
    pub max: f64,
    /// Σ e^d; 0 unless it is wanted
    pub mass: f64,
    /// 0 unless they are wanted; their mass may have other roundings.
    pub moments: Moments,
    /// Σ z
    pub total: f64,
}

impl Partial {
    /// Of no logits.
    pub const NOTHING: Partial = Partial {
        max: f64::NEG_INFINITY,
        mass: 0.0,
        moments: Moments::NOTHING,
        total: 0.0,
    };
}

/// What is kept of a chunk of a row with reference logits.
#[derive(Clone, Copy, Debug)]
pub struct ReferencePartial {
    pub mass: Mass,
    /// Where a divergence is wanted.
    pub crossed: Option<CrossedPartial>,
}

#[derive(Clone, Copy, Debug)]
pub struct CrossedPartial {
    /// Of the reference's logits.
    pub max: f64,
    pub sums: Crossed,
}

/// Everything that a chunk leaves behind.
#[derive(Clone, Copy, Debug)]
pub struct ChunkResult {
    /// What lse and log-probabilities are made of, whatever else is wanted.
    pub mass: Mass,
    pub policy: Partial,
    pub reference: Option<ReferencePartial>,
    /// Whether a logit in the chunk outranks the label's: a larger one, or an equal one before it.
    pub outranked: bool,
}

/// The sums of the chunks of a row up to now, relative to the maximum up to now.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    mass: Mass,
    reference_mass: Mass,
    policy: Partial,
    reference: Reference,
    outranked: bool,
}

#[derive(Clone, Copy, Debug)]
struct Reference {
    max: f64,
    mass: f64,
    /// Σ e^d·(d − d')
    forward: f64,
    /// Σ e^d'·(d' − d)
    backward: f64,
}

impl From<&CrossedPartial> for Reference {
    fn from(partial: &CrossedPartial) -> Reference {
        Reference {
            max: partial.max,
            mass: partial.sums.reference_mass,
            forward: partial.sums.forward,
            backward: partial.sums.backward,
        }
    }
}

impl Mass {
    pub const NOTHING: Mass = Mass {
        origin: f64::NEG_INFINITY,
        mass: 0.0,
        rough: false,
    };

    /// Of a sum from the largest z on.
    pub fn from_largest(max: f64, mass: f64) -> Mass {
        Mass {
            origin: max,
            mass,
            rough: false,
        }
    }

    #[inline]
    pub fn plus(&self, other: &Mass) -> Mass {
        let origin = self.origin.max(other.origin);
        Mass {
            origin,
            mass: self.measured_from(origin) + other.measured_from(origin),
            rough: self.rough || other.rough,
        }
    }

    /// With a more exact sum in the place of a part of it, measured from where that one is.
    pub fn with(&self, part: &Mass, exact: &Mass) -> Mass {
        let rest = Mass {
            // Rounding must not leave less than nothing.
            mass: (self.mass - part.measured_from(self.origin)).max(0.0),
            ..*self
        };
        Mass {
            mass: rest.measured_from(exact.origin) + exact.mass,
            ..*exact
        }
    }

    /// The sum measured from another origin.
    fn measured_from(&self, origin: f64) -> f64 {
        rescale(self.origin, origin) * self.mass
    }

    /// Its logarithm.
    pub fn lse(&self) -> f64 {
        if self.mass == 0.0 {
            f64::NEG_INFINITY
        } else {
            self.origin + self.mass.ln()
        }
    }

    /// z − lse of a logit z, as (z − origin) − log Σ: exact to the last bits wherever the origin stands. A banned z gives −inf
    /// even in a row of nothing else.
    pub fn log_p(&self, z: f64) -> f64 {
        if z == f64::NEG_INFINITY && !self.mass.is_nan() {
            z
        } else {
            at_most_zero((z - self.origin) - self.mass.ln())
        }
    }
}

/// e^{old − new}, with nothing (−inf) staying nothing.
fn rescale(old: f64, new: f64) -> f64 {
    if old == f64::NEG_INFINITY {
        0.0
    } else if old == new {
        1.0 // as the function below says, after a while
    } else {
        (old - new).exp()
    }
}

/// How far an origin moves; nothing (−inf) has no place and moves nowhere.
fn distance(old: f64, new: f64) -> f64 {
    if old == f64::NEG_INFINITY {
        0.0
    } else {
        old - new
    }
}

/// `factor·value`, where an infinite value is one that no factor makes finite.
fn scaled(factor: f64, value: f64) -> f64 {
    if value.is_infinite() {
        value
    } else {
        factor * value
    }
}

impl Row {
    /// A row of no chunks.
    pub fn new() -> Row {
        Row {
            mass: Mass::NOTHING,
            reference_mass: Mass::NOTHING,
            policy: Partial::NOTHING,
            reference: Reference {
                max: f64::NEG_INFINITY,
                mass: 0.0,
                forward: 0.0,
                backward: 0.0,
            },
            outranked: false,
        }
    }

    /// A row whose mass is all that is wanted.
    pub fn of(mass: Mass) -> Row {
        Row { mass, ..Row::new() }
    }

    /// Adds the chunk that comes next.
    pub fn add(&mut self, chunk: &ChunkResult) {
        let max = self.policy.max.max(chunk.policy.max);
        if let Some(reference) = &chunk.reference {
            self.reference_mass = self.reference_mass.plus(&reference.mass);
            if let Some(crossed) = &reference.crossed {
                self.add_reference(&chunk.policy, &crossed.into(), max);
            }
        }
        self.mass = self.mass.plus(&chunk.mass);
        let sum = |select: fn(&Partial) -> f64| select(&self.policy) + select(&chunk.policy);
        self.policy = Partial {
            max,
            mass: moved_mass(&self.policy, max) + moved_mass(&chunk.policy, max),
            moments: add_moments(&moved(&self.policy, max), &moved(&chunk.policy, max)),
            total: sum(|part| part.total),
        };
        self.outranked |= chunk.outranked;
    }

    fn add_reference(&mut self, policy: &Partial, reference: &Reference, policy_max: f64) {
        let max = self.reference.max.max(reference.max);
        let mut sum = Reference {
            max,
            mass: 0.0,
            forward: 0.0,
            backward: 0.0,
        };
        for (p, q) in [(&self.policy, &self.reference), (policy, reference)] {
            let shift = distance(p.max, policy_max) - distance(q.max, max);
            let (p_factor, q_factor) = (rescale(p.max, policy_max), rescale(q.max, max));
            sum.mass += q_factor * q.mass;
            sum.forward += scaled(p_factor, q.forward + p.mass * shift);
            sum.backward += scaled(q_factor, q.backward - q.mass * shift);
        }
        self.reference = sum;
    }

    /// Σ e^z
    pub fn mass(&self) -> &Mass {
        &self.mass
    }

    /// The same of the reference.
    pub fn reference_mass(&self) -> &Mass {
        &self.reference_mass
    }

    /// Whether a logit is NaN or +inf.
    pub fn is_nan(&self) -> bool {
        let sums = [self.mass.mass, self.policy.mass, self.policy.moments.mass];
        sums.iter().any(|sum| sum.is_nan())
    }

    /// H = lse − Σ p z
    pub fn entropy(&self) -> f64 {
        let sums = &self.policy.moments;
        if sums.mass == 0.0 {
            0.0
        } else {
            0.0 - at_most_zero(sums.weighted / sums.mass - sums.mass.ln())
        }
    }

    /// log Σ p²
    pub fn log_sum_sq(&self) -> f64 {
        let sums = &self.policy.moments;
        if sums.mass == 0.0 {
            f64::NEG_INFINITY
        } else {
            at_most_zero(sums.squares.ln() - 2.0 * sums.mass.ln())
        }
    }

    /// Mean of `width` logits.
    pub fn mean(&self, width: usize) -> f64 {
        if self.is_nan() {
            f64::NAN
        } else {
            self.policy.total / width as f64
        }
    }

    /// 1 if the label is the first argmax.
    pub fn top1(&self) -> f64 {
        if self.is_nan() {
            f64::NAN
        } else {
            f64::from(!self.outranked)
        }
    }

    /// Mass and renormalised entropy of some logits, all of them above −inf.
    pub fn top(&self, largest: &[f64]) -> (f64, f64) {
        if self.is_nan() {
            return (f64::NAN, f64::NAN);
        }
        let (mut mass, mut weighted) = (0.0, 0.0);
        for z in largest {
            let d = z - self.policy.max;
            mass += d.exp();
            weighted += d.exp() * d;
        }
        if mass == 0.0 {
            return (0.0, 0.0);
        }
        (
            (mass / self.policy.mass).min(1.0),
            0.0 - at_most_zero(weighted / mass - mass.ln()),
        )
    }

    /// KL(π‖ref)
    pub fn kl(&self) -> f64 {
        divergence(
            self.reference.forward,
            self.policy.mass,
            self.reference.mass,
        )
    }

    /// KL(ref‖π)
    pub fn rkl(&self) -> f64 {
        divergence(
            self.reference.backward,
            self.reference.mass,
            self.policy.mass,
        )
    }
}

/// The mass of a part relative to another origin.
fn moved_mass(part: &Partial, max: f64) -> f64 {
    rescale(part.max, max) * part.mass
}

/// Its moments, likewise.
fn moved(part: &Partial, max: f64) -> Moments {
    let factor = rescale(part.max, max);
    let sums = &part.moments;
    Moments {
        mass: factor * sums.mass,
        weighted: factor * (sums.weighted + sums.mass * distance(part.max, max)),
        squares: factor * factor * sums.squares,
    }
}

fn add_moments(one: &Moments, other: &Moments) -> Moments {
    Moments {
        mass: one.mass + other.mass,
        weighted: one.weighted + other.weighted,
        squares: one.squares + other.squares,
    }
}

/// A logarithm of a probability, which rounding may have lifted above 0, where log(1 − p) is undefined; NaN stays.
fn at_most_zero(value: f64) -> f64 {
    if value > 0.0 { 0.0 } else { value }
}

/// Σ p (log p − log q), from `crossed` = Σ e^d (d − d'), Σ e^d and Σ e^d'.
fn divergence(crossed: f64, mass: f64, other_mass: f64) -> f64 {
    if mass.is_nan() || other_mass.is_nan() {
        f64::NAN
    } else if mass == 0.0 {
        0.0
    } else if crossed == f64::INFINITY || other_mass == 0.0 {
        f64::INFINITY
    } else {
        // Never negative but for rounding.
        (crossed / mass + (other_mass / mass).ln()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(z: &[f64], w: &[f64]) -> ChunkResult {
        let part = |z: &[f64]| {
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let origin = if max == f64::NEG_INFINITY { 0.0 } else { max };
            (max, z.iter().map(|z| z - origin).collect::<Vec<f64>>())
        };
        let ((max, d), (reference_max, e)) = (part(z), part(w));
        let term = |p: f64, gap: f64| if p == 0.0 { 0.0 } else { p * gap };
        let mass = |d: &[f64]| d.iter().map(|d| d.exp()).sum();
        let policy = Partial {
            max,
            mass: mass(&d),
            moments: Moments {
                mass: mass(&d),
                weighted: d.iter().map(|d| term(d.exp(), *d)).sum(),
                squares: d.iter().map(|d| (2.0 * d).exp()).sum(),
            },
            total: z.iter().sum(),
        };
        ChunkResult {
            mass: Mass::from_largest(max, policy.mass),
            policy,
            reference: Some(ReferencePartial {
                mass: Mass::from_largest(reference_max, mass(&e)),
                crossed: Some(CrossedPartial {
                    max: reference_max,
                    sums: Crossed {
                        mass: mass(&d),
                        reference_mass: mass(&e),
                        forward: d.iter().zip(&e).map(|(d, e)| term(d.exp(), d - e)).sum(),
                        backward: d.iter().zip(&e).map(|(d, e)| term(e.exp(), e - d)).sum(),
                    },
                }),
            }),
            outranked: false,
        }
    }

    fn row(z: &[f64], w: &[f64], pieces: usize) -> Row {
        let mut row = Row::new();
        for (z, w) in z.chunks(pieces).zip(w.chunks(pieces)) {
            row.add(&chunk(z, w));
        }
        row
    }

    const BANNED: f64 = f64::NEG_INFINITY;

    #[test]
    fn pieces_add_up_to_the_whole() {
        let z = [1.0, -3.0, BANNED, BANNED, 1e4, 1e4 - 1.0, BANNED, 2.0];
        let w = [0.5, -2.0, BANNED, BANNED, 9e3, 9e3 - 1.5, BANNED, 9e3];
        let whole = row(&z, &w, 8);
        for pieces in [1, 2, 3] {
            let parts = row(&z, &w, pieces);
            let values: [fn(&Row) -> f64; 6] = [
                |row| row.mass().lse(),
                |row| row.reference_mass().lse(),
                Row::entropy,
                Row::log_sum_sq,
                Row::kl,
                Row::rkl,
            ];
            for value in values {
                assert!(
                    (value(&parts) - value(&whole)).abs() < 1e-9,
                    "{pieces} {} {}",
                    value(&parts),
                    value(&whole)
                );
            }
        }
    }

    #[test]
    fn divergences_are_infinite_only_where_they_are() {
        for pieces in [1, 2, 4] {
            let both = row(
                &[0.0, 0.0, BANNED, BANNED],
                &[0.0, BANNED, BANNED, 1.0],
                pieces,
            );
            assert_eq!((both.kl(), both.rkl()), (f64::INFINITY, f64::INFINITY));
            let neither = row(
                &[0.0, 1.0, BANNED, BANNED],
                &[0.0, 1.0, BANNED, BANNED],
                pieces,
            );
            assert_eq!((neither.kl(), neither.rkl()), (0.0, 0.0));
            let forward = row(&[0.0, 1.0, BANNED, BANNED], &[BANNED; 4], pieces);
            assert_eq!((forward.kl(), forward.rkl()), (f64::INFINITY, 0.0));
        }
    }

    #[test]
    fn a_row_of_nothing() {
        let dead = row(&[BANNED; 4], &[BANNED; 4], 2);
        assert_eq!(dead.mass().lse(), BANNED);
        assert_eq!(dead.mass().log_p(BANNED), BANNED);
        assert_eq!(
            (dead.entropy(), dead.log_sum_sq(), dead.kl()),
            (0.0, BANNED, 0.0)
        );
        assert_eq!(dead.top(&[]), (0.0, 0.0));
    }
}
