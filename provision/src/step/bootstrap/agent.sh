#!/bin/bash
# Runs http://10.0.2.100/vm-bootstrap, fetched anew each time, until it succeeds or has run as often as it may.
# Called every minute. In this folder:
#   start-bootstrap      while it is there, the script is run; remove it to stop that
#   bootstrap-max-retry  how often the script may run
#   retry-amount         how often it has run
#   bootstrap-script     the script as it was fetched last
folder=/root/bootstrap
url=http://10.0.2.100/vm-bootstrap
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=xterm
cd "$folder" || exit 1
[ -e start-bootstrap ] || exit 0

# A run may take longer than a minute. What it leaves running in the background must not hold the lock.
exec 9>>"$folder/.lock"
flock -n 9 || exit 0
[ -e start-bootstrap ] || exit 0

say() { printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*"; }

number() {
    local text
    text=$(head -c 10 "$1" 2>/dev/null | tr -dc 0-9)
    printf %d "$((10#${text:-$2}))"
}

# Its own limit on time would not do: busybox 1.35's wget dies of -T.
fetch() {
    local limit=
    command -v timeout >/dev/null && limit='timeout 120'
    if command -v curl >/dev/null; then
        $limit curl -fsS -o "$1" "$url"
    elif command -v wget >/dev/null; then
        $limit wget -q -O "$1" "$url"
    elif command -v python3 >/dev/null; then
        $limit python3 -c 'import sys, urllib.request as r; open(sys.argv[1], "wb").write(r.urlopen(sys.argv[2]).read())' "$1" "$url" 2>/dev/null
    elif command -v python >/dev/null; then
        $limit python -c 'import sys, urllib2 as r; open(sys.argv[1], "wb").write(r.urlopen(sys.argv[2]).read())' "$1" "$url" 2>/dev/null
    else
        $limit busybox wget -q -O "$1" "$url"
    fi
}

# Read before the script runs, which may write another one for the runs that follow.
maximum=$(number bootstrap-max-retry 10)
runs=$(($(number retry-amount 0) + 1))
echo "$runs" >retry-amount
script=bootstrap-script
rm -f "$script.new"
# Half a script must not run, and none counts as one that fails.
if fetch "$script.new" 9>&- && [ -s "$script.new" ]; then
    mv -f "$script.new" "$script"
    say "run $runs of $maximum begins"
else
    rm -f "$script.new"
    echo 'exit 1' >"$script"
    say "run $runs of $maximum: nothing at $url"
fi
bash "$script" 9>&- </dev/null
status=$?
if [ "$status" = 0 ]; then
    say "run $runs succeeded"
    rm -f start-bootstrap
elif [ "$runs" -ge "$maximum" ]; then
    say "run $runs failed with exit code $status, and was the last one"
    rm -f start-bootstrap
else
    say "run $runs failed with exit code $status"
fi
exit "$status"
