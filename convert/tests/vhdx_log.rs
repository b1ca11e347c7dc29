//! VHDX images whose last user did not close them: the log, written here by the specification
//! (MS-VHDX, section 2.3), is replayed in memory as qemu-img replays it into the file.

mod disks;

use std::fs;
use std::path::PathBuf;

use disks::{Random, Workshop, crc32c, qemu_img, seal_vhdx, text};
use kvmbake_convert::{Format, OpenOptions, check_image, digest, open, open_noting};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;
const GUID: [u8; 16] = [7; 16];
/// Where our images have their log and their BAT.
const LOG: usize = MIB;
const BAT: usize = 3 * MIB;

/// A change that an entry makes.
#[derive(Clone)]
enum Change {
    Data(u64, Vec<u8>),
    Zero(u64, u64),
}

/// An entry of a log.
#[derive(Clone)]
struct Entry {
    number: u64,
    tail: usize,
    flushed: usize,
    last: usize,
    changes: Vec<Change>,
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        let descriptors = (64 + self.changes.len() * 32).next_multiple_of(SECTOR);
        let mut bytes = vec![0; descriptors];
        let mut data = Vec::new();
        for (change, at) in self.changes.iter().zip((64..).step_by(32)) {
            let mut put = |field: usize, value: &[u8]| {
                bytes[at + field..at + field + value.len()].copy_from_slice(value);
            };
            put(24, &self.number.to_le_bytes());
            match change {
                Change::Zero(place, len) => {
                    put(0, b"zero");
                    put(8, &len.to_le_bytes());
                    put(16, &place.to_le_bytes());
                }
                Change::Data(place, content) => {
                    put(0, b"desc");
                    put(4, &content[SECTOR - 4..]);
                    put(8, &content[..8]);
                    put(16, &place.to_le_bytes());
                    data.extend(b"data");
                    data.extend(((self.number >> 32) as u32).to_le_bytes());
                    data.extend(&content[8..SECTOR - 4]);
                    data.extend((self.number as u32).to_le_bytes());
                }
            }
        }
        bytes.extend(data);
        let len = bytes.len() as u32;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"loge");
        put(8, &len.to_le_bytes());
        put(12, &(self.tail as u32).to_le_bytes());
        put(16, &self.number.to_le_bytes());
        put(24, &(self.changes.len() as u32).to_le_bytes());
        put(32, &GUID);
        put(48, &(self.flushed as u64).to_le_bytes());
        put(56, &(self.last as u64).to_le_bytes());
        let sum = crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// A sound image and the disk in it.
struct Closed {
    workshop: Workshop,
    bytes: Vec<u8>,
}

fn closed() -> Closed {
    let workshop = Workshop::new(3 << 20);
    for offset in [0, 1 << 20, (2 << 20) + 70_000] {
        workshop.put(offset, &Random::new(4).bytes(100_000));
    }
    workshop.export(&[Format::Vhdx], "good");
    let bytes = fs::read(workshop.path("good.vhdx")).unwrap();
    Closed { workshop, bytes }
}

impl Closed {
    /// Returns the sector of the sound image's BAT that has its entries.
    fn bat(&self) -> Vec<u8> {
        self.bytes[BAT..BAT + SECTOR].to_vec()
    }

    /// Returns an entry that puts the right BAT back.
    fn mend(&self, number: u64, tail: usize) -> Entry {
        let len = self.bytes.len();
        let changes = vec![
            Change::Zero((BAT + SECTOR) as u64, 3 * SECTOR as u64),
            Change::Data(BAT as u64, self.bat()),
        ];
        Entry { number, tail, flushed: len, last: len, changes }
    }

