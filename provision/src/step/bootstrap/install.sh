# Installs the agent of the first boot, and what calls it every minute: a systemd timer, else cron. Nothing runs before
# the seal has put `start-bootstrap` there.
PATH=$PATH:/usr/sbin:/sbin
root=
maximum=@MAXIMUM@
missing() {
    echo "vm_bootstrap needs $1 in the guest" >&2
    exit 1
}
there() { command -v "$1" >/dev/null 2>&1; }
if [ -z "$root" ]; then
    there bash || missing bash
    there flock || missing 'flock (util-linux)'
    there curl || there wget || there python3 || there python || there busybox || missing 'curl, wget or Python'
fi
set -e
folder=$root/root/bootstrap
mkdir -p "$folder"
cat >"$folder/vm-bootstrap" <<'AGENT'
@AGENT@
AGENT
chmod 755 "$folder/vm-bootstrap"
echo 0 >"$folder/retry-amount"
echo "$maximum" >"$folder/bootstrap-max-retry"
units=$root/etc/systemd/system
line='/root/bootstrap/vm-bootstrap >>/var/log/vm-bootstrap.log 2>&1'
if [ -d "$root/run/systemd/system" ]; then
    mkdir -p "$units/timers.target.wants"
    # What the script leaves running outlives it, as it does under cron.
    cat >"$units/vm-bootstrap.service" <<UNIT
[Unit]
Description=Run vm-bootstrap until it succeeds
ConditionPathExists=/root/bootstrap/start-bootstrap
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec $line'
KillMode=process
UNIT
    cat >"$units/vm-bootstrap.timer" <<'UNIT'
[Unit]
Description=Run vm-bootstrap every minute

[Timer]
OnBootSec=15s
OnUnitActiveSec=1min
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
    ln -sf ../vm-bootstrap.timer "$units/timers.target.wants/vm-bootstrap.timer"
    echo 'vm-bootstrap.timer calls it every minute'
elif [ -d "$root/etc/cron.d" ]; then
    # Under a name without a dot, which cron would pass over.
    printf '* * * * * root %s\n' "$line" >"$root/etc/cron.d/vm-bootstrap"
    chmod 644 "$root/etc/cron.d/vm-bootstrap"
    echo 'cron calls it every minute'
else
    for table in "$root/etc/crontabs" "$root/var/spool/cron/crontabs"; do
        [ -d "$table" ] || continue
        touch "$table/root"
        grep -qF "$line" "$table/root" || printf '* * * * * %s\n' "$line" >>"$table/root"
        echo 'crond calls it every minute'
        exit 0
    done
    missing 'systemd or cron'
fi
