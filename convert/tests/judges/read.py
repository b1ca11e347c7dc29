"""Prints the size and the SHA-256 of the disk in an image, read by dissect.hypervisor.

Usage: read.py FORMAT IMAGE
"""

import hashlib
import sys
from pathlib import Path

from dissect.hypervisor.disk import qcow2, vdi, vhd, vhdx, vmdk


def opened(kind: str, path: Path):
    """Returns the disk as a stream."""
    if kind == "vmdk":
        # By path, because a descriptor names its extent.
        return vmdk.VMDK(path)
    handle = path.open("rb")
    if kind == "qcow2":
        disk = qcow2.QCow2(handle)
        return disk.open() if hasattr(disk, "open") else disk
    disk = {"vdi": vdi.VDI, "vhd": vhd.VHD, "vhdx": vhdx.VHDX}[kind](handle)
    return disk.open() if hasattr(disk, "open") and not hasattr(disk, "read") else disk


def main() -> None:
    disk = opened(sys.argv[1], Path(sys.argv[2]))
    digest = hashlib.sha256()
    size = 0
    while block := disk.read(1 << 20):
        digest.update(block)
        size += len(block)
    print(size, digest.hexdigest())


main()
