#!/bin/bash
# Compares kvmbake with QEMU under KVM, inside the rig, as root: same run, same base, same user-data, same steps.
# Usage: compare.sh [BASE [ROUNDS [CPUS]]]     (BASE: light or debian-12; in the folder with the binary ./kvmbake)
#
# first command  from the start of the process to the first output of a command over SSH
# whole profile  base in, steps, clean shutdown, then qcow2, VDI, VHD, VMDK and raw out
#                (kvmbake also reads every image back and writes digests; QEMU's side does neither)
#
# Everything in the rig runs on an emulated processor: only the ratios of one run mean something.
set -euo pipefail
base=${1:-light} rounds=${2:-3} cpus=${3:-2}
export PATH=$PATH:/opt/peer/bin
case $base in
light) uuid=6b1f1d6e-12de-4b0a-8f5e-c10d0d001147 ;;
debian-12) uuid=6b1f1d6e-12de-4b0a-8f5e-c10d0d00f011 ;;
*) echo "compare.sh: no base $base" >&2; exit 2 ;;
esac
work=$(pwd)/bench-$base
rm -rf "$work"
install -d -o builder -g builder "$work" "$work/ours"
cp kvmbake "$work/kvmbake"
cd "$work"
ssh-keygen -q -t ed25519 -N '' -f key
now() { echo "$EPOCHREALTIME"; }
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'; }

# Two steps, the same for both; `first-command` is what the clock waits for.
steps=('echo first-command' 'echo hello | sudo tee /etc/motd' 'sudo dd if=/dev/urandom of=/srv/data bs=1M count=16 status=none')
cat > ours/profile.toml <<TOML
[image]
name = "bench"
source = "/images/$base.qcow2"
size = "4G"
[machine]
cpus = $cpus
memory = "1G"
[ssh]
user = "debian"
timeout = "15m"
[[step]]
shell = ["${steps[0]}", "${steps[1]}", "${steps[2]}"]
$(for format in qcow2 vdi vhd vmdk raw; do printf '[[output]]\nformat = "%s"\n' $format; done)
TOML
chown -R builder:builder ours

ours() {
    rm -rf ours/out
    sync; local start first=
    start=$(now)
    while IFS= read -r line; do
        if [ -z "$first" ] && [[ $line == *first-command* && $line != *'echo first-command'* ]]; then first=$(since "$start"); fi
        echo "$line" >> ours.log
    done < <(cd ours && exec setpriv --reuid=builder --regid=builder --init-groups "$work/kvmbake" run --no-cache profile.toml 2>&1)
    ls ours/out/*/manifest.json > /dev/null || { tail -20 ours.log >&2; exit 1; }
    echo "kvmbake ${first:-none} $(since "$start")" >> rows
}

peer() { # NAME MACHINE-OPTIONS…
    local name=$1 start first=none
    shift
    rm -f overlay.qcow2 seed.img peer.* pid
    sync; start=$(now)
    qemu-img create -q -f qcow2 -b "/images/$base.qcow2" -F qcow2 overlay.qcow2 4G
    printf '#cloud-config\nssh_authorized_keys:\n  - %s\n' "$(cat key.pub)" > user-data
    printf 'instance-id: bench-%s\nlocal-hostname: bench\n' "$RANDOM" > meta-data
    truncate -s 1M seed.img
    mkfs.vfat -n CIDATA seed.img > /dev/null
    mcopy -i seed.img user-data meta-data ::
    qemu-system-x86_64 "$@" -enable-kvm -cpu host -smp "$cpus" -m 1024 -nodefaults -no-user-config -display none \
        -kernel "/images/$base.vmlinuz" -initrd "/images/$base.initrd" \
        -append "root=UUID=$uuid ro console=ttyS0,115200" -serial file:console.log \
        -drive file=overlay.qcow2,if=none,id=disk,format=qcow2,discard=unmap -device virtio-blk-pci,drive=disk \
        -drive file=seed.img,if=none,id=seed,format=raw,readonly=on -device virtio-blk-pci,drive=seed \
        -netdev user,id=net,hostfwd=tcp:127.0.0.1:2222-:22 -device virtio-net-pci,netdev=net,romfile= \
        -device virtio-rng-pci -daemonize -pidfile pid
    local ssh=(ssh -i key -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
               -o ConnectTimeout=2 -o ControlMaster=auto -o ControlPath=mux -o ControlPersist=60 -q debian@127.0.0.1)
    until "${ssh[@]}" "${steps[0]}" 2> /dev/null < /dev/null | grep -q first-command; do
        kill -0 "$(cat pid)" 2> /dev/null || { tail -5 console.log >&2; exit 1; }
        sleep 0.2
    done
    first=$(since "$start")
    "${ssh[@]}" "${steps[1]}" > /dev/null
    "${ssh[@]}" "${steps[2]}"
    "${ssh[@]}" "sudo sync; sudo poweroff" || true
    while kill -0 "$(cat pid 2> /dev/null)" 2> /dev/null; do sleep 0.1; done
    for format in qcow2 vdi vpc vmdk raw; do
        qemu-img convert -f qcow2 -O "$format" overlay.qcow2 "peer.$format"
    done
    echo "$name $first $(since "$start")" >> rows
}

for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    ours
    peer qemu-q35 -M q35
    peer qemu-microvm -M microvm,pcie=on,rtc=on,acpi=on
done
echo "Base $base, $cpus processors, $rounds rounds; medians in seconds (in the rig, so only the ratios count)."
awk '
function median(list, n,    i, j, t) {
    for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (list[j] < list[i]) { t = list[i]; list[i] = list[j]; list[j] = t }
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}
{ if (!($1 in count)) order[++names] = $1; n = ++count[$1]; first[$1, n] = $2 + 0; whole[$1, n] = $3 + 0 }
END {
    for (i = 1; i <= names; i++) {
        name = order[i]
        for (k = 1; k <= count[name]; k++) { a[k] = first[name, k]; b[k] = whole[name, k] }
        f[name] = median(a, count[name]); w[name] = median(b, count[name])
    }
    printf "%-14s %14s %14s %22s %22s\n", "", "first command", "whole profile", "kvmbake/it, first", "kvmbake/it, whole"
    for (i = 1; i <= names; i++) {
        name = order[i]
        printf "%-14s %14.2f %14.2f %22.2f %22.2f\n", name, f[name], w[name], f["kvmbake"] / f[name], w["kvmbake"] / w[name]
    }
}' rows
echo "All rows:"
cat rows
