//! Addresses: where the coordinator is to listen, and this node's own name.

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs as _};

use super::Finding;

pub(super) fn examine(listen: SocketAddr) -> Vec<Finding> {
    let mut findings = vec![bind(listen)];
    if listen.ip().is_loopback() {
        findings.push(Finding::ok("exposure", "loopback only: other machines cannot connect"));
    } else {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        let found = (host, 0).to_socket_addrs().map(|all| all.map(|a| a.ip()).collect());
        findings.push(own_name(host, found.unwrap_or_default()));
    }
    findings
}

fn bind(listen: SocketAddr) -> Finding {
    match TcpListener::bind(listen) {
        Ok(_) => Finding::ok("listen", format!("{listen} is free")),
        Err(error) => Finding::fail(
            "listen",
            format!("{listen}: {error}"),
            "give an address of this machine whose port is free (--listen; port 0 takes any)",
        ),
    }
}

fn own_name(host: &str, addresses: Vec<IpAddr>) -> Finding {
    let outside: Vec<String> =
        addresses.iter().filter(|ip| !ip.is_loopback()).map(ToString::to_string).collect();
    if outside.is_empty() {
        return Finding::warn(
            "own name",
            format!("{host:?} means no address but loopback"),
            "give this node's name its address in DNS or /etc/hosts, or start agents with \
             addresses instead of names",
        );
    }
    Finding::ok("own name", format!("{host} is {}", outside.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let finding = bind(address);
        assert_eq!(finding.health, Health::Fail);
        assert!(finding.found.starts_with(&address.to_string()), "{finding:?}");
        drop(taken);
        assert_eq!(bind(address).health, Health::Ok);
    }

    #[test]
    fn a_name_that_means_loopback_alone_is_told() {
        let local = own_name("node-1", vec![IpAddr::from([127, 0, 1, 1])]);
        assert_eq!(local.found, "\"node-1\" means no address but loopback");
        let both = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 1, 2, 3])];
        assert_eq!(own_name("node-1", both), Finding::ok("own name", "node-1 is 10.1.2.3"));
    }
}
