//! Prints what direct boot finds in an image: `discover IMAGE [ENTRY]`.

use std::process::ExitCode;
use std::time::Instant;

use kvmbake_disk::OpenOptions;
use kvmbake_vmm::boot::{BootOverrides, discover};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(image) = arguments.next() else {
        eprintln!("usage: discover IMAGE [ENTRY]");
        return ExitCode::from(2);
    };
    let overrides = BootOverrides { entry: arguments.next(), ..BootOverrides::default() };
    let disk = match kvmbake_disk::open(image.as_ref(), &OpenOptions::default()) {
        Ok(disk) => disk,
        Err(error) => return fail(&error),
    };
    let start = Instant::now();
    let kernel = match discover(disk, &overrides) {
        Ok(kernel) => kernel,
        Err(error) => return fail(&error),
    };
    let elapsed = start.elapsed();
    println!("origin   {}", kernel.origin);
    println!("version  {}", kernel.image.version.as_deref().unwrap_or("unknown"));
    if let Err(error) = kernel.image.verify() {
        return fail(&error);
    }
    println!("kernel   {:?}", kernel.image);
    println!("initrd   {} bytes", kernel.initrd.as_ref().map_or(0, Vec::len));
    println!("cmdline  {}", kernel.cmdline);
    println!("time     {} ms", elapsed.as_millis());
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