    /// Writes the image as one who crashed left it: a wrong BAT in the file, the log open.
    fn crashed(&self, log: &[(usize, Vec<u8>)]) -> PathBuf {
        let mut bytes = self.bytes.clone();
        bytes[BAT..BAT + 4 * SECTOR].fill(0);
        bytes[BAT + SECTOR..BAT + 2 * SECTOR].fill(0xee);
        for (at, entry) in log {
            for (index, byte) in entry.iter().enumerate() {
                bytes[LOG + (at + index) % MIB] = *byte;
            }
        }
        for header in [64 << 10, 128 << 10] {
            bytes[header + 48..header + 64].copy_from_slice(&GUID);
        }
        seal_vhdx(&mut bytes);
        let path = self.workshop.path("crashed.vhdx");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Checks that the log is replayed, and the file left as it is.
    #[track_caller]
    fn is_read(&self, log: &[(usize, Vec<u8>)]) -> PathBuf {
        let path = self.crashed(log);
        let before = fs::read(&path).unwrap();
        let (disk, notes) = open_noting(&path, &OpenOptions::default()).unwrap();
        assert_eq!(digest(&*disk).unwrap(), digest(&*self.workshop.source()).unwrap());
        assert!(notes.iter().any(|note| note.contains("replayed in memory")), "{notes:?}");
        let never = std::sync::atomic::AtomicBool::new(false);
        let sound = check_image(&path, &OpenOptions::default(), &never).unwrap();
        assert!(sound.problems[0].contains("log must be replayed"), "{sound:?}");
        drop(disk);
        assert!(fs::read(&path).unwrap() == before, "the file was written to");
        path
    }

    /// Checks that the log is replayed here, and that qemu-img replays it to the same.
    #[track_caller]
    fn replays(&self, log: &[(usize, Vec<u8>)]) {
        let path = self.is_read(log);
        qemu_img(&["check", "-q", "-r", "all", "-f", "vhdx", text(&path)]);
        let raw = text(&self.workshop.raw);
        qemu_img(&["compare", "-f", "raw", "-F", "vhdx", raw, text(&path)]);
    }

    #[track_caller]
    fn refused(&self, log: &[(usize, Vec<u8>)], reason: &str) {
        let path = self.crashed(log);
        let error = open(&path, &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("crashed.vhdx"), "{reason:?}: {error}");
    }
}

#[test]
fn one_entry_is_replayed() {
    let image = closed();
    image.replays(&[(0, image.mend(1, 0).bytes())]);
    image.replays(&[(40 << 10, image.mend(u64::from(u32::MAX) + 9, 40 << 10).bytes())]);
}

#[test]
fn later_entries_win_and_older_sequences_are_passed_over() {
    let image = closed();
    let wrong = |number, tail, byte: u8| {
        let mut entry = image.mend(number, tail);
        entry.changes.push(Change::Data(BAT as u64, vec![byte; SECTOR]));
        entry
    };
    let first = wrong(20, 64 << 10, 0xff).bytes();
    let second = (64 << 10) + first.len();
    let log = [
        (0, wrong(7, 0, 0xaa).bytes()),
        (64 << 10, first),
        (second, image.mend(21, 64 << 10).bytes()),
        (512 << 10, wrong(12, 512 << 10, 0xbb).bytes()),
    ];
    image.replays(&log);
}

#[test]
fn an_entry_goes_on_at_the_beginning_of_the_ring() {
    let image = closed();
    image.replays(&[(MIB - SECTOR, image.mend(3, MIB - SECTOR).bytes())]);
}

#[test]
fn what_the_last_entry_says_is_done_already_is_not_done_again() {
    let image = closed();
    let done = Entry { changes: vec![Change::Zero(BAT as u64, 4096)], ..image.mend(4, 0) };
    let len = done.bytes().len();
    let path = image.crashed(&[(0, done.bytes()), (len, image.mend(5, len).bytes())]);
    let disk = open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(digest(&*disk).unwrap(), digest(&*image.workshop.source()).unwrap());
}

#[test]
fn descriptors_fill_more_than_one_sector() {
    let image = closed();
    let mut entry = image.mend(1, 0);
    for index in 0..200 {
        entry.changes.push(Change::Zero((BAT + (4 + index) * SECTOR) as u64, SECTOR as u64));
    }
    entry.changes.push(Change::Data((BAT + 100 * SECTOR) as u64, vec![0; SECTOR]));
    // QEMU 10 refuses entries with more than the 126 descriptors of the first sector.
    image.is_read(&[(0, entry.bytes())]);
}

#[test]
fn a_file_that_grew_before_the_crash_is_as_long_as_the_log_says() {
    let image = closed();
    let mut entry = image.mend(1, 0);
    entry.last += MIB;
    // The third block is behind the end of the file: zeroes, but for what the log puts there.
    let mut bat = image.bat();
    let place = image.bytes.len();
    bat[16..24].copy_from_slice(&((place / MIB) << 20 | 6).to_le_bytes());
    entry.changes.push(Change::Data(BAT as u64, bat));
    entry.changes.push(Change::Data((place + SECTOR) as u64, vec![9; SECTOR]));
    let path = image.crashed(&[(0, entry.bytes())]);
    let disk = open(&path, &OpenOptions::default()).unwrap();
    let mut block = vec![1; MIB];
    disk.read_at(&mut block, 2 << 20).unwrap();
    assert!(block[..SECTOR].iter().all(|byte| *byte == 0));
    assert!(block[SECTOR..2 * SECTOR].iter().all(|byte| *byte == 9));
    assert!(block[2 * SECTOR..].iter().all(|byte| *byte == 0));
    assert!(disk.next_data(2 << 20).unwrap().is_some(), "nothing of it is taken for a hole");
}

#[test]
fn logs_that_are_wrong_are_refused_by_name() {
    let image = closed();
    let good = image.mend(1, 0);
    let none = "no valid sequence";
    image.refused(&[], none);
    for at in [5, 40, 70, 100, 4100, 8191] {
        let mut bytes = good.bytes();
        bytes[at] ^= 1;
        image.refused(&[(0, bytes)], none);
    }
    // Sound sums over what is not: the number 0, a tail elsewhere, data of another entry.
    image.refused(&[(0, Entry { number: 0, ..good.clone() }.bytes())], none);
    image.refused(&[(0, Entry { tail: 8 << 10, ..good.clone() }.bytes())], none);
    let resealed = |at: usize, value: &[u8]| {
        let mut bytes = good.bytes();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes[4..8].fill(0);
        let sum = crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        vec![(0, bytes)]
    };
    image.refused(&resealed(SECTOR + 4, &[1]), none);
    image.refused(&resealed(24, &[200]), none);
    image.refused(&resealed(24, &[0xff; 4]), none);
    image.refused(&resealed(8, &(2 * MIB as u32).to_le_bytes()), none);
    image.refused(&resealed(64 + 16, &[1]), none);
    image.refused(&resealed(64, b"what"), none);

    let change = |change: Change| {
        let mut entry = good.clone();
        entry.changes.push(change);
        vec![(0, entry.bytes())]
    };
    let sector = || vec![1; SECTOR];
    image.refused(&change(Change::Data(64 << 10, sector())), "changes the headers or itself");
    image.refused(&change(Change::Data(LOG as u64, sector())), "changes the headers or itself");
    image.refused(&change(Change::Zero(MIB as u64 / 2, MIB as u64)), "headers or itself");
    image.refused(&change(Change::Data(1 << 40, sector())), "beyond the file");
    image.refused(&change(Change::Zero(BAT as u64, u64::MAX - 4095)), "beyond the file");
    let flushed = Entry { flushed: 1 << 40, ..good.clone() };
    image.refused(&[(0, flushed.bytes())], "was written for 1099511627776 bytes");
    let endless = Entry { last: usize::MAX, ..good };
    image.refused(&[(0, endless.bytes())], "in units of");
}

#[test]
fn a_log_full_of_overlapping_entries_takes_no_time() {
    let image = closed();
    // Each sector begins an entry that goes to the end of the ring and has a wrong sum.
    let log: Vec<_> = (0..MIB / SECTOR)
        .map(|sector| {
            let entry = Entry { changes: Vec::new(), ..image.mend(1, 0) };
            let mut header = entry.bytes()[..64].to_vec();
            header[8..12].copy_from_slice(&((MIB - sector * SECTOR) as u32).to_le_bytes());
            (sector * SECTOR, header)
        })
        .collect();
    let begun = std::time::Instant::now();
    image.refused(&log, "no valid sequence");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}
