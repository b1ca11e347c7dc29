//! One rig instance: a warm L1 with its folder, its scratch disk and its sessions.
//!
//! Only as many instances run at once as `KVMBAKE_RIG_SLOTS` says (1 otherwise): each keeps two processors busy. The
//! others wait. The folder of an instance goes with it, and that of a killed one with the next start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::artifacts::Artifacts;
use crate::cache::{self, Cache};
use crate::error::{RigError, at};
use crate::machine::{self, Machine, Start};
use crate::session::{RemoteCommand, Sessions, User};

/// A running L1.
#[derive(Debug)]
pub struct Rig {
    sessions: Sessions,
    _machine: Machine,
    instance: Instance,
}

/// The folder of an instance, and the locks that say that it lives.
#[derive(Debug)]
struct Instance {
    folder: PathBuf,
    _locks: [File; 2],
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Rig {
    /// Starts an L1: builds what is missing in the cache, then resumes the snapshot of a booted L1.
    pub fn start() -> Result<Self, RigError> {
        let cache = Cache::open()?;
        let artifacts = Artifacts::build(&cache)?;
        let instance = Instance::new(&cache)?;
        let start = Instant::now();
        let rig = match snapshot(&cache, &artifacts).and_then(|file| {
            Self::boot(&artifacts, &instance, Start::Snapshot(&file), Duration::from_secs(30))
        }) {
            Ok((machine, sessions)) => Self { sessions, _machine: machine, instance },
            Err(error) => {
                eprintln!("rig: the snapshot of L1 does not resume, booting it instead: {error}");
                cache.forget("snapshot", None)?;
                let (machine, sessions) =
                    Self::boot(&artifacts, &instance, Start::Cold, Duration::from_secs(60))?;
                Self { sessions, _machine: machine, instance }
            }
        };
        rig.settle()?;
        eprintln!("rig: L1 is up after {:.1} s", start.elapsed().as_secs_f32());
        Ok(rig)
    }

    /// Returns the process's one shared rig, started on first use.
    ///
    /// # Panics
    /// When it cannot be started: a test has nothing else to do then.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Rig> = OnceLock::new();
        SHARED.get_or_init(|| match Self::start() {
            Ok(rig) => rig,
            Err(error) => panic!("The rig does not start: {}", crate::chain(&error)),
        })
    }

    fn boot(
        artifacts: &Artifacts,
        instance: &Instance,
        start: Start<'_>,
        limit: Duration,
    ) -> Result<(Machine, Sessions), RigError> {
        let mut machine = Machine::start(artifacts, &instance.folder, start)?;
        if matches!(start, Start::Cold) {
            machine.wait_ready(Duration::from_secs(180))?;
        }
        let sessions = Sessions::new(&instance.folder, &artifacts.l1.path, machine.port);
        if let Err(error) = sessions.connect(User::Root, limit) {
            machine.check_alive()?;
            return Err(machine.failure(&crate::chain(&error)));
        }
        Ok((machine, sessions))
    }

    /// Does what must not be in a snapshot: the clock, fresh entropy, the disks, the shared folder.
    fn settle(&self) -> Result<(), RigError> {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut seed = [0u8; 64];
        let random = Path::new("/dev/urandom");
        std::io::Read::read_exact(&mut File::open(random).map_err(at(random))?, &mut seed)
            .map_err(at(random))?;
        let script = format!(
            "date -s @{}.{:03} >/dev/null; cat > /dev/urandom; \
             perl -e 'open my $f, \">\", \"/dev/urandom\"; ioctl($f, 0x5207, 0)'; \
             mount -o ro /dev/vdb /images && mount /dev/vdc /work && chmod 1777 /work && \
             mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 share /share && chmod 755 /share",
            now.as_secs(),
            now.subsec_millis()
        );
        self.judge(&script, seed.to_vec())
    }

    /// Runs a command of the rig's own as root; it must succeed.
    fn judge(&self, line: &str, stdin: Vec<u8>) -> Result<(), RigError> {
        let output = self.command(line).root().stdin(stdin).run()?;
        if output.status == 0 {
            return Ok(());
        }
        Err(RigError::Guest { command: line.into(), stderr: output.stderr })
    }

