//! What the guest finds at the addresses of its network, made from the profile once a build; and what
//! of it a layer depends on.
//!
//! A layer is right as long as the guest would be served the same again. Files and texts are compared
//! themselves; of a command, a socket or a server of the host's only how the profile names it is
//! known, and what they answer is as unknown as the Internet.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvmbake_provision::http::{Answer, Contents, Server};

use crate::cache::{Cache, Digest};
use crate::error::Error;
use crate::profile::net::{Forward, Net, SERVE, Target};

/// What begins the name of a connection among what a guest fetched.
const TCP: &str = "tcp://";
/// What begins the name of something fetched from another address than `serve`'s.
const HTTP: &str = "http://";

/// The profile's forwards, by their addresses.
pub struct Services {
    by_address: BTreeMap<SocketAddrV4, Service>,
}

/// One of them.
pub enum Service {
    /// One of HTTP.
    Http(Server),
    /// Any other, and what the profile says of it.
    Stream(Digest),
}

impl Services {
    /// Opens the folders that the profile serves.
    ///
    /// # Errors
    /// A folder cannot be served.
    pub fn of(net: &Net) -> Result<Services, Error> {
        let service = |forward: &Forward| Ok((forward.at, Service::of(&forward.target)?));
        let by_address = net.forwards.iter().map(service).collect::<Result<_, Error>>()?;
        Ok(Services { by_address })
    }

    /// Returns the server of HTTP at an address.
    pub fn server(&self, at: SocketAddrV4) -> Option<&Server> {
        match self.by_address.get(&at)? {
            Service::Http(server) => Some(server),
            Service::Stream(_) => None,
        }
    }

    /// Returns what a request is called among what a guest fetched. That of `serve`'s address is its
    /// path alone.
    pub fn name_of_request(at: SocketAddrV4, target: &str) -> String {
        if at == SERVE { target.to_string() } else { format!("{HTTP}{at}{target}") }
    }

    /// Returns what a connection is called there; `None` for one of HTTP, whose requests count.
    pub fn name_of_connection(&self, at: SocketAddrV4) -> Option<String> {
        self.server(at).is_none().then(|| format!("{TCP}{at}"))
    }

    /// Returns the digest of what a guest would be served now; `None` for nothing.
    pub fn served(&self, name: &str, cache: &Cache, cancel: &AtomicBool) -> Option<Digest> {
        if let Some(at) = name.strip_prefix(TCP) {
            return match self.by_address.get(&at.parse().ok()?)? {
                Service::Stream(definition) => Some(*definition),
                // There was another kind of service then.
                Service::Http(_) => Some(Digest::of(b"http")),
            };
        }
        let (at, path) = match name.strip_prefix(HTTP) {
            None => (SERVE, name),
            Some(rest) => {
                let (at, path) = rest.split_at(rest.find('/')?);
                (at.parse().ok()?, path)
            }
        };
        match self.server(at)?.answer_to(path) {
            // A file that cannot be read is served as nothing.
            Answer::File(path) => cache.file_digest(&path, cancel).ok(),
            Answer::Other { status: 404, .. } => None,
            // The text alone, so that a file and a text of the same content are the same.
            Answer::Other { status: 200, text } if self.is_fixed(at) => {
                Some(Digest::of(text.as_bytes()))
            }
            Answer::Other { status, text } => {
                Some(Digest::of(format!("{status} {text}").as_bytes()))
            }
        }
    }

    fn is_fixed(&self, at: SocketAddrV4) -> bool {
        self.server(at).is_some_and(Server::is_fixed)
    }
}

impl Service {
    fn of(target: &Target) -> Result<Service, Error> {
        let stream = |text: String| Ok(Service::Stream(Digest::of(text.as_bytes())));
        match target {
            Target::Folder { path, writable } => {
                let server =
                    Server::new(&path.value).map_err(|error| cannot_serve(&path.value, &error))?;
                Ok(Service::Http(if *writable { server.writable() } else { server }))
            }
            Target::Content(texts) => {
                let content =
                    |(path, text): &(String, String)| (path.clone(), Arc::from(text.as_bytes()));
                let contents: Contents = texts.iter().map(content).collect();
                Ok(Service::Http(Server::fixed(contents)))
            }
            Target::Host(host) => stream(format!("host {host}")),
            Target::Socket(path) => stream(format!("socket {}", path.value.display())),
            Target::Command(arguments) => stream(format!("command {arguments:?}")),
        }
    }
}

fn cannot_serve(folder: &Path, error: &std::io::Error) -> Error {
    Error::input(format!("Cannot serve {}", folder.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Profile, Source};

    fn services(forwards: &str) -> Services {
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"b\"\n{forwards}\n[[output]]\nformat = \"raw\"\n"
        );
        let profile = Profile::parse(Source::new("/profiles/a.toml", text)).unwrap();
        Services::of(&profile.net).unwrap()
    }

    fn at(last: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new([10, 0, 2, last].into(), port)
    }

    #[test]
    fn what_a_guest_got_changes_with_the_text_or_the_service_that_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(folder.path()).unwrap();
        let served = |forwards: &str, name: &str| {
            services(forwards).served(name, &cache, &AtomicBool::new(false))
        };
        let content = |port: u16, text: &str| {
            format!(
                "[[net.forward]]\nat = \"10.0.2.100:{port}\"\ncontent = {{ \"/a\" = \"{text}\" }}"
            )
        };
        let name = Services::name_of_request(at(100, 81), "/a");
        assert!(served(&content(81, "x"), &name).is_some());
        assert_eq!(served(&content(81, "x"), &name), served(&content(81, "x"), &name));
        assert_ne!(served(&content(81, "x"), &name), served(&content(81, "y"), &name));
        assert_eq!(served(&content(82, "x"), &name), None);
        assert_eq!(served(&content(81, "x"), "http://10.0.2.100:81/b"), None);
        assert!(served(&content(80, "x"), &Services::name_of_request(at(100, 80), "/a")).is_some());

        let stream = |target: &str| format!("[[net.forward]]\nat = \"10.0.2.9:5\"\n{target}");
        let command = stream("command = \"cat\"");
        let name = services(&command).name_of_connection(at(9, 5)).unwrap();
        let was = served(&command, &name).unwrap();
        for other in
            ["command = \"tac\"", "socket = \"cat\"", "connect = \"cat:1\"", "content = \"cat\""]
        {
            assert_ne!(served(&stream(other), &name), Some(was), "{other}");
        }
        assert_eq!(served("", &name), None);
        assert_eq!(services(&content(81, "x")).name_of_connection(at(100, 81)), None);
    }

    #[test]
    fn a_text_in_place_of_a_file_of_the_same_content_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(&folder.path().join("cache")).unwrap();
        std::fs::write(folder.path().join("a"), "same").unwrap();
        let cancel = AtomicBool::new(false);
        let file = services(&format!("[net]\nserve = {:?}", folder.path()));
        let text =
            services("[[net.forward]]\nat = \"10.0.2.100:80\"\ncontent = { \"/a\" = \"same\" }");
        let was = file.served("/a", &cache, &cancel);
        assert!(was.is_some());
        assert_eq!(text.served("/a", &cache, &cancel), was);
    }
}
