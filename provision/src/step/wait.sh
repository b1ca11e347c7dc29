# Waits until a condition holds, and says how long it took.
kind='@KIND@'
what=@WHAT@
limit=@LIMIT@
interval=@INTERVAL@
PATH=$PATH:/usr/sbin:/sbin

# The clock may be set meanwhile.
now() { cut -d. -f1 /proc/uptime; }

holds() {
    case $kind in
    # Local address, remote address, state: 0A is LISTEN (Linux, Documentation/networking/proc_net_tcp.rst).
    port) cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        grep -qi "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$what") [0-9A-F]*:0000 0A " ;;
    file) [ -e "$what" ] ;;
    command) (eval "$what") >/dev/null 2>&1 </dev/null ;;
    esac
}

begun=$(now)
until holds; do
    if [ $(($(now) - begun)) -ge "$limit" ]; then
        printf 'Waited %s s for %s\n' "$(($(now) - begun))" "$name" >&2
        # What a command says of itself tells more than that it failed.
        [ "$kind" != command ] || (eval "$what") </dev/null
        exit 1
    fi
    sleep "$interval" 2>/dev/null || sleep 1
done
printf 'waited %s s for %s\n' "$(($(now) - begun))" "$name"
