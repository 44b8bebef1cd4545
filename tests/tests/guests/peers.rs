//! Networks other than Ombra's own, with real peers on their other end: a tap device, and passt behind a socket. Each in a network
//! namespace of the test's own, where the user may be root; nothing of the host's network is touched.

use crate::Test;
use crate::process::{Guests, PATIENCE, run_for};
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("a_tap_device_leads_to_the_host", NETWORK, tap),
    ("passt_is_a_network_behind_a_socket", NETWORK, passt),
];

const NETWORK: &[&str] = &["cloud/vmlinuz", "cloud/modules", "busybox"];

/// Lines of the page that is fetched.
const LINES: u32 = 200_000;

fn skips(why: &str) {
    eprintln!("SKIPPED a network with a real peer: {why}");
}

/// Whether a program is there and does what it is asked.
fn works(program: &str, words: &[&str]) -> bool {
    Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
}

/// Runs `before` in a namespace with a web server on `address`, then a guest with `net` that runs `script`; gives its output.
fn meet(guests: &Guests, before: &str, address: &str, net: &str, script: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let outside = format!(
        "set -e; export PATH=$PATH:/usr/sbin:/sbin; cd \"$0\"; busybox=$1; shift; ip link set lo up; {before}
        mkdir www; seq 1 {LINES} > www/page; $busybox httpd -f -p {address}:8000 -h www & server=$!
        code=0; \"$@\" || code=$?; kill $server; exit $code"
    );
    let ombra = guests.ombra();
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", &outside]).arg(folder.path());
    command.arg(std::fs::canonicalize(guests.file("busybox")).expect("it is there"));
    command.arg(ombra.get_program()).args(ombra.get_args());
    for (name, value) in ombra.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.args(["--net", net, "--", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = run_for(&mut command, None, PATIENCE);
    assert_eq!(ended.status, Some(0), "{}{}", ended.text(), ended.stderr);
    ended.text()
}

/// Fetches the page and says whether it is what it should be.
fn fetch(address: &str) -> String {
    format!("wget -q -O /page http://{address}:8000/page; seq 1 {LINES} | cmp - /page && echo fetched")
}

fn tap(guests: &Guests) {
    if !works("unshare", &["-rn", "sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; ip tuntap add mode tap name t0"]) {
        return skips("no tap device can be made in a network namespace here");
    }
    let before = "ip tuntap add mode tap name t0; ip addr add 192.168.77.1/24 dev t0; ip link set t0 up";
    let script = format!(
        "ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up; ping -q -c 2 192.168.77.1 | grep -o ' 0% packet loss'; {}",
        fetch("192.168.77.1")
    );
    let text = meet(guests, before, "192.168.77.1", "tap=t0,mac=52:54:00:00:00:07", &script);
    assert_eq!(text, " 0% packet loss\nfetched\n");
}

fn passt(guests: &Guests) {
    if !works("unshare", &["-rn", "sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; ip tuntap add mode tap name t0"]) {
        return skips("no interface can be made in a network namespace here");
    }
    if !works("passt", &["--version"]) {
        return skips("there is no passt (apt install passt)");
    }
    // passt copies an interface's addresses and routes. It makes its socket, and ends with its only client.
    let before = "ip tuntap add mode tap name t0; ip addr add 10.9.9.1/24 dev t0; ip link set t0 up
        ip route add default via 10.9.9.254 dev t0; passt -q -f -1 -s \"$0/passt\" >/dev/null 2>&1 &
        tries=0; until [ -S \"$0/passt\" ] || [ $tries = 100 ]; do sleep 0.1; tries=$((tries + 1)); done";
    // Its DHCP gives the guest the host's address; the router's leads to the host's loopback.
    let script = format!("ip -4 -o address show eth0 | grep -o '10.9.9.1/24'; {}", fetch("10.9.9.254"));
    // The folder is the working directory there.
    let text = meet(guests, before, "127.0.0.1", "socket=passt", &script);
    assert_eq!(text, "10.9.9.1/24\nfetched\n");
}
