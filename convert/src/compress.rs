//! Compression on as many threads as there are processors, with results in the order of the
//! submissions.
//!
//! An encoder hands over groups of chunks and takes back, in order, each group's units (clusters
//! or grains) packed. Whatever is in flight is bounded by [`Compressor::is_full`] and by the
//! chunk pool behind it.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::chunk::Chunk;

/// How units are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// A zlib stream (RFC 1950), level 1 to 12, as VMDK grains are.
    Zlib(u8),
    /// Bare deflate (RFC 1951) with a window of 4 KiB, level 1 to 9, as qcow2 clusters are.
    Deflate4K(u8),
    /// A Zstandard frame (RFC 8878), level 1 to 22.
    Zstd(u8),
}

/// A unit of the disk, packed.
pub(crate) struct Packed {
    /// The unit's number: its offset on the disk divided by its length.
    pub(crate) unit: u64,
    /// Whether `bytes` are compressed; otherwise they are the unit's own, because those are
    /// fewer.
    pub(crate) compressed: bool,
    pub(crate) bytes: Vec<u8>,
}

struct Job {
    chunks: Vec<Arc<Chunk>>,
    done: SyncSender<io::Result<Vec<Packed>>>,
}

/// The threads and what they have in hand.
pub(crate) struct Compressor {
    jobs: Option<Sender<Job>>,
    results: VecDeque<Receiver<io::Result<Vec<Packed>>>>,
    workers: Vec<JoinHandle<()>>,
}

impl Compressor {
    /// Starts the threads. `unit` is the bytes of a unit, a power of two of at least 512; with
    /// `keep_plain` a unit that does not shrink is handed back as it is.
    pub(crate) fn new(codec: Codec, unit: usize, keep_plain: bool) -> Compressor {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let workers = (0..threads)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut packer = Packer::new(codec, unit, keep_plain);
                    loop {
                        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(Job { chunks, done }) = job else { break };
                        // Nobody waits for it any more when the export has failed elsewhere.
                        let _ = done.send(packer.pack(&chunks));
                    }
                })
            })
            .collect();
        Compressor { jobs: Some(jobs), results: VecDeque::new(), workers }
    }

    /// Hands over chunks in the disk's order; a unit longer than a chunk needs all its chunks in
    /// one submission.
    pub(crate) fn submit(&mut self, chunks: Vec<Arc<Chunk>>) {
        let (done, result) = sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // The workers live as long as `jobs`; were they gone, `next` would say so.
            let _ = jobs.send(Job { chunks, done });
            self.results.push_back(result);
        }
    }

    /// Returns whether results should be taken before more is submitted.
    pub(crate) fn is_full(&self) -> bool {
        self.results.len() > self.workers.len()
    }

    /// Waits for the oldest submission; `None` when there is none.
    pub(crate) fn next(&mut self) -> Option<io::Result<Vec<Packed>>> {
        let result = self.results.pop_front()?;
        Some(result.recv().unwrap_or_else(|_| Err(io::Error::other("a compressing thread died"))))
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker that panicked has been noticed by whoever waited for its result.
            let _ = worker.join();
        }
    }
}

/// More threads would only hold more memory: one reader feeds them.
const MAX_THREADS: usize = 16;

/// One thread's compressor with its buffers.
struct Packer {
    coder: Coder,
    unit: usize,
    keep_plain: bool,
    whole: Vec<u8>,
    packed: Vec<u8>,
}

enum Coder {
    Zlib(libdeflater::Compressor),
    Deflate4K(Box<flate2::Compress>),
    Zstd(zstd::bulk::Compressor<'static>),
    Failed(Option<io::Error>),
}

impl Packer {
    fn new(codec: Codec, unit: usize, keep_plain: bool) -> Packer {
        let coder = match codec {
            Codec::Zlib(level) => {
                let level = libdeflater::CompressionLvl::new(i32::from(level)).unwrap_or_default();
                Coder::Zlib(libdeflater::Compressor::new(level))
            }
            Codec::Deflate4K(level) => {
                let level = flate2::Compression::new(u32::from(level));
                Coder::Deflate4K(Box::new(flate2::Compress::new_with_window_bits(level, false, 12)))
            }
            Codec::Zstd(level) => match zstd::bulk::Compressor::new(i32::from(level)) {
                Ok(compressor) => Coder::Zstd(compressor),
                Err(error) => Coder::Failed(Some(error)),
            },
        };
        // Room for a unit that grows: deflate adds 5 bytes to each stored block of at least
        // 5 KiB, zstd less.
        let packed = vec![0; unit + unit / 64 + 1024];
        Packer { coder, unit, keep_plain, whole: Vec::new(), packed }
    }

