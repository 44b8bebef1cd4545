//! Programs of Debian in a root file system that has them: each is started, does its work, and ends.
//!
//! The time is from before the fork to the end of the wait. Each gets its number of iterations as an argument and the same
//! input everywhere; what it writes is the checksum. `openssl speed` counts what it gets done in a second instead.

use crate::workload::{Group, Needs, Random, Run, Workload, fold, try_timed};
use std::fs;
use std::io::{self, Error};
use std::process::{Command, Stdio};
use std::time::Duration;

const fn workload(
    name: &'static str,
    program: &'static str,
    iterations: u64,
    run: fn(u64) -> io::Result<Run>,
) -> Workload {
    Workload { name, group: Group::Programs, needs: Needs::File(program), iterations, run }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("python3", "/usr/bin/python3", 200_000, |n| script(&["python3", "-B", "-c", PYTHON], n)),
    workload("perl", "/usr/bin/perl", 100_000, |n| script(&["perl", "-e", PERL], n)),
    workload("lua", "/usr/bin/lua5.4", 400_000, lua),
    workload("gcc", "/usr/bin/gcc", 30, gcc),
    workload("shell", "/usr/bin/dash", 25, |n| script(&["dash", "-c", SHELL, "dash"], n)),
    workload("gzip", "/usr/bin/gzip", 2000, gzip),
    workload("openssl-sha256", "/usr/bin/openssl", 1000, |n| openssl(&["-bytes", "16384", "sha256"], n)),
    workload("openssl-aes-gcm", "/usr/bin/openssl", 1000, |n| {
        openssl(&["-bytes", "16384", "-evp", "aes-128-gcm"], n)
    }),
    workload("openssl-rsa", "/usr/bin/openssl", 100, |n| openssl(&["rsa2048"], n)),
];

const PYTHON: &str = "
import sys
class Account:
    def __init__(self, name):
        self.name, self.sum = name, 0
    def add(self, amount):
        self.sum = (self.sum * 31 + amount) % 1000000007
accounts, text = {}, []
for i in range(int(sys.argv[1])):
    name = 'account%d' % (i * 7919 % 1009)
    if name not in accounts:
        accounts[name] = Account(name)
    accounts[name].add(i)
    if i % 16 == 0:
        text.append(name[::-1].upper())
print(sum(account.sum for account in accounts.values()), len(' '.join(sorted(text)).split('T')))
";

const PERL: &str = "
my (%count, $text);
for my $i (1 .. $ARGV[0]) {
    my $word = sprintf('w%x', ($i * 7919) % 10007);
    $count{$word} += $i;
    $text .= \"$word \" if $i % 4 == 0;
}
my $found = () = $text =~ /w(\\d)[a-f]\\d+ /g;
$text =~ s/([a-f]+)/<$1>/g;
my $sum = 0;
$sum = ($sum * 31 + length($_) * $count{$_}) % 1000003 for sort keys %count;
print \"$found $sum \", length $text, \"\\n\";
";

const LUA: &str = "
local t, sum = {}, 0
for i = 1, tonumber(arg[1]) do
    local key = (i * 7919) % 4093
    t[key] = (t[key] or 0) + i
    if i % 8 == 0 then t['s' .. key] = string.format('%d:%d', key, t[key]) end
    sum = (sum * 31 + t[key]) % 1000000007
end
local keys = {}
for key in pairs(t) do keys[#keys + 1] = tostring(key) end
table.sort(keys)
print(sum, #table.concat(keys, ','))
";

const SHELL: &str = "i=0; while [ $i -lt $1 ]; do /usr/bin/true; i=$((i + 1)); done; echo $i";

/// A program with nothing of our environment.
fn command(words: &[&str]) -> Command {
    let mut command = Command::new(format!("/usr/bin/{}", words[0]));
    command.args(&words[1..]).env_clear().env("PATH", "/usr/bin").env("LC_ALL", "C").current_dir("/tmp");
    command.stdin(Stdio::null());
    command
}

/// What a program writes; its failure is an error with what it says.
fn output(mut command: Command) -> io::Result<Vec<u8>> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::other(format!("{}: {}", output.status, said.lines().next().unwrap_or_default())))
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |sum, &byte| fold(sum, u64::from(byte)))
}

