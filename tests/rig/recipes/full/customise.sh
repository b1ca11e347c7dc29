#!/bin/bash
# Turns the tree TREE into the full base: the few settings that Debian's cloud image adds to its packages.
# Usage: customise.sh TREE
set -euo pipefail
tree=$1
install -d "$tree/etc/netplan" "$tree/etc/cloud/cloud.cfg.d"
cat > "$tree/etc/netplan/90-default.yaml" <<'NETPLAN'
network:
  version: 2
  ethernets:
    all-en:
      match: {name: en*}
      dhcp4: true
      dhcp6: true
    all-eth:
      match: {name: eth*}
      dhcp4: true
      dhcp6: true
NETPLAN
chmod 600 "$tree/etc/netplan/90-default.yaml"
cat > "$tree/etc/cloud/cloud.cfg.d/01_debian_cloud.cfg" <<'CLOUD'
apt_preserve_sources_list: true
manage_etc_hosts: true
system_info:
  default_user:
    name: debian
    lock_passwd: true
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    shell: /bin/bash
CLOUD
# A locale that needs no generating, as Debian's cloud image has it; and what locale-gen needs should a user want another.
echo 'LANG=C.UTF-8' > "$tree/etc/default/locale"
mkdir -p "$tree/usr/share/locale"
ln -sf /etc/locale.alias "$tree/usr/share/locale/locale.alias"
chroot "$tree" systemctl enable systemd-networkd systemd-resolved systemd-timesyncd serial-getty@ttyS0.service > /dev/null 2>&1
ln -sf /run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
