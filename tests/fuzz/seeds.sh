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
mkdir -p "$corpus"/{qcow2,vdi,vhd,vhdx,vmdk,ova,packed,frames,dhcp,dns,http}
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
# Messages by hand: what a guest sends to the network.
hex() { local text; text=$(tr -d ' \n'); printf "$(sed 's/../\\x&/g' <<< "$text")"; }
mac=525400123456
hex > "$corpus/dns/query" <<< '1234 0120 0001 0000 0000 0001 01 61 04 74657374 00 0001 0001 00 0029 1000 00000000 0000'
hex > "$corpus/dns/aaaa" <<< '1234 0100 0001 0000 0000 0000 03 777777 07 6578616d706c65 00 001c 0001'
{
    hex <<< '01010600 deadbeef 0000 0000'
    head -c 16 /dev/zero
    hex <<< "$mac"
    head -c 202 /dev/zero
} > "$work/bootp"
for kind in 01 03 04 07 08; do
    { cat "$work/bootp"; hex <<< "63825363 3501$kind 3204 0a00020f 3604 0a000202 3d0401020304 ff"; } > "$corpus/dhcp/type-$kind"
done
frame() { # file flags ether-type bytes: one frame of a sequence
    local bytes=${4// /}
    printf '%04x%s%s%s%s%s' $((14 + ${#bytes} / 2)) "$2" 52550a000202 "$mac" "$3" "$bytes" | hex >> "$corpus/frames/$1"
}
rm -f "$corpus"/frames/*
frame arp 00 0806 "0001080006040001 $mac 0a00020f 000000000000 0a000202"
ip4='0000 0000 40'
frame ping 02 0800 "4500001c $ip4 01 0000 0a00020f 0a000202 0800 0000 0001 0001"
frame dns 02 0800 "45000037 $ip4 11 0000 0a00020f 0a000203 0fa0 0035 0023 0000 1234 0100 0001 0000 0000 0000 01 61 04 74657374 00 0001 0001 0000"
frame tcp 02 0800 "45000028 $ip4 06 0000 0a00020f 0a000202 0fa0 0050 00000001 00000000 5002 ffff 0000 0000"
frame tcp 02 0800 "4500002c $ip4 06 0000 0a00020f 0a000202 0fa0 0050 00000002 00000001 5018 ffff 0000 0000 61626364"
ip6="fd000000000000005054 00fffe123456 fd00000000000000 0000000000000002"
link6="fe800000000000005054 00fffe123456 ff02000000000000 0000000000000002"
frame ndp 02 86dd "60000000 0010 3a ff $link6 8500 0000 00000000 0101 $mac"
frame ndp 02 86dd "60000000 0018 3a ff $ip6 8700 0000 00000000 fd00000000000000 0000000000000002"
frame ndp 02 86dd "60000000 0008 3a 40 $ip6 8000 0000 0001 0001"
frame tcp6 02 86dd "60000000 0014 06 40 $ip6 0fa0 0050 00000001 00000000 5002 ffff 0000 0000"
printf 'GET /a.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=2-5\r\n\r\nHEAD /sub/ HTTP/1.0\r\n\r\n' > "$corpus/http/get"
printf 'GET /%%2e%%2e/outside HTTP/1.1\r\nHost: x\r\n\r\nGET /link HTTP/1.1\r\n\r\nGET /up/outside HTTP/1.1\r\n\r\n' > "$corpus/http/outside"
form='path=up/b.log&content=%41+b&clear=1'
printf 'POST / HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s' ${#form} "$form" > "$corpus/http/form"
part='--b\r\nContent-Disposition: form-data; name="path"\r\n\r\nsub/c.log\r\n--b\r\nContent-Disposition: form-data; name="content"\r\n\r\nx\r\n--b--\r\n'
part=$(printf -- "$part.")
printf 'POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s' $((${#part} - 1)) "${part%.}" > "$corpus/http/parts"
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
