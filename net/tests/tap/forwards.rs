//! Forwards of every kind and the rules beside them, as curl in the guest sees them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use kvmbake_net::{
    CommandService, Flow, Forward, NatConfig, Outcome, Resolvers, Rules, Target, Watch, Watcher,
};

use crate::world::{WORLD, World};

const CURL: [&str; 4] = ["--silent", "--show-error", "--max-time", "20"];

fn forward(last: u8, port: u16, target: Target) -> Forward {
    Forward { address: Ipv4Addr::new(10, 0, 2, last), port, target }
}

/// Answers one HTTP request with a page.
fn page(mut stream: impl Read + Write, body: &str) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request);
    let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
}

fn get(world: &World, url: &str) -> String {
    world.guest.run("curl", &[&CURL[..], &[url]].concat())
}

/// Expects a connection to be refused, which curl ends with 7 for.
fn refused(world: &World, url: &str) {
    let output = world.guest.output("curl", &[&CURL[..], &[url]].concat());
    assert_eq!(output.status.code(), Some(7), "{url} is not refused: {output:?}");
}

/// A shell's HTTP server: the request line comes back as the content.
const SHELL: &str = "read line; printf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s' \"$line\"";

#[test]
fn host_addresses_unix_sockets_and_commands_answer_forwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|s| page(s, "a socket")));
    let command = vec!["sh".into(), "-c".into(), SHELL.into()];
    let command = CommandService::new(command, folder.path().into(), |_| ());
    let loopback = SocketAddr::from(([127, 0, 0, 1], 8080));
    let nobody = SocketAddr::from(([127, 0, 0, 1], 8081));
    let world = World::new(NatConfig {
        forwards: vec![
            forward(100, 80, Target::Socket(path)),
            // The second address is turned to where the first refuses.
            forward(101, 443, Target::Host(vec![nobody, loopback])),
            forward(101, 80, Target::Host(vec![nobody])),
            forward(102, 80, Target::Service(Arc::new(command))),
            forward(103, 80, Target::Socket("/nonexistent".into())),
        ],
        rules: Rules { restrict: true, ..Rules::default() },
        ..NatConfig::default()
    });
    world.serve_at(loopback, |stream| page(stream, "the host"));
    assert_eq!(get(&world, "http://10.0.2.100/"), "a socket");
    assert_eq!(get(&world, "http://10.0.2.101:443/"), "the host");
    for name in ["one", "two"] {
        let answer = get(&world, &format!("http://10.0.2.102/{name}"));
        assert!(answer.starts_with(&format!("GET /{name} HTTP")), "{answer}");
    }
    refused(&world, "http://10.0.2.101/");
    refused(&world, "http://10.0.2.103/");
    refused(&world, "http://10.0.2.2:8080/");
    world.wait_for("closed flows to be removed", |activity| activity.tcp_flows == 0);
}

#[derive(Default)]
struct Kept(Mutex<Vec<Flow>>);

impl Watcher for Kept {
    fn flow(&self, flow: &Flow) {
        self.0.lock().unwrap().push(flow.clone());
    }
}

#[test]
fn rules_by_address_port_and_name_decide_what_curl_reaches() {
    let stub = SocketAddr::from(([127, 0, 0, 1], 53));
    let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let kept = Arc::new(Kept::default());
    let world = World::new(NatConfig {
        resolvers: Resolvers::Fixed(vec![stub]),
        rules: Rules {
            restrict: true,
            allow: parsed(&["192.0.2.1:81", "deb.test:80", "127.0.0.1:82"]),
            deny: parsed(&["bad.test"]),
        },
        watch: Watch(Some(Arc::clone(&kept) as _)),
        ..NatConfig::default()
    });
    crate::names::resolve_as(&world, |_| WORLD.octets());
    for port in [80, 81, 82, 83] {
        world.serve_at((WORLD, port).into(), move |stream| page(stream, &format!("{port}")));
    }
    world.serve_at(SocketAddr::from(([127, 0, 0, 1], 82)), |stream| page(stream, "loopback"));
    assert_eq!(get(&world, "http://192.0.2.1:81/"), "81");
    assert_eq!(get(&world, "http://10.0.2.2:82/"), "loopback");
    refused(&world, "http://192.0.2.1/");
    refused(&world, "http://192.0.2.1:82/");
    // Looked up, the name opens its address.
    let dig = ["@10.0.2.3", "+short", "+tries=1", "+time=15"];
    let ask = |name: &str| world.guest.run("dig", &[&dig[..], &[name]].concat());
    assert_eq!(ask("deb.test"), "192.0.2.1\n");
    assert_eq!(get(&world, "http://192.0.2.1/"), "80");
    refused(&world, "http://192.0.2.1:83/");
    let text = world.guest.run("dig", &["@10.0.2.3", "+tries=1", "+time=15", "bad.test"]);
    assert!(text.contains("status: REFUSED"), "{text}");
    world.wait_for("flows to be told", |activity| activity.tcp_flows == 0);
    let kept = kept.0.lock().unwrap();
    let denied = |flow: &&Flow| matches!(flow.outcome, Outcome::Denied(_));
    let peers: Vec<String> = kept.iter().filter(denied).map(|f| f.peer.to_string()).collect();
    assert_eq!(peers, ["192.0.2.1:80", "192.0.2.1:82", "192.0.2.1:83", "10.0.2.3:53"]);
    let named = kept.iter().find(|flow| flow.to_guest > 0 && flow.peer.port() == 80).unwrap();
    assert_eq!((named.name.as_deref(), &named.outcome), (Some("deb.test"), &Outcome::Closed));
}

#[test]
fn a_name_that_is_rebound_to_the_host_is_refused() {
    let stub = SocketAddr::from(([127, 0, 0, 1], 53));
    let world = World::new(NatConfig {
        resolvers: Resolvers::Fixed(vec![stub]),
        host_loopback: true,
        ..NatConfig::default()
    });
    crate::names::resolve_as(&world, |_| [10, 0, 2, 2]);
    let dig = ["@10.0.2.3", "+tries=1", "+time=15", "rebind.test"];
    let text = world.guest.run("dig", &dig);
    assert!(text.contains("status: REFUSED"), "{text}");
}

#[test]
fn ports_of_the_host_lead_to_servers_of_the_guest() {
    use kvmbake_net::{Inbound, Protocol};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    let bind =
        |protocol, guest| Inbound::bind(protocol, ([127, 0, 0, 1], 0).into(), guest).unwrap();
    let ports = vec![bind(Protocol::Tcp, 8080), bind(Protocol::Udp, 6969)];
    let [tcp, udp] = [ports[0].host().unwrap(), ports[1].host().unwrap()];
    let world = World::new(NatConfig { inbound: ports, ..NatConfig::default() });
    let listener = world.guest.within(|| TcpListener::bind("10.0.2.15:8080")).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|s| page(s, "the guest")));
    let socket = world.guest.within(|| UdpSocket::bind("10.0.2.15:6969")).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 100];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(&buf[..len], from);
        }
    });
    world.guest.run("ping", &["-c", "1", "-W", "5", "10.0.2.2"]);
    let mut stream = TcpStream::connect(tcp).unwrap();
    write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("the guest"), "{answer}");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
    client.send_to(b"echo", udp).unwrap();
    let mut buf = [0; 100];
    let len = client.recv(&mut buf).unwrap();
    assert_eq!(&buf[..len], b"echo");
}
