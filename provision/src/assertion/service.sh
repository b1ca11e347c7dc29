if [ -d /run/systemd/system ]; then
    state=$(systemctl is-active "$service")
    [ "$state" = active ] || { echo "it is $state"; return 1; }
elif command -v rc-service >/dev/null 2>&1; then
    rc-service "$service" status >/dev/null 2>&1 || { echo 'it is not started'; return 1; }
else
    pidof "$service" >/dev/null || { echo 'no process of that name runs'; return 1; }
fi
