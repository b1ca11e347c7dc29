# Gives the space that no file takes back to the host: by discards, and by zeroes where a file system knows none.
PATH=$PATH:/usr/sbin:/sbin
mounts=/proc/mounts
failed=0
sync
seen=' '
while read -r device place type options rest; do
    case $type in ext2 | ext3 | ext4 | xfs | btrfs | vfat | f2fs | jfs | nilfs2 | reiserfs) ;; *) continue ;; esac
    case ,$options, in *,rw,*) ;; *) continue ;; esac
    case $seen in *" $device "*) continue ;; esac
    seen="$seen$device "
    place=$(printf '%b' "$place")
    # util-linux says `… (1024 bytes) trimmed`, busybox `…: 1024 bytes trimmed`.
    if said=$(fstrim -v "$place" 2>/dev/null); then
        number=$(printf '%s\n' "$said" | sed -n 's/.*[ (]\([0-9][0-9]*\) bytes.*/\1/p')
        printf '%s: %s bytes freed\n' "$place" "${number:-0}"
        continue
    fi
    # Some of the space stays: programs that run meanwhile must not find the disk full.
    free=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
    margin=$((free / 20))
    [ "$margin" -ge 65536 ] || margin=65536
    count=$(((${free:-0} - margin) / 1024))
    [ "$count" -gt 0 ] || {
        printf '%s: too little free space to fill\n' "$place"
        continue
    }
    file=$place/.kvmbake-zeroes
    trap 'rm -f "$file"' EXIT
    if dd if=/dev/zero of="$file" bs=1048576 count="$count" 2>/dev/null && sync; then
        printf '%s: %s bytes freed, by zeroes\n' "$place" "$((count * 1048576))"
    else
        printf '%s: could not be filled with zeroes\n' "$place" >&2
        failed=1
    fi
    rm -f "$file"
done <"$mounts"
sync
exit "$failed"