/// A command whose last argument is the number of iterations.
fn script(words: &[&str], iterations: u64) -> io::Result<Run> {
    try_timed(|| {
        let mut command = command(words);
        command.arg(iterations.to_string());
        Ok(checksum(&output(command)?))
    })
}

/// Lua takes a script's arguments only with a file.
fn lua(iterations: u64) -> io::Result<Run> {
    fs::write("/tmp/bench.lua", LUA)?;
    script(&["lua5.4", "bench.lua"], iterations)
}

/// A file of so many small functions, compiled with `-O1` and assembled.
fn gcc(functions: u64) -> io::Result<Run> {
    let source: String = (0..functions)
        .map(|number| {
            format!(
                "struct s{number} {{ int a, b[{}]; struct s{number} *next; }};\n\
                 int f{number}(struct s{number} *s, const char *t) {{\n\
                 \tint sum = {number};\n\
                 \tfor (; s; s = s->next)\n\
                 \t\tfor (int i = 0; i < {}; i++) {{\n\
                 \t\t\tif (s->b[i] > s->a) sum += s->b[i] * t[i]; else sum ^= s->a << (i & 7);\n\
                 \t\t\tswitch (t[i] & 7) {{ case 1: sum++; break; case 5: sum *= 3; break; case 6: return sum; }}\n\
                 \t\t}}\n\
                 \treturn sum / {};\n}}\n",
                number % 7 + 2,
                number % 7 + 2,
                number % 5 + 3
            )
        })
        .collect();
    fs::write("/tmp/bench.c", source)?;
    try_timed(|| {
        output(command(&["gcc", "-O1", "-c", "bench.c", "-o", "bench.o"]))?;
        Ok(checksum(&fs::read("/tmp/bench.o")?))
    })
}

/// So many KiB of words, compressed.
fn gzip(kib: u64) -> io::Result<Run> {
    let mut random = Random(13);
    let words: Vec<String> =
        (0..500).map(|_| format!("{:x} ", random.next() >> (random.next() % 48))).collect();
    let mut text = Vec::new();
    while text.len() < kib as usize * 1024 {
        // Small numbers are more frequent.
        let (one, other) = (random.next() % 500, random.next() % 500);
        text.extend_from_slice(words[(one * other / 500) as usize].as_bytes());
    }
    fs::write("/tmp/bench.txt", text)?;
    try_timed(|| Ok(checksum(&output(command(&["gzip", "-n", "-c", "bench.txt"]))?)))
}

/// `openssl speed` for a second: the time of `iterations` operations (of 16 KiB where bytes are processed).
fn openssl(words: &[&str], iterations: u64) -> io::Result<Run> {
    let text = output(command(&[&["openssl", "speed", "-mr", "-elapsed", "-seconds", "1"], words].concat()))?;
    let text = String::from_utf8_lossy(&text);
    let seconds = seconds_of_one(&text).ok_or_else(|| Error::other("openssl's answer isn't understood"))?;
    Ok(Run { time: Duration::from_secs_f64(seconds * iterations as f64), checksum: 0 })
}

/// `+F:NUMBER:NAME:BYTES A SECOND`, or `+F2:NUMBER:BITS:SIGNATURES A SECOND:VERIFICATIONS A SECOND`.
fn seconds_of_one(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("+F"))?;
    let fields: Vec<&str> = line.split(':').collect();
    let value = fields.get(3)?.trim().parse::<f64>().ok().filter(|value| *value > 0.0)?;
    Some(if fields[0] == "+F2" { 1.0 / value } else { 16384.0 / value })
}
