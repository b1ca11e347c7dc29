//! The guest's network over all boots of one build: its services, its rules, and what is told of it.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvmbake_net::{
    Activity, Capture, Captured, CommandService, DropReason, Flow, Forward, Inbound, Link, Nat,
    NatConfig, NatHandle, Outcome, Resolvers, Rules, Service, Shaped, Target, Watch, Watcher,
};
use kvmbake_provision::http::{Served, Server};

use super::fetched::Fetched;
use super::flow_log::{self, FlowLog, Request};
use super::recent::Recent;
use super::services::Services;
use crate::error::Error;
use crate::profile::units::Size;
use crate::profile::{Profile, net as settings};
use crate::report::{Event, Report, Stage};

/// The log's name in the build's folder.
const LOG: &str = "net.jsonl";

/// The network of one build.
pub struct Network {
    config: NatConfig,
    rate: Option<u64>,
    /// Frames that the guest sent faster than its rate.
    too_fast: Arc<AtomicU64>,
    capture: Option<Arc<Capture>>,
    log: Arc<FlowLog>,
    fetched: Arc<Fetched>,
    recent: Arc<Recent>,
    /// One for each boot.
    handles: Mutex<Vec<NatHandle>>,
    /// Whether to tell at the end what went on.
    counts: bool,
    finished: AtomicBool,
    report: Arc<dyn Report>,
}

impl Network {
    /// Opens what the profile's network needs of the host. `folder` is the build's. An `offline`
    /// network leads nowhere but to the forwards; `counts` are told at the end.
    ///
    /// # Errors
    /// Something cannot be opened.
    pub fn open(
        profile: &Profile,
        folder: &Path,
        offline: bool,
        counts: bool,
        report: Arc<dyn Report>,
    ) -> Result<Network, Error> {
        let net = &profile.net;
        let services = Arc::new(Services::of(net)?);
        let path = net.log.as_ref().map_or_else(|| folder.join(LOG), |path| path.value.clone());
        let log = FlowLog::create(&path, Arc::clone(&report)).map_err(|error| {
            Error::input(format!("Cannot create {}", path.display())).because(&error)
        })?;
        let capture = match &net.pcap {
            None => None,
            Some(path) => {
                let path = &path.value;
                let capture = Capture::create(path).map_err(|error| {
                    Error::input(format!("Cannot create {}", path.display())).because(&error)
                })?;
                Some(Arc::new(capture))
            }
        };
        let fetched = Arc::new(Fetched::default());
        let recent = Arc::new(Recent::default());
        let watcher = FlowWatcher {
            log: Arc::clone(&log),
            services: Arc::clone(&services),
            fetched: Arc::clone(&fetched),
            addresses: net.lan.config(),
            recent: Arc::clone(&recent),
        };
        let mut config = NatConfig {
            host_loopback: net.host_loopback && !offline,
            rules: match offline {
                true => Rules { restrict: true, ..Rules::default() },
                false => net.rules.clone(),
            },
            watch: Watch(Some(Arc::new(watcher))),
            ..net.lan.config()
        };
        if let Some(dns) = net.dns {
            config.resolvers = Resolvers::Fixed(vec![SocketAddr::from((dns, 53))]);
        }
        for forward in &net.forwards {
            let target =
                target(profile.folder(), forward, &services, (&log, &fetched, &recent), &report)?;
            let (address, port) = (*forward.at.ip(), forward.at.port());
            config.forwards.push(Forward { address, port, target });
        }
        for inbound in &net.inbound {
            let settings::Inbound { protocol, host, guest, .. } = inbound;
            let failed = |error: &io::Error| {
                Error::input(format!("Cannot listen at {host} for the guest")).because(error)
            };
            let port = Inbound::bind(*protocol, *host, *guest).map_err(|error| failed(&error))?;
            let host = port.host().map_err(|error| failed(&error))?;
            let text = format!("{} {host} leads to the guest's port {guest}", protocol.as_str());
            report.event(Event::Note { stage: Stage::Net, text: &text });
            config.inbound.push(port);
        }
        let handles = Mutex::default();
        let (rate, finished) = (net.rate, AtomicBool::new(false));
        Ok(Network {
            config,
            rate,
            too_fast: Arc::default(),
            capture,
            log,
            fetched,
            recent,
            handles,
            counts,
            finished,
            report,
        })
    }

