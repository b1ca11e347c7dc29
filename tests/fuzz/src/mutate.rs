//! The fuzz targets without libFuzzer: seeded mutations of the corpus for a bounded time, the same
//! in every run.
//!
//! `mutate SECONDS CORPUS [READER…]`; CORPUS has a folder for each reader. An input that makes a
//! reader panic or take too long is kept as `crash-READER-SEED` in the working directory.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvmbake_fuzz::{Reader, read};

/// Longer than any refusal may take.
const TOO_LONG: Duration = Duration::from_secs(10);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, corpus, only @ ..] = arguments.as_slice() else {
        eprintln!("usage: mutate SECONDS CORPUS [READER...]");
        return ExitCode::from(2);
    };
    let readers: Vec<_> = Reader::ALL
        .into_iter()
        .filter(|(name, _)| only.is_empty() || only.iter().any(|wanted| wanted == name))
        .collect();
    let seconds: f64 = seconds.parse().unwrap_or(10.0);
    let share = Duration::from_secs_f64(seconds / readers.len().max(1) as f64);
    let mut failures = 0;
    for (name, reader) in readers {
        let seeds = seeds(&Path::new(corpus).join(name));
        if seeds.is_empty() {
            eprintln!("{name}: no corpus; tests/fuzz/seeds.sh makes it");
            return ExitCode::from(2);
        }
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < share {
            let input = mutated(&seeds, round);
            let start = Instant::now();
            let outcome = std::panic::catch_unwind(|| read(reader, &input));
            if outcome.is_err() || start.elapsed() > TOO_LONG {
                let kept = format!("crash-{name}-{round}");
                eprintln!(
                    "{name}: input {round} failed after {:?}, kept as {kept}",
                    start.elapsed()
                );
                if let Err(error) = std::fs::write(&kept, &input) {
                    eprintln!("{kept}: {error}");
                }
                failures += 1;
            }
            round += 1;
        }
        println!("{name}: {round} inputs from {} seeds", seeds.len());
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Returns a seed with a few changes; they prefer places that are not zero, where metadata are.
fn mutated(seeds: &[Vec<u8>], round: u64) -> Vec<u8> {
    let mut random = Random(round);
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(6) {
        if bytes.is_empty() {
            break;
        }
        let at = place(&bytes, &mut random);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => {
                let values = [0u32, 1, u32::MAX, i32::MAX as u32, 1 << 31, 512, 65_536];
                let value = values[random.below(values.len())];
                let value =
                    if random.below(2) == 0 { value.to_le_bytes() } else { value.to_be_bytes() };
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            3 => {
                let (from, len) = (place(&bytes, &mut random), 1 + random.below(16));
                let len = len.min(bytes.len() - from).min(bytes.len() - at);
                bytes.copy_within(from..from + len, at);
            }
            4 if random.below(4) == 0 => bytes.truncate(at),
            5 => {
                let end = (at + 8).min(bytes.len());
                for byte in &mut bytes[at..end] {
                    *byte = random.next() as u8;
                }
            }
            6 => bytes[at] = bytes[at].wrapping_add(1),
            _ => bytes[at] = bytes[at].wrapping_sub(1),
        }
    }
    bytes
}

fn place(bytes: &[u8], random: &mut Random) -> usize {
    for _ in 0..64 {
        let at = random.below(bytes.len());
        if bytes[at] != 0 {
            // A little before or behind, so that zero fields are met too.
            return (at + random.below(9)).saturating_sub(4).min(bytes.len() - 1);
        }
    }
    random.below(bytes.len())
}
