#!/bin/bash
# Unpacks the QEMU of Debian 13's backports (11) into the folder OUT and writes OUT/qemu, which starts it through its
# own loader.
# Usage: qemu.sh OUT      (any user; needs apt-get and dpkg-deb; installs nothing)
#
# Debian 12's QEMU 7.2 and its backport 10.0.2 both panic L1 when its guest has two processors. Debian 13's 10.0.13 does
# not, but up to 10.1 VMRUN notes a virtual interrupt without the lock under which others note theirs, and may lose one.
set -euo pipefail
out=$(realpath -m "$1")
apt=$out/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
cat > "$apt/apt.conf" <<APT
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::Status "$apt/status";
Dir::Cache "$apt";
Debug::NoLocking "true";
APT::Sandbox::User "";
Acquire::Languages "none";
APT
: > "$apt/status"
for suite in trixie trixie-backports; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main"
done > "$apt/sources.list"
export APT_CONFIG=$apt/apt.conf
apt-get -q update
apt-get -q -y --no-install-recommends -t trixie-backports --download-only install qemu-system-x86 seabios
for package in "$apt"/archives/*.deb; do
    dpkg-deb -x "$package" "$out/root"
done
rm -rf "$apt" "$out"/root/usr/share/{doc,man,locale,info,zoneinfo,perl*} "$out"/root/usr/lib/x86_64-linux-gnu/{perl*,dri}
cat > "$out/qemu" <<'START'
#!/bin/sh
# Starts the unpacked QEMU with the libraries it was built with.
root=$(dirname "$(readlink -f "$0")")/root
exec "$root/usr/lib64/ld-linux-x86-64.so.2" \
    --library-path "$root/usr/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu/pulseaudio" \
    "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
START
chmod 755 "$out/qemu"
"$out/qemu" --version > "$out/version"
