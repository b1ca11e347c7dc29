# Takes out of a guest what makes it this one machine, so that each copy of its disk becomes a machine of its own.
# Much of it comes back while the guest runs on: the step (phase `step`) takes what is large, and the seal (phase `seal`)
# takes all of it again, after that what the guest needed until then. Prints a line for each kind that it found.
PATH=$PATH:/usr/sbin:/sbin
LC_ALL=C
export LC_ALL
root=
phase='@PHASE@'
kinds=' @KINDS@ '
machine_id='@MACHINE_ID@'
failed=0

wanted() { case $kinds in *" $1 "*) ;; *) return 1 ;; esac; }
sealing() { [ "$phase" = seal ]; }
running() { [ -z "$root" ]; }

# One line for all that was counted since the last one.
files=0
bytes=0
told() {
    [ "$files" = 0 ] || printf '%s: %s files, %s bytes\n' "$1" "$files" "$bytes"
    files=0
    bytes=0
}

# Counts the files below the folder $1 that the other arguments, which are find's, select.
count() {
    set -- $(find "$@" -exec ls -ldn {} + 2>/dev/null | awk '{ n++; b += $5 } END { printf "%d %.0f", n, b }')
    files=$((files + ${1:-0}))
    bytes=$((bytes + ${2:-0}))
}

# Removes files and whole folders.
drop() {
    for path; do
        [ -e "$path" ] || [ -h "$path" ] || continue
        count "$path" ! -type d
        rm -rf -- "$path" || failed=1
    done
}

# Removes the files below the folder $1 that find's other arguments select; folders stay.
sweep() {
    [ -d "$1/" ] || return 0
    under=$1/
    shift
    count "$under" ! -type d "$@"
    find "$under" ! -type d "$@" -exec rm -f -- {} + || failed=1
}

homes() {
    cut -d: -f6 "$root/etc/passwd" | sort -u | while IFS= read -r home; do
        [ -n "$home" ] && [ "$home" != / ] && [ -d "$root$home" ] && printf '%s\n' "$root$home"
    done
}

# What writes in a shutdown would write after us. The drop-ins are in /run, and go with the guest.
if sealing && running && [ -d /run/systemd/system ]; then
    silent=
    wanted logs && silent="$silent systemd-update-utmp"
    wanted random_seed && silent="$silent systemd-random-seed"
    for unit in $silent; do
        mkdir -p "/run/systemd/system/$unit.service.d" &&
            printf '[Service]\nExecStop=\n' >"/run/systemd/system/$unit.service.d/sysprep.conf"
    done
    [ -z "$silent" ] || systemctl daemon-reload
    if wanted logs; then
        mkdir -p /run/systemd/journald.conf.d &&
            printf '[Journal]\nStorage=volatile\n' >/run/systemd/journald.conf.d/zzzz-sysprep.conf
        systemctl restart systemd-journald
        systemctl stop syslog.socket rsyslog.service syslog-ng.service 2>/dev/null
    fi
fi
if sealing && running && wanted logs; then
    for daemon in rsyslogd syslog-ng syslogd auditd; do
        pid=$(pidof "$daemon") || continue
        kill $pid
        tries=0
        while pidof "$daemon" >/dev/null && [ "$tries" -lt 10 ]; do
            sleep 1
            tries=$((tries + 1))
        done
    done
fi
# A client that is told to end would write its lease once more.
if sealing && running && wanted dhcp_leases; then
    for daemon in dhclient dhcpcd; do
        pid=$(pidof "$daemon") && kill -9 $pid
    done
fi
# OpenRC saves the seed when it stops these; stopped now, they do not stop again.
if sealing && running && wanted random_seed && command -v rc-service >/dev/null 2>&1; then
    rc-service --ifstarted seedrng stop >/dev/null 2>&1
    rc-service --ifstarted urandom stop >/dev/null 2>&1
fi

if wanted package_caches; then
    sweep "$root/var/cache/apt" ! -name lock
    sweep "$root/var/lib/apt/lists" ! -name lock
    for folder in dnf libdnf5 yum zypp apk pacman/pkg; do
        drop "$root/var/cache/$folder"/*
    done
    told 'package caches'
fi

if wanted cloud_init; then
    # Without cloud-init nobody would write the network's configuration again.
    if sealing; then
        for path in "$root/var/lib/cloud"/*; do
            [ "$path" = "$root/var/lib/cloud/seed" ] || drop "$path"
        done
        drop "$root/var/log"/cloud-init*.log
        if [ -e "$root/usr/bin/cloud-init" ] && [ ! -e "$root/etc/cloud/cloud-init.disabled" ] &&
            ! grep -qsE 'config: *.?disabled' "$root/etc/cloud/cloud.cfg" "$root/etc/cloud/cloud.cfg.d"/*.cfg; then
            drop "$root/etc/netplan/50-cloud-init.yaml" \
                "$root/etc/network/interfaces.d/50-cloud-init" \
                "$root/etc/NetworkManager/system-connections"/cloud-init-*.nmconnection \
                "$root/etc/systemd/network"/10-cloud-init-*.network
        fi
    fi
    told 'cloud-init state'
fi

if wanted dhcp_leases; then
    sweep "$root/var/lib/dhcp" -name '*.lease*'
    sweep "$root/var/lib/dhclient"
    sweep "$root/var/lib/dhcpcd"
    sweep "$root/var/lib/dhcpcd5"
    drop "$root/var/lib/wicked"/lease-*
    drop "$root/var/lib/NetworkManager"/*.lease "$root/var/lib/NetworkManager"/*.conf.lease \
        "$root/var/lib/NetworkManager/secret_key" "$root/var/lib/NetworkManager/timestamps" \
        "$root/var/lib/NetworkManager/seen-bssids"
    told 'DHCP leases'
fi

if wanted persistent_net; then
    drop "$root/etc/udev/rules.d"/*-persistent-net.rules
    told 'names of network cards'
fi

if wanted history; then
    list=$(homes)
    while IFS= read -r home; do
        [ -n "$home" ] || continue
        for name in .bash_history .zsh_history .ash_history .sh_history .history .lesshst .viminfo \
            .python_history .mysql_history .psql_history .sqlite_history .node_repl_history .wget-hsts; do
            drop "$home/$name"
        done
    done <<HOMES
$list
HOMES
    told 'shell history'
fi

if wanted tmp; then
    for folder in "$root/tmp" "$root/var/tmp"; do
        for path in "$folder"/* "$folder"/.[!.]* "$folder"/..?*; do
            # Ours goes when this script ends. A service that runs on needs its own.
            case ${path##*/} in
            systemd-private-* | .X11-unix | .ICE-unix | .XIM-unix | .font-unix) sealing || continue ;;
            esac
            [ "$path" = "${0%/*}" ] || drop "$path"
        done
    done
    told 'temporary files'
