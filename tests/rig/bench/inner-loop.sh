#!/bin/bash
# Measures the layer cache inside the rig, as root: what the first build pays and what later ones save.
# Usage: inner-loop.sh [BASE [CPUS]]     (BASE: light or debian-12; in the folder with the binary ./kvmbake)
# Leaves inner-loop.tar, of which inner-loop.py makes the table.
#
# cold boot-to-SSH       from the start of the machine to the first command over SSH, first boot's configuration included
# restore-to-command     the same from a layer's memory
# step 5 beyond itself   a run after an edit of the last of five steps, less the step's own time and the sealing
# pause                  how long the guest stands still for a layer
# memory / touched       the layer's memory file against what the guest uses of its memory, page cache included
#
# Everything in the rig runs on an emulated processor: only the ratios of one run mean something.
set -euo pipefail
base=${1:-light} cpus=${2:-2}
work=$(pwd)/inner-loop-$base
rm -rf "$work"
install -d -o builder -g builder "$work"
cp kvmbake "$work/kvmbake"
cd "$work"
now() { cut -d' ' -f1 /proc/uptime; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a - b }'; }

used='free -k | awk "/^Mem:/ { print \"touched\", \$2 - \$4 }"'
cat > profile.toml <<TOML
[image]
name = "loop"
source = "/images/$base.qcow2"
[machine]
cpus = $cpus
memory = "1G"
[ssh]
user = "debian"
timeout = "15m"
[[step]]
name = "one"
shell = ["echo one | sudo tee /etc/motd", '$used']
[[step]]
name = "two"
shell = ["sudo dd if=/dev/urandom of=/srv/data bs=1M count=16 status=none", '$used']
[[step]]
name = "three"
shell = ["sudo dpkg-query --list > list", '$used']
[[step]]
name = "four"
shell = ["sudo tar -C /usr/share -cf /srv/share.tar doc", '$used']
[[step]]
name = "five"
shell = { script = "five.sh" }
[[output]]
format = "qcow2"
TOML
printf '#!/bin/sh\necho five\n' > five.sh
chmod 755 five.sh
chown builder:builder profile.toml five.sh

# run NAME ARGUMENTS…: leaves the events in NAME.json, and in $took what it took.
run() {
    local name=$1 start
    shift
    sync
    start=$(now)
    KVMBAKE_CACHE=$work/cache setpriv --reuid=builder --regid=builder --init-groups \
        ./kvmbake run profile.toml --json "$@" > "$name.json" || { tail -3 "$name.json" >&2; exit 1; }
    took=$(less "$(now)" "$start")
}

echo "cold, without the cache" >&2; run cold-off --no-cache; cold_off=$took
echo "cold, with the cache" >&2; run cold-on; cold_on=$took
echo "unchanged" >&2; run unchanged; unchanged=$took
printf '#!/bin/sh\necho another five\n' > five.sh
echo "the last step changed" >&2; run changed --until 5; changed=$took

# What the table is made of; ./inner-loop.py makes it, outside, where there is a whole Python.
KVMBAKE_CACHE=$work/cache setpriv --reuid=builder --regid=builder --init-groups \
    ./kvmbake cache ls --json > layers.json
find cache/layers -name memory -printf '%b %P\n' > memory.txt
echo "$base $cpus $cold_off $cold_on $unchanged $changed" > times.txt
tar -cf ../inner-loop.tar ./*.json memory.txt times.txt
