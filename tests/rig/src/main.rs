//! The rig for people: builds it, opens a shell in it, runs one command in it.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use kvmbake_rig::{Cache, Rig, RigError, User};

const USAGE: &str = "\
Usage: kvmbake-rig build                    Build everything in the cache, and the snapshot
       kvmbake-rig path [IMAGE]             Print the cache's folder, or a base image's path on the host
       kvmbake-rig run [OPTION]… -- CMD…    Start L1, run a command line in /work, stop L1
       kvmbake-rig shell [OPTION]…          The same with a shell

Options: --root           As root rather than as `builder` (QEMU is in /opt/peer/bin)
         --put FILE       Copy FILE of the host to /work first; may be given several times
         --put FILE:PATH  Copy it to PATH
         --get PATH:FILE  Copy PATH of L1, a file or folder, to FILE of the host at the end; may be given several times
Images:  light.qcow2, debian-12.qcow2, light-generic.qcow2; in L1 under /images, with .vmlinuz and .initrd beside";

#[derive(Debug, Default)]
struct Options {
    root: bool,
    put: Vec<String>,
    get: Vec<String>,
    line: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rest = words.get(1..).unwrap_or_default();
    let result = match words.first().map(String::as_str) {
        Some("build") => kvmbake_rig::build_all().map(|path| {
            println!("{}", path.display());
            0
        }),
        Some("path") => print_path(rest.first()),
        Some("run" | "shell") => match parse(rest) {
            Ok(options) if options.line.is_empty() == (words[0] == "shell") => run(&options),
            _ => return usage(),
        },
        _ => return usage(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("rig: {}", kvmbake_rig::chain(&error));
            ExitCode::from(255)
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn parse(words: &[String]) -> Result<Options, ()> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--root" => options.root = true,
            "--put" => options.put.push(words.next().ok_or(())?.clone()),
            "--get" => {
                options.get.push(words.next().filter(|word| word.contains(':')).ok_or(())?.clone())
            }
            "--" => {
                options.line = words.by_ref().cloned().collect();
                if options.line.is_empty() {
                    return Err(());
                }
            }
            _ => return Err(()),
        }
    }
    Ok(options)
}

fn print_path(image: Option<&String>) -> Result<u8, RigError> {
    let cache = Cache::open()?;
    match image {
        None => println!("{}", cache.root().display()),
        Some(image) => match kvmbake_rig::base_on_host(&cache, image)? {
            Some(path) => println!("{}", path.display()),
            None => {
                eprintln!("rig: no base image {image}\n{USAGE}");
                return Ok(2);
            }
        },
    }
    Ok(0)
}

fn run(options: &Options) -> Result<u8, RigError> {
    let rig = Rig::start()?;
    for item in &options.put {
        let (local, remote) = match item.split_once(':') {
            Some((local, remote)) => (local, remote.to_string()),
            None => {
                let name = Path::new(item).file_name().unwrap_or_default().to_string_lossy();
                (item.as_str(), format!("/work/{name}"))
            }
        };
        rig.put(local, &remote)?;
    }
    let user = if options.root { User::Root } else { User::Builder };
    // A terminal here is a terminal there, so that Ctrl-C ends the command and not the rig.
    let pty = std::io::stdin().is_terminal();
    let line =
        if options.line.is_empty() { "exec bash -l".to_string() } else { options.line.join(" ") };
    let start = Instant::now();
    let status = rig
        .interactive(user, pty, &format!("cd /work; {line}"))?
        .status()
        .map_err(|source| RigError::Program { program: "ssh".into(), source })?;
    let code = status.code().unwrap_or(255);
    eprintln!("rig: ended with {code} after {:.1} s", start.elapsed().as_secs_f32());
    for item in &options.get {
        let Some((remote, local)) = item.split_once(':') else { continue };
        let folder = if remote.starts_with('/') { "" } else { "/work/" };
        if let Err(error) = rig.get(&format!("{folder}{remote}"), local) {
            eprintln!("rig: {}", kvmbake_rig::chain(&error));
        }
    }
    Ok(u8::try_from(code).unwrap_or(255))
}
