#!/bin/bash
# Makes OUT/scratch.ext4, an empty 40 GiB disk, sparse: each rig instance writes on a copy of it.
# Usage: scratch.sh OUT     (any user; needs mke2fs)
set -euo pipefail
mkdir -p "$1"
truncate -s 40G "$1/scratch.ext4"
mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0,lazy_itable_init=1,nodiscard -L rig-scratch "$1/scratch.ext4"
