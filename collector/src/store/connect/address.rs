//! URLs of databases.
//!
//! Passwords are generated, pasted, and full of signs that mean something in a URL. Whatever stands before the last `@` is user and
//! password, so `@`, `/`, `:`, `?` and `#` need no encoding there; `%` and two hexadecimal digits is an encoded character, as
//! everywhere, and any other `%` is itself. Invariant: no error names anything but a parameter behind that `@`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;

/// Why a URL is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither a URL nor `keyword=value`.
    #[error("the database URL is not valid: it must look like postgres://user:password@host:port/database")]
    Form,
    /// No host.
    #[error("the database URL names no host: it must look like postgres://user:password@host:port/database")]
    NoHost,
    /// What should be host and port is not.
    #[error(
        "the database URL is not valid: behind the last @ must stand host:port/database, with special characters percent-encoded"
    )]
    Location,
    /// A parameter that is none.
    #[error("the database URL is not valid: there is no parameter \"{0}\"")]
    Parameter(String),
    /// A value that a parameter cannot have.
    #[error("the database URL is not valid: {0}")]
    Value(String),
    /// As many ports or addresses as hosts, or one port for all.
    #[error(
        "the database URL is not valid: hostaddr has to name as many addresses as host has names, and port one port or as many"
    )]
    Lists,
    /// Another word than libpq's.
    #[error("sslmode must be disable, allow, prefer, require, verify-ca or verify-full")]
    SslMode,
}

/// Parameters by name.
pub(super) type Settings = BTreeMap<String, String>;

/// Parameters that mean something here; of the second kind what they say makes no difference to this program.
const KNOWN: [&str; 21] = [
    "user",
    "password",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "options",
    "application_name",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslnegotiation",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];
const IGNORED: [&str; 6] =
    ["client_encoding", "fallback_application_name", "gssencmode", "keepalives_count", "sslcompression", "sslsni"];

fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || IGNORED.contains(&name)
}

/// Reads a URL, or libpq's `keyword=value` text.
pub(super) fn parse(text: &str) -> Result<Settings, AddressError> {
    match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        Some(rest) => url(rest),
        None => pairs(text),
    }
}

/// The connection that parameters describe.
fn config(settings: &Settings) -> Result<Config, AddressError> {
    let mut text = String::new();
    for (name, value) in settings.iter().filter(|(name, _)| !IGNORED.contains(&name.as_str())) {
        let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
        text.push_str(&format!("{name}='{escaped}' "));
    }
    let config: Config = text.parse().map_err(|error: tokio_postgres::Error| {
        // The cause names the parameter and not what it was set to.
        AddressError::Value(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(AddressError::NoHost);
    }
    Ok(config)
}

/// One connection for each host that the parameters name, in their order.
///
/// Where there are several, only one of them takes writes, and it may be another one tomorrow: if nothing else is said it is that one.
pub(super) fn hosts(settings: &Settings) -> Result<Vec<Config>, AddressError> {
    let list =
        |name: &str| -> Vec<&str> { settings.get(name).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default() };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len());
    let fits = |list: &[&str]| list.is_empty() || list.len() == count;
    if !fits(&names) || !fits(&addresses) || !(fits(&ports) || ports.len() == 1) {
        return Err(AddressError::Lists);
    }
    let wanted = match settings.get("target_session_attrs").map(String::as_str) {
        Some("primary") => Some("read-write"),
        Some("standby") => Some("read-only"),
        Some("prefer-standby") => Some("any"),
        Some(_) => None,
        None => (count > 1).then_some("read-write"),
    };
    let one = |at: usize| {
        let mut own = settings.clone();
        for (name, list) in [("host", &names), ("hostaddr", &addresses), ("port", &ports)] {
            if let Some(value) = list.get(at).or(list.first()) {
                own.insert(name.to_owned(), (*value).to_owned());
            }
        }
        if let Some(wanted) = wanted {
            own.insert("target_session_attrs".to_owned(), wanted.to_owned());
        }
        config(&own)
    };
    (0..count.max(1)).map(one).collect()
}

fn url(rest: &str) -> Result<Settings, AddressError> {
    let (head, query) = split_query(rest)?;
    let (credentials, location) = head.rsplit_once('@').map_or((None, head), |(before, behind)| (Some(before), behind));
    let mut settings = Settings::new();
    if let Some(credentials) = credentials {
        let (user, password) = credentials.split_once(':').map_or((credentials, None), |(user, secret)| (user, Some(secret)));
        if !user.is_empty() {
            settings.insert("user".to_owned(), decoded(user)?);
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            settings.insert("password".to_owned(), decoded(password)?);
        }
    }
    let (hosts, database) = location.split_once('/').unwrap_or((location, ""));
    if !database.is_empty() {
        settings.insert("dbname".to_owned(), decoded(database)?);
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|host| !host.is_empty()) {
        let (name, port) = host_and_port(host)?;
        names.push(name);
        ports.push(port);
    }
    if !names.is_empty() {
        settings.insert("host".to_owned(), names.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            settings.insert("port".to_owned(), ports.join(","));
        }
    }
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        settings.insert(name.to_owned(), decoded(value)?);
    }
    Ok(settings)
}