fi

if wanted ssh_host_keys; then
    # Whoever makes missing keys at a boot: the distribution's unit or boot script, else a unit of ours.
    made_by() {
        for known in sshd-keygen@.service sshd-keygen.service sshdgenkeys.service; do
            for folder in etc usr/lib lib; do
                [ -e "$root/$folder/systemd/system/$known" ] && return 0
            done
        done
        for script in "$root"/etc/init.d/* "$root/etc/rc.local" "$root/usr/sbin/sshd-gen-keys-start" \
            $(cut -d: -f4 "$root/etc/inittab" 2>/dev/null); do
            case $script in "$root"/*) ;; *) script=$root$script ;; esac
            [ -f "$script" ] && grep -qE "$1" "$script" && return 0
        done
        return 1
    }
    for kind in openssh dropbear; do
        case $kind in
        openssh)
            set -- "$root/etc/ssh"/ssh_host_*_key "$root/etc/ssh"/ssh_host_*_key.pub
            maker=ssh-keygen
            ;;
        dropbear)
            set -- "$root/etc/dropbear"/dropbear_*_host_key
            maker='dropbearkey|dropbear.* -[a-zA-Z]*R'
            ;;
        esac
        [ -e "$1" ] || continue
        unit=$root/etc/systemd/system/ssh-host-keys.service
        if [ ! -e "$unit" ] && ! made_by "$maker"; then
            if [ "$kind" = openssh ] && { [ -d "$root/run/systemd/system" ] || [ -e "$root/lib/systemd/systemd" ]; }; then
                mkdir -p "${unit%/*}/multi-user.target.wants" &&
                    cat >"$unit" <<'UNIT' &&
[Unit]
Description=Make the missing host keys of SSH
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
Before=ssh.service sshd.service ssh.socket sshd.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
UNIT
                    ln -sf ../ssh-host-keys.service "${unit%/*}/multi-user.target.wants/ssh-host-keys.service" || failed=1
                echo 'SSH host keys: ssh-host-keys.service makes them at the next boot'
            else
                echo "Nothing in the guest makes host keys for $kind at its boot; keep them with \`ssh_host_keys = false\`" >&2
                exit 1
            fi
        fi
        # The guest needs them until then, for a session after a reboot.
        sealing && drop "$@"
    done
    told 'SSH host keys'
fi

if wanted machine_id && sealing; then
    id=$root/etc/machine-id
    dbus=$root/var/lib/dbus/machine-id
    [ -s "$id" ] && count "$id" -type f
    if [ -f "$dbus" ] && [ ! -h "$dbus" ]; then
        drop "$dbus"
        [ ! -e "$id" ] || ln -s /etc/machine-id "$dbus" || failed=1
    fi
    # Written in place: an empty file tells systemd to make an ID, a missing one cannot be made on a read-only root.
    if [ -e "$id" ]; then
        printf %s "$machine_id" >"$id" || failed=1
    fi
    told 'machine ID'
fi

if wanted random_seed && sealing; then
    drop "$root/var/lib/systemd/random-seed" "$root/var/lib/systemd/credential.secret" \
        "$root/var/lib/urandom/random-seed" "$root/var/lib/random-seed" "$root/var/lib/misc/random-seed" \
        "$root/var/lib/seedrng" "$root/boot/loader/random-seed" "$root/boot/efi/loader/random-seed" "$root/efi/loader/random-seed"
    told 'random seed'
fi

# Last: the others may have written to them.
if wanted logs; then
    # The journal is journald's until the seal, which has taken it away from it.
    if sealing; then
        drop "$root/var/log/journal"/*
    fi
    sweep "$root/var/log" \( -name '*.gz' -o -name '*.xz' -o -name '*.bz2' -o -name '*.zst' -o -name '*.old' \
        -o -name '*.[0-9]' -o -name '*-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]' \) ! -path '*/journal/*'
    sweep "$root/var/lib/systemd/coredump"
    sweep "$root/var/crash"
    if [ -d "$root/var/log/" ]; then
        count "$root/var/log/" -type f -size +0c ! -path '*/journal/*'
        # A file that a daemon holds open stays its file.
        find "$root/var/log/" -type f -size +0c ! -path '*/journal/*' -exec sh -c 'for f; do : >"$f"; done' sh {} + || failed=1
    fi
    told logs
fi
sync
[ "$failed" = 0 ] || echo 'Something could not be removed' >&2
exit "$failed"
