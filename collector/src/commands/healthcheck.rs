//! `healthcheck`: asks a running collector whether it lives, or looks for the file of a running `upkeep`. For containers without a
//! shell or curl.
//!
//! Deliberately no HTTP client: one request over a plain connection, and nothing of the answer but its first line.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::config::HealthcheckSettings;

/// Longest wait for each of connection, request and answer. `/healthz` does no work: a second is long already, and a
/// container's health check gives up on us after a few.
const PATIENCE: Duration = Duration::from_secs(2);

/// Fails with a reason unless `GET /healthz` is answered with 200; with a file, unless that is there.
pub fn run(settings: &HealthcheckSettings) -> Result<()> {
    if let Some(file) = &settings.ready_file {
        return std::fs::metadata(file).map(drop).with_context(|| format!("upkeep is not at work: no {}", file.display()));
    }
    let address = reachable(settings.listen);
    let status = ask(address).with_context(|| format!("no collector answers at {address}"))?;
    if !(status.starts_with("HTTP/1.1 200") || status.starts_with("HTTP/1.0 200")) {
        bail!("{address} answers \"{}\" to GET /healthz", status.trim_end());
    }
    Ok(())
}

/// The address to connect to: a collector that listens everywhere is asked on the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Sends the request and returns the first line of what comes back.
fn ask(address: SocketAddr) -> Result<String> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    // A status line is shorter; whoever sends a longer one is no collector.
    let mut answer = Vec::new();
    connection.take(256).read_to_end(&mut answer)?;
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A server that answers one request with `answer`.
    fn server(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = connection.read(&mut request).unwrap();
            connection.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (address, served)
    }

    fn check(listen: SocketAddr) -> Result<()> {
        run(&HealthcheckSettings { listen, ready_file: None })
    }

    #[test]
    fn a_collector_that_lives_is_healthy() {
        let (address, served) = server("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}");
        check(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())).unwrap();
        assert!(served.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"));
    }

    #[test]
    fn another_status_and_another_protocol_are_not() {
        let (address, _) = server("HTTP/1.1 404 Not Found\r\n\r\n");
        assert!(check(address).unwrap_err().to_string().contains("404 Not Found"));
        let (address, _) = server("SSH-2.0-OpenSSH_9.2\r\n");
        assert!(check(address).unwrap_err().to_string().contains("SSH-2.0"));
    }

    #[test]
    fn a_port_without_a_listener_is_named() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = check(free).unwrap_err();
        assert!(error.to_string().contains(&free.to_string()), "{error:#}");
    }

    #[test]
    fn an_unspecified_address_is_asked_on_loopback() {
        assert_eq!(reachable("[::]:5000".parse().unwrap()), "[::1]:5000".parse().unwrap());
        assert_eq!(reachable("192.0.2.7:5000".parse().unwrap()), "192.0.2.7:5000".parse().unwrap());
    }
}