/// What stands before the parameters, and the parameters. A question mark begins them only where nothing but parameters follows, because
/// passwords have question marks, too.
fn split_query(rest: &str) -> Result<(&str, &str), AddressError> {
    let is_parameter = |text: &str| text.split_once('=').is_some_and(|(name, _)| is_known(name));
    let all_known = |query: &str| query.split('&').filter(|text| !text.is_empty()).all(is_parameter);
    let marks =
        rest.match_indices('?').map(|(at, _)| rest.split_at(at)).map(|(head, query)| (head, query.get(1..).unwrap_or_default()));
    if let Some(split) = marks.into_iter().find(|(_, query)| all_known(query)) {
        return Ok(split);
    }
    let behind = rest.rsplit_once('@').map_or("", |(_, behind)| behind);
    match behind.split_once('?') {
        None => Ok((rest, "")),
        Some((_, query)) => {
            let unknown = query.split('&').find(|text| !text.is_empty() && !is_parameter(text)).unwrap_or_default();
            let name = unknown.split('=').next().unwrap_or_default();
            Err(AddressError::Parameter(name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect()))
        }
    }
}

fn host_and_port(text: &str) -> Result<(String, &str), AddressError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or(AddressError::Location)?;
            (host, behind.strip_prefix(':').or(behind.is_empty().then_some("")).ok_or(AddressError::Location)?)
        }
        None => text.rsplit_once(':').unwrap_or((text, "")),
    };
    let host = decoded(host)?;
    let is_name = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
    if (host.starts_with('/') || is_name(&host)) && !host.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) {
        Ok((host, port))
    } else {
        Err(AddressError::Location)
    }
}

fn decoded(text: &str) -> Result<String, AddressError> {
    percent_decode_str(text).decode_utf8().map(Cow::into_owned).map_err(|_| AddressError::Form)
}

