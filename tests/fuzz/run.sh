#!/bin/bash
# Fuzzes every reader for SECONDS ($1, default 140) in all: with cargo-fuzz where nightly Rust and
# cargo-fuzz are there, and with seeded mutations on stable otherwise (or with FUZZ=stable).
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-140}
readers=(qcow2 vdi vhd vhdx vmdk ova packed frames dhcp dns http)

./seeds.sh corpus "${KVMBAKE:-}"
if [ "${FUZZ:-}" != stable ] && rustup run nightly cargo fuzz --version > /dev/null 2>&1; then
    for reader in "${readers[@]}"; do
        mkdir -p "artifacts/$reader" "found/$reader"
        cargo +nightly fuzz run --fuzz-dir . --features libfuzzer "$reader" "found/$reader" "corpus/$reader" -- \
            -max_total_time=$((seconds / ${#readers[@]})) -timeout=10 -rss_limit_mb=1024 -max_len=4500000 -verbosity=0 -print_final_stats=1
    done
else
    echo "fuzz: nightly Rust with cargo-fuzz is not there; mutating the corpus on stable" >&2
    cargo run --quiet --release --bin mutate -- "$seconds" corpus
fi
