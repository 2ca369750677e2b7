//! The ways that lead to vLLM: services of Kong that send calls there, whatever they call its address, and their routes.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};

use serde_json::Value;

use super::entities::{id_of, is_own, name_of};
use super::state::State;

/// A route and its service. Either is missing where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way<'e> {
    /// Where calls go.
    pub service: Option<&'e Value>,
    /// What they match.
    pub route: Option<&'e Value>,
}

impl<'e> Way<'e> {
    /// Of its service.
    pub fn service_id(&self) -> Option<&'e str> {
        id_of(self.service?)
    }

    /// Of its route.
    pub fn route_id(&self) -> Option<&'e str> {
        id_of(self.route?)
    }

    /// Whether the installation made both.
    pub fn is_own(&self) -> bool {
        [self.service, self.route].into_iter().flatten().all(is_own)
    }

    /// `route r of service s`.
    pub fn name(&self) -> String {
        match (self.route, self.service) {
            (Some(route), Some(service)) => format!("route {} of service {}", name_of(route), name_of(service)),
            (Some(route), None) => format!("route {}", name_of(route)),
            (None, Some(service)) => format!("service {}", name_of(service)),
            (None, None) => "calls to unknown paths".to_owned(),
        }
    }
}

impl State {
    /// The services that lead to `host:port`: directly, by another name of the same address, or through an upstream. The
    /// installation's own come first.
    pub fn leading_to(&self, host: &str, port: u16) -> Vec<&Value> {
        let wanted = Address::of(host);
        let leads = |service: &&Value| {
            let name = service["host"].as_str().unwrap_or_default();
            let direct = service["port"].as_u64() == Some(u64::from(port)) && wanted.is(name);
            let by_target = |target: &str| {
                let (host, its_port) = target.rsplit_once(':').unwrap_or((target, "8000"));
                its_port.parse() == Ok(port) && wanted.is(host)
            };
            let balanced = || self.targets.iter().any(|(upstream, target)| upstream == name && by_target(target));
            direct || balanced()
        };
        let mut services: Vec<&Value> = self.services.iter().filter(leads).collect();
        services.sort_by_key(|service| (!is_own(service), service["name"] != "vllm"));
        services
    }

    /// A way for each route of these services; for a service without routes one without.
    pub fn ways<'e>(&'e self, services: &[&'e Value]) -> Vec<Way<'e>> {
        let mut ways = Vec::new();
        for service in services {
            let before = ways.len();
            let of_service = self.routes.iter().filter(|route| route["service"]["id"] == service["id"]);
            ways.extend(of_service.map(|route| Way { service: Some(service), route: Some(route) }));
            if ways.len() == before {
                ways.push(Way { service: Some(service), route: None });
            }
        }
        ways
    }

    /// Everything that a call can match: each route, and none at all.
    pub fn everything(&self) -> Vec<Way<'_>> {
        let service = |route: &Value| self.services.iter().find(|service| service["id"] == route["service"]["id"]);
        let routes = self.routes.iter().map(|route| Way { service: service(route), route: Some(route) });
        std::iter::once(Way::default()).chain(routes).collect()
    }
}

/// Where a server is, by name and by what the name stands for.
struct Address {
    name: String,
    addresses: Vec<IpAddr>,
    is_here: bool,
}

impl Address {
    fn of(host: &str) -> Self {
        let name = plain(host);
        let addresses = resolve(&name);
        let is_here = addresses.iter().any(is_here);
        Self { name, addresses, is_here }
    }

    /// Whether `host` is the same server: the same name, one address in common, or both on this host.
    fn is(&self, host: &str) -> bool {
        let host = plain(host);
        if host == self.name {
            return true;
        }
        let addresses = resolve(&host);
        addresses.iter().any(|address| self.addresses.contains(address) || (self.is_here && is_here(address)))
    }
}

/// Without brackets, a dot at the end and capitals.
fn plain(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

fn resolve(host: &str) -> Vec<IpAddr> {
    match host.parse::<IpAddr>() {
        Ok(address) => vec![address.to_canonical()],
        // As the system resolves names, which takes its time-out at most; only names with vLLM's port are asked for.
        Err(_) => (host, 0).to_socket_addrs().map(|found| found.map(|at| at.ip().to_canonical()).collect()).unwrap_or_default(),
    }
}

/// Whether an address is one of this host: then a socket can be bound to it. 0.0.0.0 as a destination is this host as well.
fn is_here(address: &IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || UdpSocket::bind((*address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kong::entities::own_id;
    use serde_json::json;

    fn service(name: &str, host: &str, port: u16) -> Value {
        json!({ "id": name, "name": name, "host": host, "port": port, "enabled": true })
    }

    fn leading_to<'e>(entities: &'e State, host: &str, port: u16) -> Vec<&'e str> {
        entities.leading_to(host, port).into_iter().map(name_of).collect()
    }

    #[test]
    fn a_service_leads_to_vllm_by_whatever_name_it_calls_its_address() {
        let hosts = ["127.0.0.1", "localhost", "LOCALHOST.", "127.0.0.2", "0.0.0.0", "[::1]", "::ffff:127.0.0.1"];
        let mut entities = State { services: hosts.iter().map(|host| service(host, host, 8000)).collect(), ..State::default() };
        entities.services.push(service("elsewhere", "192.0.2.1", 8000));
        entities.services.push(service("another port", "127.0.0.1", 8001));
        assert_eq!(leading_to(&entities, "127.0.0.1", 8000), hosts);
        assert_eq!(leading_to(&entities, "192.0.2.1", 8000), ["elsewhere"]);
    }

    #[test]
    fn a_service_leads_to_vllm_through_an_upstream() {
        let target = |upstream: &str, target: &str| (upstream.to_owned(), target.to_owned());
        let entities = State {
            services: vec![service("balanced", "models", 80), service("other", "pages", 80)],
            targets: vec![
                target("models", "192.0.2.1:8000"),
                target("models", "127.0.0.1:8000"),
                target("pages", "127.0.0.1:80"),
            ],
            ..State::default()
        };
        assert_eq!(leading_to(&entities, "localhost", 8000), ["balanced"]);
    }

    #[test]
    fn the_installations_own_service_comes_first() {
        let own = json!({ "id": own_id(1), "name": "vllm", "host": "127.0.0.1", "port": 8000 });
        let entities = State { services: vec![service("old", "localhost", 8000), own], ..State::default() };
        assert_eq!(leading_to(&entities, "127.0.0.1", 8000), ["vllm", "old"]);
    }
}
