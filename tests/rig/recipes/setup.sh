#!/bin/bash
# Installs what building, testing and the rig need on a Debian machine. Asks apt only for what is missing.
# Usage: setup.sh [--check]     (as root, or with sudo; --check only says what is missing)
set -euo pipefail

# program:package; the program is looked for, for it may have come another way.
needs=(
    # building
    cc:gcc ld:binutils make:make as:binutils
    # the rig
    mmdebstrap:mmdebstrap mke2fs:e2fsprogs sfdisk:fdisk mcopy:mtools mkfs.vfat:dosfstools qemu-img:qemu-utils
    cpio:cpio ssh:openssh-client setpriv:util-linux dpkg-deb:dpkg
    # judges and peers of the unit tests
    qemu-io:qemu-utils 7z:p7zip-full sgdisk:gdisk iasl:acpica-tools dig:bind9-dnsutils curl:curl ip:iproute2
    busybox:busybox dhclient:isc-dhcp-client ping:iputils-ping cloud-init:cloud-init fsck.fat:dosfstools blkid:util-linux
    iperf3:iperf3 pasta:passt slirp4netns:slirp4netns nghttpd:nghttp2-server h2load:nghttp2-client ssh-keygen:openssh-client
    tcpdump:tcpdump pgrep:procps perl:perl python3:python3 cmp:diffutils openssl:openssl
    vhdiinfo:libvhdi-utils vmdkinfo:libvmdk-utils qcowinfo:libqcow-utils
    sshd:openssh-server sudo:sudo ansible-playbook:ansible-core zstd:zstd lz4:lz4 bzip2:bzip2 xz:xz-utils
    mandoc:mandoc groff:groff-base zsh:zsh fish:fish script:bsdutils mkfs.btrfs:btrfs-progs
)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" > /dev/null || missing+=("${need#*:}")
done
python3 -c 'import ensurepip, venv' 2> /dev/null || missing+=(python3-venv)
python3 -c 'import jsonschema' 2> /dev/null || missing+=(python3-jsonschema)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
if ! command -v apt-get > /dev/null; then
    [ "${#missing[@]}" = 0 ] && exit 0
    echo "setup: this is not Debian; install yourself what these Debian packages hold: ${missing[*]}" >&2
    exit 1
fi
[ "${#missing[@]}" = 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "${1:-}" = --check ]; then
    echo "setup: missing Debian packages: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo > /dev/null || { echo "setup: not root and no sudo; as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "setup: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" > /dev/null
