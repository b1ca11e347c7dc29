#!/bin/bash
# Builds a Debian 12 base image, without booting anything: OUT/disk.qcow2, and its kernel and initrd beside it.
# Usage: base.sh VARIANT OUT     (as root; needs mmdebstrap, mke2fs, sfdisk, mtools, mkfs.vfat, qemu-img)
#
# full      what Debian's own cloud image is: systemd, netplan, cloud-init, openssh-server, the cloud kernel
# light     the same disk, cloud kernel and initrd, but busybox init and a small NoCloud reader: boots in seconds
# generic   light with Debian's generic kernel
#
# The disk, as Debian lays it out: GPT with root (1, ext4), bios_grub (14) and ESP (15, FAT32); GRUB for BIOS and UEFI.
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
variant=$1 out=$2
mirror=http://deb.debian.org/debian
tree=$out/tree raw=$out/disk.raw
mkdir -p "$out"

case $variant in
full)    kernel=linux-image-cloud-amd64 root_uuid=6b1f1d6e-12de-4b0a-8f5e-c10d0d00f011
         extra=(systemd-sysv libpam-systemd dbus systemd-resolved systemd-timesyncd netplan.io cloud-init cloud-guest-utils
                apparmor locales python3-minimal ca-certificates curl less) ;;
light)   kernel=linux-image-cloud-amd64 root_uuid=6b1f1d6e-12de-4b0a-8f5e-c10d0d001147 extra=(busybox-static acpid) ;;
generic) kernel=linux-image-amd64 root_uuid=6b1f1d6e-12de-4b0a-8f5e-c10d0d009e0e extra=(busybox-static acpid) ;;
*)       echo "base.sh: no variant $variant (full, light, generic)" >&2; exit 2 ;;
esac
packages=("$kernel" initramfs-tools zstd grub-cloud-amd64 openssh-server sudo iproute2 kmod e2fsprogs procps "${extra[@]}")

mmdebstrap --mode=root --variant=minbase --quiet \
    --dpkgopt=force-unsafe-io --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(IFS=,; echo "${packages[*]}")" \
    bookworm "$tree" "deb $mirror bookworm main" "deb $mirror bookworm-updates main" \
    "deb http://deb.debian.org/debian-security bookworm-security main"

# What this build told apt and dpkg is not for the image; what follows is what Debian's image build sets in every image.
rm -f "$tree"/etc/apt/apt.conf.d/99mmdebstrap "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
echo "UUID=$root_uuid / ext4 rw,discard,errors=remount-ro 0 1" > "$tree/etc/fstab"
echo localhost > "$tree/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > "$tree/etc/hosts"
cat > "$tree/etc/default/grub" <<'GRUB'
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB

"$here/$([ "$variant" = full ] && echo full || echo light)/customise.sh" "$tree"

# update-grub writes its own text; only what it learns about devices comes from here, for there is no disk yet.
mv "$tree/usr/sbin/grub-probe" "$tree/usr/sbin/grub-probe.real"
cat > "$tree/usr/sbin/grub-probe" <<PROBE
#!/bin/sh
for word; do case \$word in --target=*) target=\${word#*=} ;; esac; done
case \$target in
device) echo /dev/sda1 ;; disk) echo /dev/sda ;; fs_uuid) echo $root_uuid ;; fs) echo ext2 ;; partmap) echo gpt ;;
compatibility_hint) echo hd0,gpt1 ;;
hints_string) echo --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1 --hint-baremetal=ahci0,gpt1 ;;
esac
PROBE
chmod 755 "$tree/usr/sbin/grub-probe"
mkdir -p "$tree/boot/grub" "$tree/dev/disk/by-uuid"
touch "$tree/dev/disk/by-uuid/$root_uuid"
chroot "$tree" grub-mkconfig -o /boot/grub/grub.cfg 2>/dev/null
mv "$tree/usr/sbin/grub-probe.real" "$tree/usr/sbin/grub-probe"
grep -q "root=UUID=$root_uuid" "$tree/boot/grub/grub.cfg" || { echo "base.sh: grub.cfg lacks the root's UUID" >&2; exit 1; }

