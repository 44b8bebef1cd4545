//! Network cards, as the host says.

use crate::BUSYBOX;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// What busybox's DHCP client calls when something has changed.
const DHCP_SCRIPT: &str = "#!/bin/sh
case $1 in
deconfig) ip link set $interface up ;;
bound | renew)
    ip addr flush dev $interface
    ip addr add $ip/${mask:-24} dev $interface
    for it in $router; do ip route replace default via $it dev $interface; done
    for it in $dns; do echo nameserver $it; done >/etc/resolv.conf
    ;;
esac
";

/// Sets the network cards up as `/ombra/network` says. What fails shows on the console.
pub(crate) fn set_up() {
    let Ok(text) = fs::read_to_string("/ombra/network") else { return };
    let busybox = |words: &[&str]| match Command::new(BUSYBOX).args(words).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            eprintln!("ombra init: `{}`: {why}", words.join(" "));
        }
        Err(error) => eprintln!("ombra init: `{}`: {error}", words.join(" ")),
    };
    busybox(&["ip", "link", "set", "lo", "up"]);
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [card, "dhcp"] => {
                const SCRIPT: &str = "/ombra/dhcp";
                let _ = fs::write(SCRIPT, DHCP_SCRIPT);
                let _ = fs::set_permissions(SCRIPT, Permissions::from_mode(0o755));
                busybox(&["udhcpc", "-q", "-n", "-f", "-t", "5", "-T", "1", "-i", card, "-s", SCRIPT]);
            }
            [card, address, router, resolver] => {
                busybox(&["ip", "link", "set", card, "up"]);
                busybox(&["ip", "addr", "add", address, "dev", card]);
                busybox(&["ip", "route", "add", "default", "via", router]);
                let _ = fs::write("/etc/resolv.conf", format!("nameserver {resolver}\n"));
            }
            _ => eprintln!("ombra init: no way to set a network up: {line}"),
        }
    }
}
