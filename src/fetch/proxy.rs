//! Which proxy the environment names for a URL, as curl reads it: `http_proxy`, `https_proxy` and
//! `all_proxy`, in lower or upper case, except for the hosts that `no_proxy` lists.

use std::net::IpAddr;

use super::error::FetchError;
use super::url::Url;

/// Returns the proxy for `url`; `None` to connect directly.
///
/// # Errors
/// The variable names no proxy that can be used.
pub fn for_url(url: &Url) -> Result<Option<ureq::Proxy>, FetchError> {
    chosen(url, &|name| std::env::var(name).ok())
}

fn chosen(
    url: &Url,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<ureq::Proxy>, FetchError> {
    let set = |name: &str| {
        [name.to_string(), name.to_uppercase()]
            .into_iter()
            .find_map(|name| variable(&name).filter(|text| !text.is_empty()).map(|t| (name, t)))
    };
    if set("no_proxy").is_some_and(|(_, list)| is_listed(url.host(), &list)) {
        return Ok(None);
    }
    let own = if url.is_https() { "https_proxy" } else { "http_proxy" };
    let Some((name, text)) = set(own).or_else(|| set("all_proxy")) else { return Ok(None) };
    match ureq::Proxy::new(&text) {
        Ok(proxy) => Ok(Some(proxy)),
        Err(_) => Err(FetchError::Proxy { variable: name }),
    }
}

/// Whether `host` is on a list of names, each of which stands for itself and all below it, of
/// addresses, and of `*` for all.
fn is_listed(host: &str, list: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.parse::<IpAddr>().is_ok();
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        let below = || !is_address && host.ends_with(&format!(".{entry}"));
        entry == "*" || host == entry || below()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(url: &str, variables: &[(&str, &str)]) -> Option<String> {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| text.to_string())
        };
        chosen(&url.parse().unwrap(), &find).unwrap().map(|proxy| proxy.host().to_string())
    }

    #[test]
    fn each_scheme_has_its_proxy_and_all_is_the_last_resort() {
        let both = [("http_proxy", "http://plain:1"), ("HTTPS_PROXY", "http://tls:2")];
        assert_eq!(host("http://x/", &both).as_deref(), Some("plain"));
        assert_eq!(host("https://x/", &both).as_deref(), Some("tls"));
        assert_eq!(host("https://x/", &both[..1]), None);
        let all = [("all_proxy", "other:3")];
        assert_eq!(host("https://x/", &all).as_deref(), Some("other"));
        assert_eq!(host("http://x/", &[("http_proxy", "")]), None);
    }

    #[test]
    fn no_proxy_names_hosts_and_all_below_them() {
        for (url, list, direct) in [
            ("http://example.org/", "example.org", true),
            ("http://a.example.org/", ".example.org", true),
            ("http://a.example.org/", "other, *.example.org", true),
            ("http://badexample.org/", "example.org", false),
            ("http://10.0.0.1/", "0.0.1", false),
            ("http://127.0.0.1:80/", "127.0.0.1", true),
            ("http://x/", "*", true),
            ("http://x/", "", false),
        ] {
            let found = host(url, &[("http_proxy", "http://p"), ("no_proxy", list)]);
            assert_eq!(found.is_none(), direct, "{url} {list}");
        }
    }

    #[test]
    fn a_proxy_that_is_none_is_refused_by_its_variable() {
        let find = |name: &str| (name == "http_proxy").then(|| "nonsense://x".to_string());
        let error = chosen(&"http://x/".parse().unwrap(), &find).unwrap_err();
        assert!(error.to_string().contains("http_proxy"), "{error}");
    }
}
