//! The native side of the oracle: cases run on the host CPU, in a worker process.
//!
//! A [`Worker`] belongs to one thread. It takes a batch of cases, lets the worker process run them while the caller does
//! something else, and gives the outcomes. A case that kills the worker is marked [`DIED`](super::case::DIED) and the
//! worker is started again. Linux on x86-64 only.

mod raw;

pub use raw::{BATCH, Worker, cpuid};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::case::{CODE, DATA, Initial, READ_ONLY};
    use crate::oracle::generate::Generator;
    use std::time::Instant;

    fn ended(code: &[u8], change: impl Fn(&mut Initial)) -> crate::oracle::case::Outcome {
        let mut worker = Worker::new().expect("a worker process");
        let initial = worker.initial(0);
        *initial = Initial::default();
        initial.code[..code.len()].copy_from_slice(code);
        initial.code_len = code.len() as u64;
        change(initial);
        worker.run(1).expect("runs");
        worker.wait().expect("ends");
        worker.outcome(0).clone()
    }

    #[test]
    fn registers_go_in_and_come_out() {
        // add rax, rcx; vpaddq ymm0, ymm0, ymm0
        let outcome = ended(&[0x48, 0x01, 0xc8, 0xc5, 0xfd, 0xd4, 0xc0], |initial| {
            initial.gpr[0] = 5;
            initial.gpr[1] = u64::MAX;
            initial.vector.zmm[0][16] = 7;
            initial.vector.k[3] = 0x1234;
        });
        assert_eq!((outcome.vector, outcome.rip, outcome.gpr[0]), (3, CODE + 8, 4));
        assert_eq!(outcome.rflags & 0xfff, 0x213, "carry and adjust are set");
        assert_eq!(outcome.vectors.zmm[0][16], 14);
        if cpuid(7, 0).ebx & (1 << 16) != 0 {
            assert_eq!(outcome.vectors.k[3], 0x1234);
        }
    }

    #[test]
    fn a_write_to_the_read_only_page_is_a_page_fault_with_its_address() {
        // mov [rax], ecx
        let outcome = ended(&[0x89, 0x08], |initial| initial.gpr[0] = READ_ONLY + 8);
        assert_eq!((outcome.vector, outcome.code, outcome.cr2), (14, 7, READ_ONLY + 8));
        assert_eq!(outcome.rip, CODE);
    }

    #[test]
    fn alignment_checks_and_nested_task_flag_do_not_outlive_a_case() {
        // pushfq; or dword [rsp], 0x44000; popfq; mov eax, [rcx] misaligned
        let code = [0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 4, 0, 0x9d, 0x8b, 0x01];
        let mut worker = Worker::new().expect("a worker process");
        for slot in 0..2 {
            let initial = worker.initial(slot);
            *initial = Initial::default();
            initial.gpr[1] = DATA + 1;
            if slot == 0 {
                initial.code[..code.len()].copy_from_slice(&code);
                initial.code_len = code.len() as u64;
            }
        }
        worker.run(2).expect("runs");
        worker.wait().expect("ends");
        assert_eq!(worker.outcome(0).vector, 17);
        assert_eq!((worker.outcome(1).vector, worker.outcome(1).rflags), (3, 0x202));
    }

    #[test]
    fn a_case_that_kills_the_worker_is_told_and_the_next_one_runs() {
        // mov eax, 231 (exit_group); syscall
        let code = [0xb8, 231, 0, 0, 0, 0x0f, 0x05];
        let mut worker = Worker::new().expect("a worker process");
        for slot in 0..2 {
            let initial = worker.initial(slot);
            *initial = Initial::default();
            if slot == 0 {
                initial.code[..code.len()].copy_from_slice(&code);
                initial.code_len = code.len() as u64;
            }
        }
        worker.run(2).expect("runs");
        worker.wait().expect("ends");
        assert_eq!(worker.outcome(0).vector, crate::oracle::case::DIED);
        assert_eq!(worker.outcome(1).vector, 3);
    }

    #[test]
    fn generated_cases_give_the_same_outcome_twice_and_kill_no_worker() {
        let generator = Generator::new(None);
        let mut worker = Worker::new().expect("a worker process");
        let mut vectors = std::collections::BTreeMap::<u32, u32>::new();
        let begin = Instant::now();
        for round in 0..150u64 {
            let cases: Vec<_> = (0..BATCH as u64).map(|i| generator.case(round << 32 | i)).collect();
            let mut first = Vec::new();
            for repeat in 0..2 {
                for (i, case) in cases.iter().enumerate() {
                    worker.initial(i).clone_from(&case.initial);
                }
                worker.run(BATCH).expect("runs");
                worker.wait().expect("ends");
                for (i, case) in cases.iter().enumerate() {
                    let outcome = worker.outcome(i);
                    if repeat == 0 {
                        *vectors.entry(outcome.vector).or_default() += 1;
                        assert!(
                            outcome.vector < 32,
                            "{}\n{}",
                            outcome.vector,
                            crate::oracle::report::describe(case, &[])
                        );
                        first.push(outcome.clone());
                    } else {
                        let differences = crate::oracle::report::compare(case, &first[i], outcome);
                        assert!(
                            differences.is_empty(),
                            "{}",
                            crate::oracle::report::describe(case, &differences)
                        );
                    }
                }
            }
        }
        println!("{vectors:?} in {:?}", begin.elapsed());
        let normal = vectors.get(&3).copied().unwrap_or(0);
        assert!(normal * 2 > vectors.values().sum(), "most cases come to their end: {vectors:?}");
    }
}