    /// Packs every unit of the chunks that is not zero.
    fn pack(&mut self, chunks: &[Arc<Chunk>]) -> io::Result<Vec<Packed>> {
        let mut units = Vec::new();
        for chunk in chunks {
            if self.unit > chunk.capacity() {
                break;
            }
            for start in (0..chunk.capacity()).step_by(self.unit) {
                let range = start..start + self.unit;
                if chunk.has_data(range.clone()) {
                    let unit = (chunk.offset() + start as u64) / self.unit as u64;
                    units.push(match chunk.valid(range.clone()) {
                        Some(bytes) => self.pack_unit(unit, bytes)?,
                        None => {
                            let mut whole = std::mem::take(&mut self.whole);
                            whole.resize(self.unit, 0);
                            chunk.copy(range, &mut whole);
                            let packed = self.pack_unit(unit, &whole);
                            self.whole = whole;
                            packed?
                        }
                    });
                }
            }
        }
        if let Some(first) = chunks.first().filter(|chunk| self.unit > chunk.capacity()) {
            let unit = first.offset() / self.unit as u64;
            let mut whole = std::mem::take(&mut self.whole);
            whole.clear();
            whole.resize(self.unit, 0);
            for chunk in chunks {
                let at = (chunk.offset() % self.unit as u64) as usize;
                chunk.copy(0..chunk.capacity(), &mut whole[at..at + chunk.capacity()]);
            }
            let packed = self.pack_unit(unit, &whole);
            self.whole = whole;
            units.push(packed?);
        }
        Ok(units)
    }

    fn pack_unit(&mut self, unit: u64, bytes: &[u8]) -> io::Result<Packed> {
        let len = self.coder.run(bytes, &mut self.packed)?;
        Ok(if self.keep_plain && len >= bytes.len() {
            Packed { unit, compressed: false, bytes: bytes.to_vec() }
        } else {
            Packed { unit, compressed: true, bytes: self.packed[..len].to_vec() }
        })
    }
}

impl Coder {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<usize> {
        match self {
            Coder::Zlib(compressor) => {
                compressor.zlib_compress(input, output).map_err(io::Error::other)
            }
            Coder::Deflate4K(compressor) => {
                compressor.reset();
                let status = compressor
                    .compress(input, output, flate2::FlushCompress::Finish)
                    .map_err(io::Error::other)?;
                match status {
                    flate2::Status::StreamEnd => Ok(compressor.total_out() as usize),
                    // It did not fit, so it did not shrink.
                    _ => Ok(usize::MAX),
                }
            }
            Coder::Zstd(compressor) => compressor.compress_to_buffer(input, output),
            Coder::Failed(error) => {
                Err(error.take().unwrap_or_else(|| io::Error::other("zstd could not start")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use kvmbake_disk::MemoryBlock;

    use super::*;
    use crate::chunk::Scanner;
    use crate::output::Cancel;

    fn chunks(disk: Vec<u8>) -> Vec<Arc<Chunk>> {
        let disk = MemoryBlock::read_only(disk);
        let never = AtomicBool::new(false);
        let cancel = Cancel { wish: &never, failed: &never };
        let mut scanner = Scanner::new(&disk, u64::MAX);
        let mut chunks = Vec::new();
        loop {
            let mut chunk = Chunk::unpooled();
            if !scanner.read(&mut chunk, cancel).unwrap() {
                return chunks;
            }
            chunks.push(Arc::new(chunk));
        }
    }

    fn unpacked(codec: Codec, packed: &Packed, unit: usize) -> Vec<u8> {
        if !packed.compressed {
            return packed.bytes.clone();
        }
        let mut plain = vec![0; unit];
        match codec {
            Codec::Zlib(_) => {
                let mut inflate = flate2::Decompress::new(true);
                let finish = flate2::FlushDecompress::Finish;
                inflate.decompress(&packed.bytes, &mut plain, finish).unwrap();
            }
            Codec::Deflate4K(_) => {
                // A reader with the small window that QEMU's has.
                let mut inflate = flate2::Decompress::new_with_window_bits(false, 12);
                let finish = flate2::FlushDecompress::Finish;
                inflate.decompress(&packed.bytes, &mut plain, finish).unwrap();
                assert_eq!(inflate.total_out(), unit as u64);
            }
            Codec::Zstd(_) => plain = zstd::bulk::decompress(&packed.bytes, unit).unwrap(),
        }
        plain
    }

    #[test]
    fn units_of_every_length_come_back_in_order() {
        let mut disk = vec![0; 5 << 20];
        for (index, byte) in disk[70_000..300_000].iter_mut().enumerate() {
            *byte = (index % 251) as u8 | 1;
        }
        disk[(3 << 20) + 5] = 9;
        let mut state = 1u64;
        for byte in &mut disk[(2 << 20) - 9000..(2 << 20) + 100_000] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8 | 1;
        }
        let chunks = chunks(disk.clone());
        for codec in [Codec::Zlib(6), Codec::Deflate4K(6), Codec::Zstd(3)] {
            for unit in [512, 4096, 65_536, 1 << 20, 2 << 20] {
                let mut compressor = Compressor::new(codec, unit, true);
                let span = unit.max(1 << 20) as u64;
                for group in chunks.chunk_by(|a, b| a.offset() / span == b.offset() / span) {
                    compressor.submit(group.to_vec());
                }
                let mut found = vec![0; disk.len().next_multiple_of(unit)];
                let mut last = None;
                while let Some(packed) = compressor.next() {
                    for packed in packed.unwrap() {
                        assert!(last < Some(packed.unit), "{codec:?} {unit}");
                        last = Some(packed.unit);
                        let at = packed.unit as usize * unit;
                        assert!(packed.bytes.len() <= unit);
                        found[at..at + unit].copy_from_slice(&unpacked(codec, &packed, unit));
                    }
                }
                assert!(found[..disk.len()] == disk, "{codec:?} {unit}");
            }
        }
    }
}
