#!/bin/bash
# Packs the base images into OUT/images.ext4, the disk from which L1 reads them.
# Usage: images.sh OUT NAME=FOLDER…     (any user; needs mke2fs)
#
# NAME.qcow2, NAME.vmlinuz and NAME.initrd come from what base.sh left in FOLDER. The disk always has the same size,
# so that a snapshot of L1 fits whatever is on it.
set -euo pipefail
umask 022
out=$1
shift
mkdir -p "$out/tree"
for pair; do
    name=${pair%%=*} folder=${pair#*=}
    for file in disk.qcow2:qcow2 vmlinuz:vmlinuz initrd:initrd; do
        ln "$folder/${file%:*}" "$out/tree/$name.${file#*:}" 2>/dev/null ||
            cp "$folder/${file%:*}" "$out/tree/$name.${file#*:}"
    done
done
truncate -s 16G "$out/images.ext4"
mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -L rig-images -d "$out/tree" "$out/images.ext4"
rm -rf "$out/tree"