# GRUB for BIOS: modules in /boot/grub, core.img for the bios_grub partition.
mkdir -p "$tree/boot/grub/i386-pc"
cp "$tree"/usr/lib/grub/i386-pc/*.{mod,lst} "$tree/boot/grub/i386-pc/"
printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$root_uuid" > "$tree/tmp/early.cfg"
chroot "$tree" grub-mkimage -O i386-pc -p /boot/grub -c /tmp/early.cfg -o /tmp/core.img \
    biosdisk part_gpt ext2 search_fs_uuid
mv "$tree/tmp/core.img" "$out/core.img"
cp "$tree/usr/lib/grub/i386-pc/boot.img" "$out/boot.img"
mkdir -p "$out/efi"
cp "$tree/usr/lib/shim/shimx64.efi.signed" "$out/efi/BOOTX64.EFI"
cp "$tree/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$out/efi/grubx64.efi"

# For the peers that a benchmark compares with: they boot directly too, but cannot find the kernel themselves.
cp -L "$tree/vmlinuz" "$out/vmlinuz"
cp -L "$tree/initrd.img" "$out/initrd"

rm -rf "$tree"/tmp/* "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb \
    "$tree"/var/cache/debconf/*-old "$tree"/var/log/{dpkg,apt,bootstrap,alternatives}* "$tree"/dev/* \
    "$tree"/etc/ssh/ssh_host_* "$tree"/etc/machine-id "$tree"/var/lib/dbus/machine-id "$tree"/etc/resolv.conf.old
: > "$tree/etc/machine-id"

# The disk. Sectors of 512 bytes: bios_grub at 2048, ESP at 8192, root from 262144 to the end.
truncate -s 3G "$raw"
sfdisk --quiet "$raw" <<'SFDISK'
label: gpt
1: start=262144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
14: start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649
15: start=8192, size=253952, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
SFDISK
last=$(sfdisk --dump "$raw" | sed -n 's/^.*1 *: *start= *262144, *size= *\([0-9]*\),.*/\1/p')
mke2fs -q -t ext4 -m 1 -U "$root_uuid" -E "offset=$((262144 * 512)),lazy_itable_init=0" -d "$tree" "$raw" "$((last / 2))k"

truncate -s $((253952 * 512)) "$out/esp.img"
mkfs.vfat -F 32 -n ESP "$out/esp.img" > /dev/null
printf "search.fs_uuid %s root\nset prefix=(\$root)'/boot/grub'\nconfigfile \$prefix/grub.cfg\n" "$root_uuid" > "$out/efi/grub.cfg"
mmd -i "$out/esp.img" ::EFI ::EFI/BOOT ::EFI/debian
mcopy -i "$out/esp.img" "$out/efi/BOOTX64.EFI" "$out/efi/grubx64.efi" ::EFI/BOOT/
mcopy -i "$out/esp.img" "$out/efi/grub.cfg" ::EFI/debian/
dd if="$out/esp.img" of="$raw" bs=1M seek=4 conv=notrunc,sparse status=none

# boot.img keeps the partition table's bytes, learns where core.img starts, and trusts the BIOS drive number;
# core.img's first sector holds the list of the sectors that follow it (grub-bios-setup does the same four writes).
le64() { local n=$1 i; for i in 1 2 3 4 5 6 7 8; do printf "\\x$(printf %02x $((n & 255)))"; n=$((n >> 8)); done; }
dd if="$out/boot.img" of="$raw" bs=1 count=440 conv=notrunc status=none
le64 2048 | dd of="$raw" bs=1 seek=$((0x5c)) conv=notrunc status=none
printf '\x90\x90' | dd of="$raw" bs=1 seek=$((0x66)) conv=notrunc status=none
dd if="$out/core.img" of="$raw" bs=512 seek=2048 conv=notrunc status=none
le64 2049 | dd of="$raw" bs=1 seek=$((2048 * 512 + 0x1f4)) conv=notrunc status=none

qemu-img convert -f raw -O qcow2 "$raw" "$out/disk.qcow2"
rm -rf "$tree" "$raw" "$out/esp.img" "$out/efi" "$out/core.img" "$out/boot.img"
