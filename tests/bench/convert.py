#!/usr/bin/env python3
"""Measures `kvmbake convert` against `qemu-img convert -m 8 -W`, in pairs within one run.

convert.py KVMBAKE FOLDER [--rounds N] [--only WORD]

FOLDER keeps the two source disks between runs and takes the results: a disk of 4 GiB whose ext4 file
system holds some 1.6 GiB of this machine's files below /usr, and a sparse one of 64 GiB with 200 MiB of
them, both as qcow2 that qemu-img wrote. Each side of each pair begins alike: what an earlier command left to
be written back is synced; as much memory as the results will fill has been touched and given back, for a
virtual machine's host takes free memory away, and whoever touches it next waits for it; and the source is
read, so that the page cache has it. The two programs take turns, and change who begins from pair to pair.
Each column is the median of its rounds: wall seconds, processor seconds (user and system), the results'
lengths and what they occupy, and the largest resident set. Like is compared with like: neither program
verifies or syncs what it wrote, nor takes checksums. In the fan-out, qemu-img runs once for each image, one
run after the other, and as with us all images are there in the end: none is removed or synced between.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

GIB = 1 << 30
MIB = 1 << 20

# Title, kvmbake's arguments, qemu-img's, extension, goal of wall time.
SINGLE = [
    ("qcow2", ["-O", "qcow2"], ["-O", "qcow2"], "qcow2", 0.7),
    ("raw", ["-O", "raw"], ["-O", "raw"], "raw", 0.7),
    ("VDI", ["-O", "vdi"], ["-O", "vdi"], "vdi", 0.7),
    ("VHD", ["-O", "vhd"], ["-O", "vpc", "-o", "force_size=on"], "vhd", 0.7),
    ("VHDX", ["-O", "vhdx"], ["-O", "vhdx"], "vhdx", 0.7),
    ("VMDK sparse", ["-O", "vmdk"], ["-O", "vmdk"], "vmdk", 0.7),
]
COMPRESSED = [
    (
        "VMDK streamOptimized",
        ["-O", "vmdk", "-o", "subformat=streamOptimized"],
        ["-O", "vmdk", "-o", "subformat=streamOptimized"],
        "vmdk",
        0.5,
    ),
    ("qcow2 -c zlib", ["-O", "qcow2", "-c"], ["-O", "qcow2", "-c"], "qcow2", 0.5),
    (
        "qcow2 -c zstd",
        ["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        ["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        "qcow2",
        0.5,
    ),
]
FAN_OUT = ["qcow2", "vdi", "vhd", "vmdk"]


class Cost:
    def __init__(self, wall, cpu, peak, length, allocated):
        self.wall, self.cpu, self.peak = wall, cpu, peak
        self.length, self.allocated = length, allocated

    @staticmethod
    def median(costs):
        middle = lambda name: statistics.median(getattr(cost, name) for cost in costs)
        return Cost(*(middle(name) for name in ("wall", "cpu", "peak", "length", "allocated")))


def measure(disk, commands, outputs):
    """Runs the commands, which read `disk`, one after the other. Making things ready, and removing the
    outputs before and after, are outside the measurement."""
    for path in outputs:
        path.unlink(missing_ok=True)
    os.sync()
    touch(len(outputs) * disk.stat().st_size)
    warm(disk)
    wall, cpu, peak = 0, 0, 0
    for command in commands:
        begun = time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall += time.monotonic() - begun
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss * 1024)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{' '.join(map(str, command))}: {errors.decode()}")
    # Delayed allocation is over after a sync: only then the blocks are counted truly.
    os.sync()
    stats = [path.stat() for path in outputs]
    for path in outputs:
        path.unlink()
    length = sum(stat.st_size for stat in stats)
    return Cost(wall, cpu, peak, length, sum(stat.st_blocks * 512 for stat in stats))


def stage(tree, total):
    """Copies regular files from /usr until they have `total` bytes."""
    copied = 0
    for root in ("/usr/bin", "/usr/share", "/usr/lib"):
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                if copied >= total:
                    return
                target = tree / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
                copied += path.stat().st_size
    sys.exit(f"/usr has only {copied} bytes of files, not {total}")


def source(folder, name, size, data):
    """Returns the qcow2 image, made unless it is there."""
    path = folder / f"{name}.qcow2"
    if not path.exists():
        tree, raw, part = folder / "tree", folder / f"{name}.raw", folder / "part"
        shutil.rmtree(tree, ignore_errors=True)
        stage(tree, data)
        raw.unlink(missing_ok=True)
        with open(raw, "wb") as file:
            file.truncate(size)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, raw], check=True)
        shutil.rmtree(tree)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, part], check=True)
        raw.unlink()
        part.rename(path)
    return path


def warm(path):
    with open(path, "rb") as file:
        while file.read(MIB):
            pass


def touch(length):
    """Has the host give the machine this much memory, as far as that leaves half of what it has."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    length = min(length, available * 1024 // 2)
    flags = "mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE"
    # Another process, because the programs' peaks would inherit ours.
    code = f"import mmap; mmap.mmap(-1, {length}, flags={flags})"
    subprocess.run([sys.executable, "-c", code], check=True)