    /// Prepares a line for the shell of L1's unprivileged user.
    pub fn command(&self, line: impl Into<String>) -> RemoteCommand<'_> {
        RemoteCommand::new(&self.sessions, line.into())
    }

    /// Returns the path in L1 of a base image: `light.qcow2`, `debian-12.qcow2` or `light-generic.qcow2`; with
    /// `.vmlinuz` or `.initrd` instead, the kernel and initrd inside it.
    pub fn base(&self, file: &str) -> String {
        format!("/images/{file}")
    }

    /// Makes a new folder on the scratch disk for a test, owned by `builder`, and returns its path.
    pub fn folder(&self, name: &str) -> Result<String, RigError> {
        let path = format!("/work/{name}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        self.judge(
            &format!("install -d -o builder -g builder {}", crate::session::quote(&path)),
            vec![],
        )?;
        Ok(path)
    }

    /// Copies a file of the host into L1, with its permissions; it belongs to `builder` there.
    pub fn put(&self, local: impl AsRef<Path>, remote: &str) -> Result<(), RigError> {
        let local = local.as_ref();
        let name = format!("put-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let shared = self.instance.folder.join("share").join(&name);
        fs::copy(local, &shared).map_err(at(local))?;
        let remote = crate::session::quote(remote);
        let result = self.judge(
            &format!(
                "install -D -o builder -g builder -m $(stat -c %a /share/{name}) /share/{name} {remote}; \
                 code=$?; rm -f /share/{name}; exit $code"
            ),
            vec![],
        );
        let _ = fs::remove_file(&shared);
        result
    }

    /// Writes bytes to a file in L1 that belongs to `builder`.
    pub fn put_bytes(&self, bytes: impl Into<Vec<u8>>, remote: &str) -> Result<(), RigError> {
        let path = crate::session::quote(remote);
        self.judge(&format!("cat > {path} && chown builder:builder {path}"), bytes.into())
    }

    /// Copies a file or folder of L1 to the host; holes are kept.
    pub fn get(&self, remote: &str, local: impl AsRef<Path>) -> Result<(), RigError> {
        let local = local.as_ref();
        let name = format!("get-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let shared = self.instance.folder.join("share").join(&name);
        let remote = crate::session::quote(remote);
        self.judge(
            &format!(
                "cp -r --sparse=always {remote} /share/{name} && chmod -R u=rwX,go=rX /share/{name}"
            ),
            vec![],
        )?;
        let copied = cache::program_output(
            "cp",
            &[
                "-rT",
                "--sparse=always",
                &shared.display().to_string(),
                &local.display().to_string(),
            ],
        );
        cache::remove(&shared)?;
        copied.map(drop)
    }

    /// Returns an ssh command for a person: it takes the caller's standard streams.
    pub fn interactive(
        &self,
        user: User,
        pty: bool,
        line: &str,
    ) -> Result<std::process::Command, RigError> {
        self.sessions.connect(user, Duration::from_secs(60))?;
        Ok(self.sessions.ssh(user, pty, line))
    }

    /// Returns the console of L1 so far, where a kernel message of KVM in L1 would be.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.instance.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Builds everything and returns the cache's folder.
pub fn build_all() -> Result<PathBuf, RigError> {
    let cache = Cache::open()?;
    let artifacts = Artifacts::build(&cache)?;
    snapshot(&cache, &artifacts)?;
    Ok(cache.root().to_path_buf())
}

/// Returns the snapshot of a booted L1, made when missing.
fn snapshot(cache: &Cache, artifacts: &Artifacts) -> Result<PathBuf, RigError> {
    let key = cache::digest(&format!(
        "{} {} {} {}",
        artifacts.qemu.key,
        artifacts.l1.path.join("root.ext4").metadata().map_err(at(&artifacts.l1.path))?.len(),
        // The key pair is made with L1, so two builds of the same recipe are not the same L1.
        fs::read_to_string(artifacts.l1.path.join("known_hosts"))
            .map_err(at(&artifacts.l1.path))?,
        machine::fingerprint()
    ))?;
    let made = cache.make("snapshot", &key, |folder, _| {
        let mut machine = Machine::start(artifacts, folder, Start::Cold)?;
        machine.wait_ready(Duration::from_secs(180))?;
        let file = folder.join("state");
        machine.save(&file)?;
        for rest in ["scratch.ext4", "console.log", "qemu.log", "qmp"] {
            let _ = fs::remove_file(folder.join(rest));
        }
        fs::remove_dir(folder.join("share")).map_err(at(folder))
    })?;
    Ok(made.path.join("state"))
}

impl Instance {
    fn new(cache: &Cache) -> Result<Self, RigError> {
        let slot = Self::take_slot(cache)?;
        let all = cache.root().join("run");
        fs::create_dir_all(&all).map_err(at(&all))?;
        for entry in fs::read_dir(&all).map_err(at(&all))?.flatten() {
            let lock = File::options().write(true).open(entry.path().join("alive"));
            if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
                cache::remove(&entry.path())?;
            }
        }
        let folder =
            all.join(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let alive = File::create(folder.join("alive")).map_err(at(&folder))?;
        alive.lock().map_err(at(&folder))?;
        Ok(Self { folder, _locks: [slot, alive] })
    }

    fn take_slot(cache: &Cache) -> Result<File, RigError> {
        let slots = std::env::var("KVMBAKE_RIG_SLOTS")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(1u32)
            .max(1);
        let start = Instant::now();
        let mut told = false;
        loop {
            for slot in 0..slots {
                let path = cache.root().join(format!("slot-{slot}.lock"));
                let file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)
                    .map_err(at(&path))?;
                if file.try_lock().is_ok() {
                    if told {
                        eprintln!(
                            "rig: waited {:.0} s for another rig to end",
                            start.elapsed().as_secs_f32()
                        );
                    }
                    return Ok(file);
                }
            }
            if !told {
                eprintln!("rig: another rig is running, waiting for it to end …");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = cache::remove(&self.folder);
    }
}
