#!/bin/bash
# Builds L1 into the folder OUT: root.ext4, vmlinuz, initrd and the key pair that opens it.
# Usage: l1.sh OUT      (as root; needs mmdebstrap, mke2fs, cpio, ssh-keygen)
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
out=$1
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=http://deb.debian.org/debian
tree=$out/tree
mkdir -p "$out"

sources=("deb $mirror $codename main" "deb $mirror $codename-updates main")
pins=()
if [ "$codename" = bookworm ]; then
    # Debian 12's own QEMU 7.2 panics L1 when its guest has two processors; the backport is QEMU 10.
    sources+=("deb $mirror bookworm-backports main")
    pins=(--customize-hook='rm "$1/etc/apt/preferences.d/rig"'
          --setup-hook='mkdir -p "$1/etc/apt/preferences.d"; printf "Package: qemu-* seabios ovmf libbrlapi*\nPin: release n=bookworm-backports\nPin-Priority: 600\n" > "$1/etc/apt/preferences.d/rig"')
fi
packages=(linux-image-amd64 kmod busybox-static iproute2 tcpdump openssh-server openssh-client procps util-linux
    qemu-system-x86 qemu-utils ovmf seabios p7zip-full fdisk gdisk e2fsprogs dosfstools mtools curl iperf3
    python3-minimal ansible-core strace netcat-openbsd socat file bzip2 xz-utils zstd time psmisc)

# L1's initramfs is made below; INITRD=No keeps Debian's from being made.
INITRD=No mmdebstrap --mode=root --variant=minbase --quiet \
    --dpkgopt=force-unsafe-io --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --include="$(IFS=,; echo "${packages[*]}")" "${pins[@]}" \
    "$codename" "$tree" "${sources[@]}"

# The kernel and an initramfs with just the modules that find the root.
kernel=$(basename "$tree"/lib/modules/*)
cp "$tree/boot/vmlinuz-$kernel" "$out/vmlinuz"
ram=$out/initramfs
mkdir -p "$ram/bin" "$ram/modules"
cp "$tree/bin/busybox" "$ram/bin/busybox"
install -m 755 "$here/l1/initramfs-init" "$ram/init"
for module in virtio_pci virtio_blk ext4 overlay; do
    chroot "$tree" modprobe -S "$kernel" --show-depends "$module" | while read -r kind path _; do
        [ "$kind" = insmod ] || continue
        name=$(basename "$path")
        [ -e "$ram/modules/$name" ] && continue
        cp "$tree$path" "$ram/modules/$name"
        echo "$name" >> "$ram/modules/order"
    done
done
(cd "$ram" && find . | cpio --quiet -o -H newc -R 0:0) > "$out/initrd"
rm -rf "$ram" "$tree"/boot/initrd.img*

# Users: root, and `builder` whose one privilege is /dev/kvm.
install -m 755 "$here/l1/rig-init" "$tree/sbin/rig-init"
ssh-keygen -q -t ed25519 -N '' -C rig -f "$out/key"
chroot "$tree" groupadd -f --system kvm
chroot "$tree" useradd --create-home --shell /bin/bash --groups kvm --password '*' builder
for home in root home/builder; do
    install -d -m 700 "$tree/$home/.ssh"
    install -m 600 "$out/key.pub" "$tree/$home/.ssh/authorized_keys"
done
chroot "$tree" chown -R builder:builder /home/builder
echo 'export PATH=$PATH:/opt/peer/bin' >> "$tree/root/.bashrc"
install -d "$tree/work" "$tree/images" "$tree/share"
rm -f "$tree"/etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -C rig -f "$tree/etc/ssh/ssh_host_ed25519_key"
cut -d' ' -f1,2 "$tree/etc/ssh/ssh_host_ed25519_key.pub" | sed 's/^/rig /' > "$out/known_hosts"
cat > "$tree/etc/ssh/sshd_config" <<'SSHD'
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxSessions 64
MaxStartups 64
AcceptEnv *
SetEnv PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
Subsystem sftp internal-sftp
SSHD

# The judges: QEMU works in L1, but only for root and not on anybody's default PATH.
install -d -m 750 "$tree/opt/peer" "$tree/opt/peer/bin"
mv "$tree"/usr/bin/qemu-* "$tree/opt/peer/bin/"
ln -s /usr/share "$tree/opt/peer/share"
ln -s /usr/lib "$tree/opt/peer/lib"

rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/dev/*
# The hidden device nodes come from devtmpfs; the folder must exist for the move.
mke2fs -q -t ext4 -O ^has_journal -m 0 -L rig-l1 -d "$tree" "$out/root.ext4" 3G
rm -rf "$tree"
echo "$codename $kernel" > "$out/version"
