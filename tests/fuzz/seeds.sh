#!/bin/bash
# Makes the seed corpus with qemu-img and the packers: one folder a reader below $1 (tests/fuzz/corpus).
# With $2, a kvmbake binary, also the kinds that qemu-img does not write.
set -euo pipefail
corpus=${1:-$(dirname "$0")/corpus}
kvmbake=${2:-}
for tool in qemu-img:qemu-utils gzip:gzip xz:xz-utils bzip2:bzip2 zstd:zstd; do
    command -v "${tool%%:*}" > /dev/null || { echo "seeds: ${tool%%:*} is missing; install the Debian package ${tool#*:}" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$corpus"/{qcow2,vdi,vhd,vhdx,vmdk,ova,packed}
raw=$work/disk.raw
truncate -s 200K "$raw"
printf 'kvmbake%.0s' {1..3000} | dd of="$raw" bs=1k seek=3 conv=notrunc status=none
head -c 5000 /dev/zero | tr '\0' x | dd of="$raw" bs=1k seek=130 conv=notrunc status=none

make() { # folder name format options...
    local folder=$1 name=$2 format=$3
    shift 3
    qemu-img convert -q -f raw -O "$format" "$@" "$raw" "$corpus/$folder/$name"
}
for size in 512 4k 64k; do
    make qcow2 "plain-$size" qcow2 -o cluster_size=$size
    make qcow2 "zlib-$size" qcow2 -c -o cluster_size=$size
    make qcow2 "zstd-$size" qcow2 -c -o cluster_size=$size,compression_type=zstd
done
make qcow2 v2 qcow2 -o compat=0.10,cluster_size=4k
make qcow2 extended qcow2 -o extended_l2=on,cluster_size=16k
cp "$corpus/qcow2/plain-4k" "$corpus/qcow2/snapshot"
qemu-img snapshot -c one "$corpus/qcow2/snapshot"
qemu-img create -q -u -f qcow2 -F raw -b nowhere -o cluster_size=4k "$corpus/qcow2/backing" 200K
make vdi dynamic vdi
make vdi static vdi -o static=on
make vhd dynamic vpc -o subformat=dynamic,force_size=on
make vhd fixed vpc -o subformat=fixed,force_size=on
make vhdx dynamic vhdx -o block_size=1M,log_size=1M
# One that was not closed: an entry in its log with a zero and a data descriptor for the BAT. Its sums
# are made right by the target, because its last byte is odd.
cp "$corpus/vhdx/dynamic" "$corpus/vhdx/log"
put() { # place bytes
    printf "$2" | dd of="$corpus/vhdx/log" bs=1 seek=$(($1)) conv=notrunc status=none
}
guid='\7\7\7\7\7\7\7\7\7\7\7\7\7\7\7\7'
put 0x10030 "$guid"
put 0x20030 "$guid"
put 0x100000 'loge\0\0\0\0\0\040\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0'"$guid"
put 0x100040 'zero\0\0\0\0\0\020\0\0\0\0\0\0\0\020\040\0\0\0\0\0\1'
put 0x100060 'desc\0\0\0\0\006\0\100\0\0\0\0\0\0\0\040\0\0\0\0\0\1'
put 0x101000 'data'
put 0x101ffc '\1'
put $(($(stat -c %s "$corpus/vhdx/log") - 1)) '\1'
make vmdk sparse vmdk -o subformat=monolithicSparse
make vmdk stream vmdk -o subformat=streamOptimized
printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 400 FLAT "x" 0\n' > "$corpus/vmdk/flat"
gzip -c "$raw" > "$corpus/packed/gzip"
xz -c "$raw" > "$corpus/packed/xz"
bzip2 -c "$raw" > "$corpus/packed/bzip2"
zstd -qc "$raw" > "$corpus/packed/zstd"
if [ -n "$kvmbake" ]; then
    "$kvmbake" convert -f raw -o vmdk:subformat=streamOptimized "$raw" "$work/d.vmdk" "$work/d.vhdx" "$work/d.ova" 2> /dev/null
    mv "$work/d.vmdk" "$corpus/vmdk/own-stream"
    mv "$work/d.vhdx" "$corpus/vhdx/own"
    mv "$work/d.ova" "$corpus/ova/own"
else
    # An archive without a disk still exercises the archive's reader.
    echo '<Envelope/>' > "$work/a.ovf"
    cp "$corpus/vmdk/stream" "$work/a.vmdk"
    tar --format=ustar -C "$work" -cf "$corpus/ova/tar" a.ovf a.vmdk
fi
