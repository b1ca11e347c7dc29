# Takes the build's key out of the guest. Prints a line for every file: what was done, a tab, the path.
PATH=$PATH:/usr/sbin:/sbin
blob='@BLOB@'
filler='@FILLER@'

holders() { grep -rlF -e "$blob" "$@" 2>/dev/null; }

# The folders that sshd and dropbear read keys from.
places() {
    cut -d: -f6 /etc/passwd | sort -u | while IFS= read -r home; do
        [ -n "$home" ] && [ "$home" != / ] && [ -d "$home/.ssh" ] && printf '%s\n' "$home/.ssh"
    done
    for place in /etc/ssh /etc/dropbear; do
        [ -d "$place" ] && printf '%s\n' "$place"
    done
}

places | while IFS= read -r place; do
    holders "$place" | while IFS= read -r file; do
        # Rewritten in place: owner, mode and security label stay.
        others=$(grep -vF -e "$blob" "$file")
        if [ -n "$others" ]; then
            printf '%s\n' "$others" >"$file" && printf 'removed\t%s\n' "$file"
        else
            rm -f "$file" && printf 'deleted\t%s\n' "$file"
        fi
    done
done

# Copies of the seed. They are read again at each boot, some are binary: the key is overwritten at its own length.
if [ -d /var/lib/cloud ]; then
    holders /var/lib/cloud | while IFS= read -r file; do
        case $file in
        */scripts/vendor/*) rm -f "$file" && printf 'deleted\t%s\n' "$file" ;;
        *) LC_ALL=C sed -i "s|$blob|$filler|g" "$file" && printf 'overwritten\t%s\n' "$file" ;;
        esac
    done
fi

# What a step left that was cut off by a reboot; this script's own folder goes when it ends.
for folder in "${TMPDIR:-/tmp}"/kvmbake.?????? /tmp/kvmbake.??????; do
    [ ! -d "$folder" ] || [ "$folder" = "${0%/*}" ] || rm -rf "$folder"
done

{
    places | while IFS= read -r place; do holders "$place"; done
    holders /var/lib/cloud
} | while IFS= read -r file; do printf 'left\t%s\n' "$file"; done
sync
exit 0
