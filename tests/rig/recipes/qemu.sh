#!/bin/bash
# Unpacks Debian 13's QEMU 10 into the folder OUT and writes OUT/qemu, which starts it through its own loader.
# Usage: qemu.sh OUT      (any user; needs apt-get and dpkg-deb; installs nothing)
#
# Debian 12's QEMU 7.2 and its backport 10.0.2 both panic L1 when its guest has two processors; 10.0.13 does not.
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
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" > "$apt/sources.list"
export APT_CONFIG=$apt/apt.conf
apt-get -q update
apt-get -q -y --no-install-recommends --download-only install qemu-system-x86 seabios
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