/// `keyword=value`, separated by blanks; values may be quoted.
fn pairs(text: &str) -> Result<Settings, AddressError> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, behind) = rest.split_once('=').ok_or(AddressError::Form)?;
        let name = name.trim();
        if !is_known(name) {
            // Anything may stand here, a password with blanks among it.
            return Err(AddressError::Form);
        }
        let mut signs = behind.trim_start().chars();
        let is_quoted = signs.as_str().starts_with('\'');
        if is_quoted {
            signs.next();
        }
        let mut value = String::new();
        loop {
            match signs.next() {
                Some('\\') => value.extend(signs.next()),
                Some('\'') if is_quoted => break,
                None if is_quoted => return Err(AddressError::Form),
                None => break,
                Some(sign) if sign.is_whitespace() && !is_quoted => break,
                Some(sign) => value.push(sign),
            }
        }
        settings.insert(name.to_owned(), value);
        rest = signs.as_str().trim_start();
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio_postgres::config::{Host, TargetSessionAttrs};

    fn read(text: &str) -> Result<Vec<Config>, AddressError> {
        let mut settings = parse(text)?;
        for name in ["sslmode", "sslrootcert"] {
            settings.remove(name);
        }
        hosts(&settings)
    }

    fn read_one(text: &str) -> Config {
        let mut all = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn any_password_may_stand_in_a_url_as_it_is() {
        for (written, meant) in [
            ("secret", "secret"),
            ("p@ss", "p@ss"),
            ("a/b", "a/b"),
            ("12/x@y", "12/x@y"),
            ("a:b:c", "a:b:c"),
            ("what?", "what?"),
            ("a?x=1&y=2", "a?x=1&y=2"),
            ("a#b[c]", "a#b[c]"),
            ("50%", "50%"),
            ("100%zz", "100%zz"),
            ("p%40ss%2Fx", "p@ss/x"),
            ("it's\\\"so\"", "it's\\\"so\""),
            ("密码 @ 1", "密码 @ 1"),
        ] {
            for end in ["", "?sslmode=require", "?application_name=a%20b&connect_timeout=3"] {
                let config = read_one(&format!("postgres://me:{written}@db.example:5433/llm{end}"));
                assert_eq!(config.get_password(), Some(meant.as_bytes()), "{written}{end}");
                assert_eq!((config.get_user(), config.get_dbname(), config.get_ports()), (Some("me"), Some("llm"), &[5433][..]));
                assert_eq!(config.get_hosts(), [Host::Tcp("db.example".to_owned())]);
            }
        }
    }

    #[test]
    fn hosts_are_names_addresses_and_folders() {
        for (text, hosts, ports) in [
            ("postgres://h", vec!["h"], vec![]),
            ("postgresql://u@[::1]:5/d", vec!["::1"], vec![5]),
            ("postgres://u:p@a:1,b:2/d", vec!["a", "b"], vec![1, 2]),
            ("postgres://u:p@a,b,c:7/d?port=5", vec!["a", "b", "c"], vec![5, 5, 5]),
            ("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=6", vec!["a", "b"], vec![6, 6]),
            ("postgres://u:p@%2Frun%2Fpg/d", vec!["/run/pg"], vec![]),
            ("postgres:///d?host=/run/pg", vec!["/run/pg"], vec![]),
            ("host=h port=7 user=u password='a b\\'c' dbname=d sslmode=require", vec!["h"], vec![7]),
            ("host = h", vec!["h"], vec![]),
        ] {
            let configs = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let seen: Vec<String> = configs
                .iter()
                .flat_map(Config::get_hosts)
                .map(|host| match host {
                    Host::Tcp(name) => name.clone(),
                    Host::Unix(path) => path.display().to_string(),
                })
                .collect();
            let seen_ports: Vec<u16> = configs.iter().flat_map(Config::get_ports).copied().collect();
            assert_eq!((seen, seen_ports), (hosts.into_iter().map(str::to_owned).collect(), ports), "{text}");
        }
        assert_eq!(read_one("host=h password='a b\\'c'").get_password(), Some(&b"a b'c"[..]));
    }

    #[test]
    fn of_several_hosts_the_one_that_takes_writes_is_wanted() {
        use TargetSessionAttrs::{Any, ReadOnly, ReadWrite};
        for (text, wanted) in [
            ("host=a", Any),
            ("host=a target_session_attrs=primary", ReadWrite),
            ("host=a,b", ReadWrite),
            ("host=a,b target_session_attrs=any", Any),
            ("host=a,b target_session_attrs=standby", ReadOnly),
            ("host=a,b target_session_attrs=prefer-standby", Any),
            ("postgres://u@a,b/d?target_session_attrs=read-write", ReadWrite),
        ] {
            let all = read(text).unwrap();
            assert!(all.iter().all(|config| config.get_target_session_attrs() == wanted), "{text}");
        }
        for text in ["host=a,b,c port=1,2", "host=a,b hostaddr=10.0.0.1", "host=a port=1,2"] {
            assert_eq!(read(text).unwrap_err(), AddressError::Lists, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_says_so_and_repeats_no_secret() {
        for text in [
            "not a url",
            "postgres://me:se/cret",
            "postgres://me:secret@",
            "postgres://me:secret@ho st/d",
            "postgres://me:secret@h:port/d",
            "postgres://me:secret@h:99999/d",
            "postgres://me:secret@h/d?secret=1",
            "postgres://me:secret@h/d?sslmode=require&secret",
            "host=h password=my secret",
            "host=h password='secret",
            "user=me password=secret",
        ] {
            let error = read(text).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, AddressError::Parameter(_)) || !said.contains("secret"), "{text}: {said}");
        }
        assert_eq!(read("postgres://me:x@h/d?sslmod=require").unwrap_err(), AddressError::Parameter("sslmod".to_owned()));
    }
}
