#!/bin/bash
# Turns the tree TREE into the light base: busybox init, a NoCloud reader, DHCP, sshd; users root and debian.
# Usage: customise.sh TREE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tree=$1
install -m 755 "$here/boot" "$tree/sbin/light-boot"
install -m 755 "$here/down" "$tree/sbin/light-down"
install -m 755 "$here/seed" "$tree/sbin/light-seed"
install -m 644 "$here/inittab" "$tree/etc/inittab"
install -D -m 755 "$here/udhcpc" "$tree/etc/udhcpc/default.script"
ln -sf /bin/busybox "$tree/sbin/init"
for command in poweroff reboot halt; do
    printf '#!/bin/sh\nexec /bin/busybox %s "$@"\n' "$command" > "$tree/sbin/$command"
    chmod 755 "$tree/sbin/$command"
done
cat > "$tree/sbin/shutdown" <<'SHUTDOWN'
#!/bin/sh
case " $* " in *" -r "*) exec /bin/busybox reboot ;; *) exec /bin/busybox poweroff ;; esac
SHUTDOWN
chmod 755 "$tree/sbin/shutdown"
mkdir -p "$tree/etc/acpi/events"
rm -f "$tree"/etc/acpi/events/*
printf 'event=button/power.*\naction=/sbin/poweroff\n' > "$tree/etc/acpi/events/power"
chroot "$tree" useradd --create-home --shell /bin/bash --password '*' debian
echo 'debian ALL=(ALL) NOPASSWD:ALL' > "$tree/etc/sudoers.d/90-debian"
chmod 440 "$tree/etc/sudoers.d/90-debian"
sed -i 's/^UsePAM yes/UsePAM no/' "$tree/etc/ssh/sshd_config"
printf 'UseDNS no\nHostKey /etc/ssh/ssh_host_ed25519_key\n' > "$tree/etc/ssh/sshd_config.d/light.conf"