def pair(number, ours, theirs):
    """Returns qemu-img's cost and ours; every second time we begin."""
    if number % 2:
        we = ours()
        return theirs(), we
    return theirs(), ours()


def compare(title, rounds, ours, theirs, goal):
    """Prints a row; `ours` and `theirs` run a program once."""
    pairs = [pair(number, ours, theirs) for number in range(rounds)]
    they, we = (Cost.median(side) for side in zip(*pairs))
    ratio = statistics.median(our.wall / their.wall for their, our in pairs)
    cpu = statistics.median(our.cpu / their.cpu for their, our in pairs)
    print(
        f"| {title} | {they.wall:.2f} | {we.wall:.2f} | {ratio:.2f} | {goal} "
        f"| {they.cpu:.2f} | {we.cpu:.2f} | {cpu:.2f} "
        f"| {they.length / MIB:.0f} / {they.allocated / MIB:.0f} "
        f"| {we.length / MIB:.0f} / {we.allocated / MIB:.0f} "
        f"| {they.peak / MIB:.0f} | {we.peak / MIB:.0f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kvmbake", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose title matches this pattern")
    options = parser.parse_args()
    folder, kvmbake, rounds = options.folder, options.kvmbake.resolve(), options.rounds
    folder.mkdir(parents=True, exist_ok=True)
    full = source(folder, "full", 4 * GIB, 1638 * MIB)
    sparse = source(folder, "sparse", 64 * GIB, 200 * MIB)

    def we(disk, arguments, extensions):
        outputs = [folder / f"ours.{extension}" for extension in extensions]
        command = [kvmbake, "convert", "-f", "qcow2", *arguments, disk, *outputs]
        return measure(disk, [command], outputs)

    def they(disk, runs):
        command = ["qemu-img", "convert", "-m", "8", "-W", "-f", "qcow2"]
        outputs = [folder / f"theirs.{extension}" for _, extension in runs]
        commands = [
            [*command, *arguments, disk, output] for (arguments, _), output in zip(runs, outputs)
        ]
        return measure(disk, commands, outputs)

    def row(title, disk, ours, theirs, extension, goal):
        if re.search(options.only, title):
            compare(
                title,
                rounds,
                lambda: we(disk, ours, [extension]),
                lambda: they(disk, [(theirs, extension)]),
                goal,
            )

    print(
        "| | qemu-img s | kvmbake s | ratio | goal | qemu-img CPU s | kvmbake CPU s | ratio "
        "| qemu-img MiB, length / on disk | kvmbake MiB | qemu-img peak MiB | kvmbake peak MiB |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for title, ours, theirs, extension, goal in SINGLE:
        row(title, full, ours, theirs, extension, goal)
    for title, ours, theirs, extension, goal in COMPRESSED:
        row(title, full, ours, theirs, extension, goal)
    for title, ours, theirs, extension, goal in SINGLE:
        row(f"{title}, sparse 64 GiB", sparse, ours, theirs, extension, goal)

    title = " + ".join(FAN_OUT)
    if re.search(options.only, title):
        runs = [(theirs, extension) for _, _, theirs, extension, _ in SINGLE if extension in FAN_OUT]
        compare(title, rounds, lambda: we(full, [], FAN_OUT), lambda: they(full, runs), 0.4)


if __name__ == "__main__":
    main()
