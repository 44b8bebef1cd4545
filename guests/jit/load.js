// A load for Node: functions hot enough for each of V8's compilers, types that change under compiled code, garbage,
// exceptions, regular expressions (which are compiled, too), WebAssembly. Prints `NAME RESULT` for each part; the results are
// known from elsewhere. tests/tests/guests/jits.rs has them.
'use strict';

function primes(limit) {
  const composite = new Uint8Array(limit + 1);
  let count = 0;
  for (let number = 2; number <= limit; number++) {
    if (composite[number]) continue;
    count++;
    for (let multiple = number * number; multiple <= limit; multiple += number) composite[multiple] = 1;
  }
  return count;
}

function queens(size) {
  const full = (1 << size) - 1;
  const place = (columns, left, right) => {
    if (columns === full) return 1;
    let count = 0;
    for (let free = ~(columns | left | right) & full; free !== 0; ) {
      const spot = free & -free;
      free ^= spot;
      count += place(columns | spot, (left | spot) << 1, (right | spot) >> 1);
    }
    return count;
  };
  return place(0, 0, 0);
}

function fibonacci(number) {
  return number < 2 ? number : fibonacci(number - 1) + fibonacci(number - 2);
}

function collatz(limit) {
  let best = 0, start = 0;
  for (let first = 1; first <= limit; first++) {
    let number = first, steps = 0;
    while (number !== 1) {
      number = number % 2 === 0 ? number / 2 : 3 * number + 1;
      steps++;
    }
    if (steps > best) [best, start] = [steps, first];
  }
  return start;
}

// Compiled for small integers, then given doubles, then strings.
function add(a, b) { return a + b; }
function changing() {
  let integer = 0, double = 0, text = '';
  for (let k = 0; k < 20000; k++) integer = add(integer, 2);
  for (let k = 0; k < 20000; k++) double = add(double, 0.5);
  for (let k = 0; k < 20000; k++) text = add(text, 'x');
  return integer + double + text.length;
}

function power() {
  // The last digits of 2^1279 - 1, a Mersenne prime.
  return String(2n ** 1279n - 1n).slice(-10);
}

function caught() {
  let count = 0;
  for (let k = 0; k < 2000; k++) {
    try { if (k % 2) throw new RangeError(String(k)); } catch (error) { count += Number(error.message) % 2; }
  }
  return count;
}

function matched() {
  return 'a1b22c333'.repeat(500).match(/[a-c]\d+/g).length;
}

// (func (export "f") (param i32) (result i32) local.get 0 i32.const 7 i32.mul)
function webassembly() {
  const bytes = [0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0,
    10, 9, 1, 7, 0, 32, 0, 65, 7, 108, 11];
  const { f } = new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(bytes))).exports;
  let sum = 0;
  for (let k = 0; k < 10000; k++) sum += f(k) % 7 + 1;
  return sum;
}

console.log('primes', primes(100000));
console.log('queens', queens(8));
console.log('fibonacci', fibonacci(22));
console.log('collatz', collatz(10000));
console.log('changing', changing());
console.log('power', power());
console.log('caught', caught());
console.log('matched', matched());
console.log('webassembly', webassembly());
