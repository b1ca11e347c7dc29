//! Measures this crate against `qemu-img convert -m 8 -W`, format by format and as a fan-out.
//!
//! `cargo run --release -p kvmbake-convert --example bench -- SOURCE DIRECTORY [ROUNDS]`
//!
//! SOURCE is a raw or qcow2 image, read once before measuring so that the page cache is warm;
//! DIRECTORY takes the results and should be on a disk. Rounds alternate between the two
//! programs; the best of each is shown. Every measurement is a process of its own: wall clock,
//! its processor time, and for ours the peak resident memory. "bare" neither verifies, nor takes
//! checksums, nor syncs, as qemu-img does neither; "verified" re-reads and compares every image;
//! "full", shown for the fan-out, is what `run` does: verified, with SHA-512 and MD5, and durable.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use kvmbake_convert::{Format, OpenOptions, Options, Silent, Target, export_with, open};

type Outcome<T> = Result<T, Box<dyn Error>>;

const VARIANTS: [(&str, Options); 3] = [
    ("bare", Options { verify: false, checksums: false, sync: false }),
    ("verified", Options { verify: true, checksums: false, sync: false }),
    ("full", Options { verify: true, checksums: true, sync: true }),
];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["one", source, directory, variant, formats] => one(source, directory, variant, formats),
        [source, directory] => compare(Path::new(source), Path::new(directory), 3),
        [source, directory, rounds] => {
            compare(Path::new(source), Path::new(directory), rounds.parse()?)
        }
        _ => Err("Usage: bench SOURCE DIRECTORY [ROUNDS]".into()),
    }
}

/// Runs one export in this process and prints its peak memory in KiB.
fn one(source: &str, directory: &str, variant: &str, formats: &str) -> Outcome<()> {
    let (_, options) = VARIANTS.iter().find(|known| known.0 == variant).ok_or("variant")?;
    let disk = open(Path::new(source), &OpenOptions::default())?;
    let targets: Vec<_> = formats
        .split(',')
        .map(|name| Ok(Target::new(name.parse::<Format>()?, our_path(directory, name))))
        .collect::<Outcome<_>>()?;
    export_with(&*disk, &targets, options, &Silent, &AtomicBool::new(false))?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    println!("{}", peak.trim().trim_end_matches(" kB"));
    Ok(())
}

fn our_path(directory: &str, name: &str) -> PathBuf {
    Path::new(directory).join(format!("ours.{name}"))
}

#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    processor: f64,
    peak_kib: u64,
}

impl Cost {
    const WORST: Cost = Cost { wall: f64::INFINITY, processor: f64::INFINITY, peak_kib: 0 };

    fn best(self, other: Cost) -> Cost {
        let peak_kib = self.peak_kib.max(other.peak_kib);
        if other.wall < self.wall { Cost { peak_kib, ..other } } else { Cost { peak_kib, ..self } }
    }
}

fn compare(source: &Path, directory: &Path, rounds: usize) -> Outcome<()> {
    let mut everything = fs::File::open(source)?;
    std::io::copy(&mut everything, &mut std::io::sink())?;
    println!(
        "{:<22} {:>14} {:>8} {:>8} {:>8} {:>9}",
        "", "program", "wall s", "cpu s", "ratio", "peak MiB"
    );
    let mut sum = Cost { wall: 0.0, processor: 0.0, peak_kib: 0 };
    for format in Format::ALL {
        let mut theirs = Cost::WORST;
        let mut ours = [Cost::WORST; 2];
        for _ in 0..rounds {
            theirs = theirs.best(qemu_img(source, directory, format)?);
            for (best, (variant, _)) in ours.iter_mut().zip(VARIANTS) {
                *best = best.best(kvmbake(source, directory, variant, format.name())?);
            }
        }
        show(format.name(), theirs, &ours);
        if format != Format::Raw {
            sum.wall += theirs.wall;
            sum.processor += theirs.processor;
        }
    }
    let mut ours = [Cost::WORST; VARIANTS.len()];
    for _ in 0..rounds {
        for (best, (variant, _)) in ours.iter_mut().zip(VARIANTS) {
            *best = best.best(kvmbake(source, directory, variant, "qcow2,vdi,vhd,vmdk")?);
        }
    }
    show("qcow2+vdi+vhd+vmdk", sum, &ours);
    Ok(())
}

fn show(name: &str, theirs: Cost, ours: &[Cost]) {
    println!(
        "{name:<22} {:>14} {:>8.2} {:>8.2} {:>8} {:>9}",
        "qemu-img", theirs.wall, theirs.processor, "1", ""
    );
    for ((variant, _), cost) in VARIANTS.iter().zip(ours) {
        println!(
            "{:<22} {:>14} {:>8.2} {:>8.2} {:>8.2} {:>9}",
            "",
            variant,
            cost.wall,
            cost.processor,
            cost.wall / theirs.wall,
            cost.peak_kib.div_ceil(1024)
        );
    }
}

fn kvmbake(source: &Path, directory: &Path, variant: &str, formats: &str) -> Outcome<Cost> {
    let target = directory.to_str().ok_or("directory")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("one").arg(source).args([target, variant, formats]);
    let paths: Vec<_> = formats.split(',').map(|name| our_path(target, name)).collect();
    measure(&mut command, &paths)
}

fn qemu_img(source: &Path, directory: &Path, format: Format) -> Outcome<Cost> {
    let path = directory.join("theirs");
    let name = if format == Format::Vhd { "vpc" } else { format.name() };
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-m", "8", "-W", "-O", name]).arg(source).arg(&path);
    measure(&mut command, &[path])
}

/// Runs the command; the files it makes are removed before and after, outside the measurement.
fn measure(command: &mut Command, paths: &[PathBuf]) -> Outcome<Cost> {
    for path in paths {
        let _ = fs::remove_file(path);
    }
    // What an earlier run left to be written back is not this one's to wait for.
    Command::new("sync").status()?;
    let processor = children_seconds()?;
    let start = Instant::now();
    let output = command.output()?;
    let wall = start.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let processor = children_seconds()? - processor;
    for path in paths {
        let _ = fs::remove_file(path);
    }
    let peak_kib = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
    Ok(Cost { wall, processor, peak_kib })
}

/// Returns the processor time of all children waited for, in seconds.
fn children_seconds() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    // proc(5): cutime and cstime are fields 16 and 17, in hundredths of a second.
    let ticks: u64 = fields[13].parse::<u64>()? + fields[14].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}
