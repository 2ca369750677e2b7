//! What Kong has: its lists, each as a whole.

use serde_json::Value;

use super::admin::{Admin, Trouble, element};
use super::entities::{Kind, id_of};

/// What the Admin API lists.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Where calls go.
    pub services: Vec<Value>,
    /// What they match.
    pub routes: Vec<Value>,
    /// What happens to them.
    pub plugins: Vec<Value>,
    /// Name of an upstream that a service names, and `target` of one of its targets, `host:port`.
    pub targets: Vec<(String, String)>,
}

impl State {
    /// Reads all of it.
    pub fn read(admin: &Admin) -> Result<Self, Trouble> {
        let [services, routes, plugins] = ["/services", "/routes", "/plugins"].map(|list| admin.list(list));
        let (services, routes, plugins) = (services?, routes?, plugins?);
        let mut targets = Vec::new();
        for upstream in admin.list("/upstreams")? {
            let name = upstream["name"].as_str().unwrap_or_default();
            if !services.iter().any(|service| service["host"] == name) {
                continue;
            }
            let path = format!("/upstreams/{}/targets", element(id_of(&upstream).unwrap_or(name)));
            for target in admin.list(&path)? {
                if let Some(address) = target["target"].as_str().filter(|_| target["weight"] != 0) {
                    targets.push((name.to_owned(), address.to_owned()));
                }
            }
        }
        Ok(Self { services, routes, plugins, targets })
    }

    /// The entities of a kind.
    pub fn of(&self, kind: Kind) -> &[Value] {
        match kind {
            Kind::Service => &self.services,
            Kind::Route => &self.routes,
            Kind::Plugin => &self.plugins,
        }
    }

    /// The entity of an id.
    pub fn find(&self, kind: Kind, id: &str) -> Option<&Value> {
        self.of(kind).iter().find(|entity| id_of(entity) == Some(id))
    }
}
