#!/bin/sh
# Lets the image's builder log in as @USER@: for users that cloud-init's meta-data keys do not reach.
# Removed again, with the key, before the image is sealed.
user='@USER@'
key='@KEY@'
blob='@BLOB@'
home=$(getent passwd "$user" 2>/dev/null | cut -d: -f6)
[ -n "$home" ] || home=$(grep "^$user:" /etc/passwd | cut -d: -f6)
[ -d "$home" ] || { echo "kvmbake: user $user does not exist, or has no home folder" >&2; exit 1; }
file="$home/.ssh/authorized_keys"
grep -qxF -e "$key" "$file" 2>/dev/null && exit 0
umask 077
if [ ! -d "$home/.ssh" ]; then
    mkdir "$home/.ssh" && chown "$user:" "$home/.ssh"
fi
# The key may stand there with a forced command (root, unless told otherwise): sshd takes the first line that fits.
others=$(grep -vF -e "$blob" "$file" 2>/dev/null)
{ printf '%s\n' "$key"; [ -z "$others" ] || printf '%s\n' "$others"; } >"$file"
chown "$user:" "$file"
command -v restorecon >/dev/null 2>&1 && restorecon -R "$home/.ssh"
exit 0