    /// Makes the network of one boot, and a handle to it.
    ///
    /// # Errors
    /// What the host refused.
    pub fn link(&self) -> Result<(Box<dyn Link>, NatHandle), Error> {
        let (nat, handle) = Nat::new(self.config.clone())
            .map_err(|error| Error::input("Cannot set up the guest's network").because(&error))?;
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle.clone());
        let too_fast = Arc::clone(&self.too_fast);
        let link: Box<dyn Link> = match (self.rate, &self.capture) {
            (None, None) => Box::new(nat),
            (Some(rate), None) => Box::new(Shaped::new(nat, rate).counting(too_fast)),
            (None, Some(capture)) => Box::new(Captured::new(nat, Arc::clone(capture))),
            (Some(rate), Some(capture)) => {
                let capture = Arc::clone(capture);
                Box::new(Shaped::new(Captured::new(nat, capture), rate).counting(too_fast))
            }
        };
        Ok((link, handle))
    }

    /// Returns what the guest has fetched since the last layer.
    pub fn fetched(&self) -> &Fetched {
        &self.fetched
    }

    /// Returns the last requests that the guest was answered or denied.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Writes out what is told of the network, once no guest runs any more.
    pub fn finish(&self) {
        if self.finished.swap(true, Ordering::AcqRel) {
            return;
        }
        self.log.finish();
        let note = |text: &str| self.report.event(Event::Note { stage: Stage::Net, text });
        if let Some(capture) = &self.capture {
            match capture.finish() {
                Ok(false) => {}
                Ok(true) => note("the capture reached its limit, and lacks what came after"),
                Err(error) => note(&format!("the capture is not whole: {error}")),
            }
        }
        if self.counts {
            let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            let boots: Vec<Activity> = handles.iter().map(NatHandle::activity).collect();
            counted(&boots).iter().for_each(|line| note(line));
            match self.too_fast.load(Ordering::Relaxed) {
                0 => {}
                count => note(&format!("dropped {count}: sent faster than `rate`")),
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Says what went on in the networks of all boots.
fn counted(boots: &[Activity]) -> Vec<String> {
    let sum = |count: &dyn Fn(&Activity) -> u64| boots.iter().map(count).sum::<u64>();
    let mut lines = vec![
        format!(
            "from the guest {} frames, {}; to it {} frames, {}",
            sum(&|a| a.frames_from_guest),
            Size(sum(&|a| a.bytes_from_guest)),
            sum(&|a| a.frames_to_guest),
            Size(sum(&|a| a.bytes_to_guest)),
        ),
        format!(
            "{} TCP connections, {} DNS queries",
            sum(&|a| a.tcp_flows_total),
            sum(&|a| a.dns_queries),
        ),
    ];
    for reason in DropReason::ALL {
        let count = sum(&|activity| activity.dropped(reason));
        if count > 0 {
            lines.push(format!("dropped {count}: {reason}"));
        }
    }
    lines
}

/// Makes the target of a forward.
fn target(
    folder: &Path,
    forward: &settings::Forward,
    services: &Services,
    (log, fetched, recent): (&Arc<FlowLog>, &Arc<Fetched>, &Arc<Recent>),
    report: &Arc<dyn Report>,
) -> Result<Target, Error> {
    if let Some(server) = services.server(forward.at) {
        let (log, fetched, report) = (Arc::clone(log), Arc::clone(fetched), Arc::clone(report));
        let at = forward.at;
        let recent = Arc::clone(recent);
        let watched = move |served: &Served| {
            recent.add(told(at, served));
            tell(at, served, &log, &fetched, report.as_ref());
        };
        let server = server.clone().with_watcher(watched);
        return Ok(Target::Service(Arc::new(Http(server))));
    }
    match &forward.target {
        settings::Target::Host(host) => {
            let addresses = host.to_socket_addrs().map_err(|error| {
                Error::input(format!("Cannot forward {} to {host}", forward.at)).because(&error)
            })?;
            Ok(Target::Host(addresses.collect()))
        }
        settings::Target::Socket(path) => Ok(Target::Socket(path.value.clone())),
        settings::Target::Command(arguments) => {
            let (at, report) = (forward.at, Arc::clone(report));
            let listener = move |line: &str| {
                let text = format!("{at}: {line}");
                report.event(Event::Note { stage: Stage::Net, text: &text });
            };
            let service = CommandService::new(arguments.clone(), folder.to_path_buf(), listener);
            Ok(Target::Service(Arc::new(service)))
        }
        // Those of HTTP have a server.
        settings::Target::Folder { .. } | settings::Target::Content(_) => {
            Err(Error::new(crate::error::Blame::Internal, "A server of HTTP is missing"))
        }
    }
}

/// A request that was answered, in a line.
fn told(at: SocketAddrV4, served: &Served) -> String {
    let shown = Services::name_of_request(at, &served.path);
    format!("{} {shown} {}", served.method, served.status)
}

/// Tells of a request that was answered.
fn tell(at: SocketAddrV4, served: &Served, log: &FlowLog, fetched: &Fetched, report: &dyn Report) {
    let method = &served.method;
    // A form changes what is served and depends on none of it.
    if method == "GET" || method == "HEAD" {
        fetched.add(&Services::name_of_request(at, &served.target));
    }
    let text = format!("{}, {}", told(at, served), Size(served.bytes));
    report.event(Event::Note { stage: Stage::Http, text: &text });
    log.request(&Request { at, served });
}

/// A server of HTTP as a service of the network.
struct Http(Server);

impl Service for Http {
    fn connect(&self) -> io::Result<UnixStream> {
        self.0.connect()
    }
}

/// Hears of flows on the network's own thread.
struct FlowWatcher {
    log: Arc<FlowLog>,
    services: Arc<Services>,
    fetched: Arc<Fetched>,
    /// The guest's network.
    addresses: NatConfig,
    recent: Arc<Recent>,
}

impl Watcher for FlowWatcher {
    fn flow(&self, flow: &Flow) {
        // Nothing is there now, which a forward would change.
        if let (SocketAddr::V4(at), Outcome::Denied(_)) = (flow.peer, &flow.outcome)
            && self.addresses.contains(*at.ip())
        {
            self.opened(flow.peer);
        }
        if let Outcome::Denied(why) = &flow.outcome {
            self.recent.add(flow_log::denied(flow, why));
        }
        self.log.flow(flow);
    }

    fn opened(&self, peer: SocketAddr) {
        if let SocketAddr::V4(at) = peer
            && let Some(name) = self.services.name_of_connection(at)
        {
            self.fetched.add(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Source;
    use crate::report::Notes;

    /// A network of a profile's `[net]`, what is told of it, and its folder.
    fn network(net: &str, offline: bool) -> (Network, Arc<Notes>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"b\"\n[[output]]\nformat = \"raw\"\n[net]\n{net}"
        );
        let profile = Profile::parse(Source::new(folder.path().join("a.toml"), text)).unwrap();
        let report = Arc::new(Notes::default());
        let told = Arc::clone(&report) as Arc<dyn Report>;
        let network = Network::open(&profile, folder.path(), offline, true, told).unwrap();
        (network, report, folder)
    }

    #[test]
    fn an_offline_network_leads_to_its_forwards_alone_whatever_the_profile_says() {
        let net = "host_loopback = true\nallow = \"192.0.2.0/24\"\n\
                   [[net.forward]]\nat = \"10.0.2.9:80\"\ncontent = \"x\"\n";
        let (online, ..) = network(net, false);
        assert!(online.config.host_loopback && !online.config.rules.restrict);
        assert_eq!(online.config.rules.allow.len(), 1);
        let (offline, ..) = network(net, true);
        assert!(!offline.config.host_loopback);
        let restricted = Rules { restrict: true, ..Rules::default() };
        assert_eq!(offline.config.rules, restricted);
        assert_eq!(offline.config.forwards.len(), 1);
        offline.config.validate().unwrap();
    }

    #[test]
    fn a_port_of_the_host_s_choice_is_told_and_stays_over_boots() {
        let net = "[[net.inbound]]\nhost = \"127.0.0.1:0\"\nguest = 22\n";
        let (network, report, _folder) = network(net, false);
        let told = report.take().remove(0);
        let host = told.strip_prefix("tcp ").unwrap().split(' ').next().unwrap();
        for _ in 0..2 {
            let (link, _) = network.link().unwrap();
            std::net::TcpStream::connect(host).unwrap();
            drop(link);
        }
    }

    #[test]
    fn the_log_the_capture_and_the_counts_are_there_at_the_end() {
        let net = "pcap = \"a.pcap\"\nrate = \"1M\"\n";
        let (network, report, folder) = network(net, false);
        let (mut link, _) = network.link().unwrap();
        link.poll(std::time::Instant::now());
        assert!(link.push(&[0; 20], Default::default()).is_err());
        // One passes, three may wait, and six are too many.
        for _ in 0..10 {
            let _ = link.push(&[0; 60_000], Default::default());
        }
        drop(link);
        network.finish();
        assert_eq!(std::fs::read(folder.path().join(LOG)).unwrap(), b"");
        let told = report.take();
        let captured = std::fs::metadata(folder.path().join("a.pcap")).unwrap().len();
        assert!(captured >= 24 + 16 + 20, "{captured}");
        assert!(told[0].starts_with("from the guest "), "{told:?}");
        let count = |line: &str| told.iter().filter(|told| *told == line).count();
        assert_eq!(count("dropped 2: bad source MAC address"), 1, "{told:?}");
        assert_eq!(count("dropped 6: sent faster than `rate`"), 1, "{told:?}");
    }
}
