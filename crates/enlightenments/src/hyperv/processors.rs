//! Sets of virtual processors, as hypercalls name them (TLFS 7.8.7.3). A processor's index is its vCPU's number.

use super::spec::Status;

const SPARSE: u64 = 0;
const ALL: u64 = 1;

/// A set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Processors {
    All,
    /// The first 64, one bit each.
    Mask(u64),
    /// Banks of 64 by their number.
    Banks(Vec<(u32, u64)>),
}

impl Processors {
    /// A sparse set: its format, which banks there are, and those.
    pub(super) fn sparse(format: u64, valid: u64, banks: &[u64]) -> Result<Self, Status> {
        match format {
            ALL => Ok(Self::All),
            SPARSE if valid.count_ones() as usize != banks.len() => Err(Status::InvalidInput),
            SPARSE => {
                let numbers = (0..64).filter(|bank| valid >> bank & 1 != 0);
                Ok(Self::Banks(numbers.zip(banks.iter().copied()).collect()))
            }
            _ => Err(Status::InvalidParameter),
        }
    }

    /// Those of them that a machine of `count` vCPUs has.
    pub(super) fn of(&self, count: u32) -> impl Iterator<Item = u32> {
        let has = |cpu: u32| match self {
            Self::All => true,
            Self::Mask(mask) => cpu < 64 && mask >> cpu & 1 != 0,
            Self::Banks(banks) => {
                banks.iter().any(|(bank, mask)| *bank == cpu / 64 && mask >> (cpu % 64) & 1 != 0)
            }
        };
        (0..count).filter(move |cpu| has(*cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_name_the_vcpus_that_there_are() {
        let of = |set: &Processors, count| set.of(count).collect::<Vec<_>>();
        assert_eq!(of(&Processors::All, 3), [0, 1, 2]);
        assert_eq!(of(&Processors::Mask(0b1010), 3), [1]);
        let banks = Processors::sparse(SPARSE, 0b10_0001, &[4, 2]).expect("sound");
        assert_eq!(of(&banks, 400), [2, 5 * 64 + 1]);
        assert_eq!(of(&banks, 64), [2]);
    }

    #[test]
    fn unsound_sets_are_refused() {
        assert_eq!(Processors::sparse(SPARSE, 0b11, &[1]), Err(Status::InvalidInput));
        assert_eq!(Processors::sparse(SPARSE, 0, &[1]), Err(Status::InvalidInput));
        assert_eq!(Processors::sparse(2, 0, &[]), Err(Status::InvalidParameter));
        assert_eq!(Processors::sparse(ALL, 0, &[]), Ok(Processors::All));
    }
}
