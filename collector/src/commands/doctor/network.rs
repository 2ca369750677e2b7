//! Which of the installation's ports are open to other hosts.
//!
//! Read from the kernel's table of listening sockets, because trying to connect from this host says nothing about others.

use std::collections::BTreeSet;

use super::Report;
use crate::config::DoctorSettings;

pub(super) fn examine(settings: &DoctorSettings, report: &mut Report) {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    if tables.iter().all(String::is_empty) {
        report.warning("network", "cannot see which ports are open", "open ports would go unnoticed", "ss -ltn on the host");
        return;
    }
    let open: BTreeSet<u16> = tables.iter().flat_map(|table| open_ports(table)).collect();
    let database_port =
        settings.database.target().ok().and_then(|target| target.config().get_ports().first().copied()).unwrap_or(5432);
    let parts = [
        ("Kong's Admin API", port_of(settings.admin.url()), "whoever reaches it makes keys, routes and plugins"),
        ("Kong's status address", port_of(&settings.kong_status_url), "its metrics tell who calls what, and it has no password"),
        ("PostgreSQL", Some(database_port), "every conversation is behind one password"),
        ("Prometheus", port_of(&settings.prometheus_url), "it has no password"),
        ("vLLM", port_of(&settings.vllm_url), "calls to it pass by keys, limits and the audit log"),
        ("the collector", port_of(&settings.collector_url), "whoever knows the token writes into the audit log"),
    ];
    let mut all_closed = true;
    for (name, port, why) in parts {
        let Some(port) = port.filter(|port| open.contains(port)) else { continue };
        all_closed = false;
        report.problem(
            "network",
            format!("{name} listens beyond this host, on port {port}"),
            why,
            format!("let it listen on 127.0.0.1 (gateway.env; for vLLM: --host 127.0.0.1), or close port {port} in the firewall"),
        );
    }
    if all_closed {
        report.good("network", "Admin API, PostgreSQL, Prometheus, vLLM and the collector are not open to other hosts");
    }
}

fn port_of(url: &str) -> Option<u16> {
    host_and_port(url).map(|(_, port)| port)
}

/// Host and port of a URL. Brackets of an IPv6 address stay, as in Kong's services.
pub(super) fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, if scheme == "https" { 443 } else { 80 }),
    };
    (!host.is_empty()).then_some((host, port))
}

/// Ports that listen on anything but the loopback addresses, from a table of `/proc/net`.
fn open_ports(table: &str) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let is_listening = fields.nth(1)? == LISTEN;
        // Addresses are words in the host's byte order: 127.0.0.1 is 0100007F on a little-endian machine.
        let is_loopback = address.ends_with("7F") && (address.len() == 8 || address.contains("FFFF0000"))
            || address == "00000000000000000000000001000000";
        (is_listening && !is_loopback).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_listen_beyond_loopback_are_open() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
            0: 0100007F:1F41 00000000:0000 0A 0\n   1: 00000000:1FAF 00000000:0000 0A 0\n\
            2: 0500000A:0050 00000000:0000 0A 0\n   3: 00000000:2382 0100007F:0001 01 0\n";
        assert_eq!(open_ports(table), [8111, 80]);
        let table6 = "header\n 0: 00000000000000000000000000000000:0BB8 0:0 0A\n 1: 00000000000000000000000001000000:1388 0:0 0A\n\
             2: 0000000000000000FFFF00000100007F:1389 0:0 0A\n";
        assert_eq!(open_ports(table6), [3000]);
    }

    #[test]
    fn host_and_port_of_a_url_are_found() {
        assert_eq!(host_and_port("http://127.0.0.1:8001/x"), Some(("127.0.0.1", 8001)));
        assert_eq!(host_and_port("http://[::1]:8001"), Some(("[::1]", 8001)));
        assert_eq!(host_and_port("http://[::1]/"), Some(("[::1]", 80)));
        assert_eq!(host_and_port("https://vllm"), Some(("vllm", 443)));
        assert_eq!(host_and_port("127.0.0.1:8000"), None);
        assert_eq!(host_and_port("http://:8000"), None);
    }
}
