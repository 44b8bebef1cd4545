//! Integers and branches: what compiled and interpreted programs do all day, without the operating system.

use crate::workload::{Group, Needs, Random, Run, Workload, fold, timed};
use std::arch::x86_64::_addcarry_u64;
use std::hint::black_box;
use std::io;

const fn workload(name: &'static str, iterations: u64, run: fn(u64) -> io::Result<Run>) -> Workload {
    Workload { name, group: Group::Integer, needs: Needs::Nothing, iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("hash-bytes", 500, hash_bytes),
    workload("hash-words", 8000, hash_words),
    workload("sort", 80, sort),
    workload("heapsort", 12, heapsort),
    workload("matrix", 25, matrix),
    workload("bignum-multiply", 40_000, bignum_multiply),
    workload("bignum-add", 800_000, bignum_add),
    workload("bytecode", 1_500_000, bytecode),
    workload("branches", 250_000, branches),
    workload("recursion", 1500, recursion),
    workload("calls-indirect", 6_000_000, calls_indirect),
];

/// FNV-1a over 64 KiB: one multiplication after the other.
fn hash_bytes(passes: u64) -> io::Result<Run> {
    let bytes = Random(1).bytes(64 << 10);
    timed(|| {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for _ in 0..passes {
            for &byte in black_box(&bytes) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        hash
    })
}

/// Four lanes of multiply and rotate over 64 KiB.
fn hash_words(passes: u64) -> io::Result<Run> {
    let mut random = Random(2);
    let words: Vec<u64> = (0..8 << 10).map(|_| random.next()).collect();
    timed(|| {
        let mut lanes = [1u64, 2, 3, 4];
        for _ in 0..passes {
            for four in black_box(&words).chunks_exact(4) {
                for (lane, word) in lanes.iter_mut().zip(four) {
                    *lane = lane
                        .wrapping_add(word.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
                        .rotate_left(31)
                        .wrapping_mul(0x9e37_79b1_85eb_ca87);
                }
            }
        }
        lanes.into_iter().fold(0, fold)
    })
}

/// The standard library's unstable sort of 50,000 numbers.
fn sort(times: u64) -> io::Result<Run> {
    let mut random = Random(3);
    let numbers: Vec<u32> = (0..50_000).map(|_| random.next() as u32).collect();
    let mut sorted = numbers.clone();
    timed(|| {
        let mut checksum = 0;
        for round in 0..times {
            sorted.copy_from_slice(black_box(&numbers));
            sorted.sort_unstable();
            checksum = fold(checksum, u64::from(sorted[round as usize % sorted.len()]));
        }
        checksum
    })
}

/// Heap sort of 50,000 numbers: comparisons whose outcome nobody predicts.
fn heapsort(times: u64) -> io::Result<Run> {
    let mut random = Random(4);
    let numbers: Vec<u32> = (0..50_000).map(|_| random.next() as u32).collect();
    let mut heap = numbers.clone();
    timed(|| {
        let mut checksum = 0;
        for round in 0..times {
            heap.copy_from_slice(black_box(&numbers));
            for root in (0..heap.len() / 2).rev() {
                sift_down(&mut heap, root);
            }
            for end in (1..heap.len()).rev() {
                heap.swap(0, end);
                sift_down(&mut heap[..end], 0);
            }
            checksum = fold(checksum, u64::from(heap[round as usize % heap.len()]));
        }
        checksum
    })
}

fn sift_down(heap: &mut [u32], mut root: usize) {
    loop {
        let mut child = 2 * root + 1;
        if child >= heap.len() {
            return;
        }
        if child + 1 < heap.len() && heap[child] < heap[child + 1] {
            child += 1;
        }
        if heap[root] >= heap[child] {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

/// Products of two matrices of 128 by 128 64-bit integers, row by column.
fn matrix(times: u64) -> io::Result<Run> {
    const SIDE: usize = 128;
    let mut random = Random(5);
    let mut filled = || -> Vec<u64> { (0..SIDE * SIDE).map(|_| random.next()).collect() };
    let (left, right) = (filled(), filled());
    let mut product = vec![0u64; SIDE * SIDE];
    timed(|| {
        for _ in 0..times {
            let (left, right) = (black_box(&left), black_box(&right));
            for row in 0..SIDE {
                for column in 0..SIDE {
                    let mut sum = 0u64;
                    for turn in 0..SIDE {
                        sum = sum
                            .wrapping_add(left[row * SIDE + turn].wrapping_mul(right[turn * SIDE + column]));
                    }
                    product[row * SIDE + column] = product[row * SIDE + column].wrapping_add(sum);
                }
            }
        }
        product.iter().fold(0, |checksum, &sum| fold(checksum, sum))
    })
}

/// Products of two numbers of 2048 bits: 64-bit limbs, 128-bit intermediate results.
fn bignum_multiply(times: u64) -> io::Result<Run> {
    const LIMBS: usize = 32;
    let mut random = Random(6);
    let mut number: Vec<u64> = (0..LIMBS).map(|_| random.next()).collect();
    let factor: Vec<u64> = (0..LIMBS).map(|_| random.next()).collect();
    timed(|| {
        let mut product = [0u64; 2 * LIMBS];
        for _ in 0..times {
            product.fill(0);
            for (place, &limb) in number.iter().enumerate() {
                let mut carry = 0u64;
                for (to, &other) in product[place..].iter_mut().zip(black_box(&factor)) {
                    let sum = u128::from(limb) * u128::from(other) + u128::from(*to) + u128::from(carry);
                    *to = sum as u64;
                    carry = (sum >> 64) as u64;
                }
                product[place + LIMBS] = carry;
            }
            number.copy_from_slice(&product[LIMBS / 2..LIMBS / 2 + LIMBS]);
        }
        number.iter().fold(0, |checksum, &limb| fold(checksum, limb))
    })
}

/// Sums of two numbers of 8192 bits: a chain of ADC.
fn bignum_add(times: u64) -> io::Result<Run> {
    const LIMBS: usize = 128;
    let mut random = Random(7);
    let mut number: Vec<u64> = (0..LIMBS).map(|_| random.next()).collect();
    let other: Vec<u64> = (0..LIMBS).map(|_| random.next()).collect();
    timed(|| {
        let mut overflows = 0u64;
        for _ in 0..times {
            let mut carry = 0;
            for (limb, &other) in number.iter_mut().zip(black_box(&other)) {
                carry = _addcarry_u64(carry, *limb, other, limb);
            }
            overflows += u64::from(carry);
        }
        number.iter().fold(overflows, |checksum, &limb| fold(checksum, limb))
    })
}

/// Instructions of a small machine with registers. `Op(a, b)`: what happens to register `a`.
#[derive(Clone, Copy)]
enum Op {
    /// a = constant.
    Load(u8, u32),
    Add(u8, u8),
    Multiply(u8, u8),
    Xor(u8, u8),
    ShiftRight(u8, u8),
    /// a = memory[b].
    Get(u8, u8),
    /// memory[b] = a.
    Put(u8, u8),
    Decrement(u8),
    /// Goes on at the place unless the register is 0.
    JumpUnlessZero(u8, u8),
    Jump(u8),
    Halt,
}

/// An interpreter that counts down from the number of iterations, with about a dozen instructions a turn.
fn bytecode(turns: u64) -> io::Result<Run> {
    const PROGRAM: &[Op] = &[
        Op::Load(1, 0x9e37),
        Op::Load(2, 1),
        Op::Load(3, 7),
        Op::Jump(4),
        Op::Multiply(2, 1),
        Op::Add(2, 3),
        Op::Xor(4, 2),
        Op::ShiftRight(4, 3),
        Op::Get(5, 4),
        Op::Add(5, 2),
        Op::Put(5, 0),
        Op::Xor(2, 5),
        Op::JumpUnlessZero(2, 14),
        Op::Load(2, 3),
        Op::Decrement(0),
        Op::JumpUnlessZero(0, 3),
        Op::Halt,
    ];
    timed(|| {
        let program = black_box(PROGRAM);
        let mut registers = [turns, 0, 0, 0, 0, 0, 0, 0];
        let mut memory = [0u64; 256];
        let mut place = 0;
        loop {
            let register = |number: u8| registers[usize::from(number & 7)];
            let (to, value) = match program[place] {
                Op::Load(a, value) => (a, u64::from(value)),
                Op::Add(a, b) => (a, register(a).wrapping_add(register(b))),
                Op::Multiply(a, b) => (a, register(a).wrapping_mul(register(b))),
                Op::Xor(a, b) => (a, register(a) ^ register(b)),
                Op::ShiftRight(a, b) => (a, register(a) >> (register(b) & 63)),
                Op::Get(a, b) => (a, memory[register(b) as usize & 255]),
                Op::Put(a, b) => {
                    memory[register(b) as usize & 255] = register(a);
                    (a, register(a))
                }
                Op::Decrement(a) => (a, register(a).wrapping_sub(1)),
                Op::JumpUnlessZero(a, to) => {
                    place = if register(a) != 0 { usize::from(to) } else { place + 1 };
                    continue;
                }
                Op::Jump(to) => {
                    place = usize::from(to);
                    continue;
                }
                Op::Halt => break,
            };
            registers[usize::from(to & 7)] = value;
            place += 1;
        }
        memory.iter().chain(&registers).fold(0, |checksum, &word| fold(checksum, word))
    })
}

/// Lengths of Collatz sequences: short loops with a branch that goes either way.
fn branches(numbers: u64) -> io::Result<Run> {
    timed(|| {
        let mut steps = 0u64;
        for start in 1..=numbers {
            let mut number = black_box(start);
            while number != 1 {
                if number % 2 == 0 {
                    number /= 2;
                } else {
                    number = 3 * number + 1;
                    // Keeps the compiler from making it a conditional move.
                    steps = black_box(steps);
                }
                steps += 1;
            }
        }
        steps
    })
}

/// Fibonacci's 20th number by the definition, 21,891 calls each.
fn recursion(times: u64) -> io::Result<Run> {
    #[inline(never)]
    fn fibonacci(number: u64) -> u64 {
        let number = black_box(number);
        if number < 2 { number } else { fibonacci(number - 1) + fibonacci(number - 2) }
    }
    timed(|| (0..times).map(|_| fibonacci(black_box(20))).fold(0, fold))
}

/// Calls through a table of 16 functions in no order.
fn calls_indirect(calls: u64) -> io::Result<Run> {
    type Function = fn(u64) -> u64;
    macro_rules! functions {
        ($($number:literal)*) => {
            [$({
                #[inline(never)]
                fn function(value: u64) -> u64 {
                    value.wrapping_mul(2 * $number + 3).rotate_left($number + 1)
                }
                function as Function
            }),*]
        };
    }
    let functions: [Function; 16] = functions!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    timed(|| {
        let functions = black_box(&functions);
        let mut value = 1u64;
        for _ in 0..calls {
            value = functions[(value >> 60) as usize](value).wrapping_add(0x1234_5678_9abc_def1);
        }
        value
    })
}
