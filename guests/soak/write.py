# write.py SEED TEXT PROGRAM: writes a text of random words, and a C program of random functions that prints what they compute.
import random
import sys

seed, text, program = int(sys.argv[1]), sys.argv[2], sys.argv[3]
rng = random.Random(seed)

letters = "abcdefghijklmnopqrstuvwxyz"
words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(2000)]
weights = [1 / (k + 1) for k in range(len(words))]
with open(text, "w") as out:
    for _ in range(3000):
        out.write(" ".join(rng.choices(words, weights, k=rng.randint(3, 15))) + "\n")


def expression(depth):
    """An expression of unsigned a, b and c that C defines for all values."""
    if depth == 0:
        return rng.choice(["a", "b", "c", f"{rng.getrandbits(32)}u"])
    left, right = expression(depth - 1), expression(depth - 1)
    operator = rng.choice("+-*&|^/%<>?r")
    if operator in "/%":
        return f"({left} {operator} ({right} | 1u))"
    if operator in "<>":
        return f"({left} {operator * 2} ({right} & 31u))"
    if operator == "?":
        return f"({left} < {right} ? {expression(depth - 1)} : {right})"
    if operator == "r":
        return f"rotate({left}, {right})"
    return f"({left} {operator} {right})"


FUNCTIONS = 40
with open(program, "w") as out:
    out.write("#include <stdio.h>\n")
    out.write("static unsigned rotate(unsigned x, unsigned n) { n &= 31; return x << n | x >> (-n & 31); }\n")
    for number in range(FUNCTIONS):
        out.write(f"static unsigned f{number}(unsigned a, unsigned b, unsigned c)\n{{\n")
        out.write(f"    for (unsigned k = 0; k < {rng.randint(2, 20)}; k++) {{\n")
        for name in "abc":
            out.write(f"        {name} = {expression(4)};\n")
        out.write("        a += k;\n    }\n    return a ^ b ^ c;\n}\n")
    names = ", ".join(f"f{number}" for number in range(FUNCTIONS))
    out.write(f"""
static unsigned (*const functions[])(unsigned, unsigned, unsigned) = {{ {names} }};
int main(void)
{{
    unsigned a = 1, b = 2, c = 3;
    for (unsigned round = 0; round < 200; round++)
        for (unsigned k = 0; k < {FUNCTIONS}; k++) {{
            unsigned x = functions[(k * 7 + round) % {FUNCTIONS}](a, b, c);
            a = b + k, b = c, c = x;
            if (round % 50 == 0)
                printf("%u %u %08x\\n", round, k, x);
        }}
    double sum = 0;
    for (unsigned k = 1; k < 20000; k++)
        sum += 1.0 / k / (1 + (c >> k % 31 & 1));
    printf("%.12f\\n", sum);
    return 0;
}}
""")
