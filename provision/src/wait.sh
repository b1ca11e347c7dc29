PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
command -v cloud-init >/dev/null 2>&1 || { echo absent; exit 0; }
unbegun=0
while [ ! -e /run/cloud-init/result.json ]; do
    if [ -e /run/cloud-init/disabled ] || [ -e /etc/cloud/cloud-init.disabled ]; then
        echo disabled
        exit 0
    fi
    [ -e /run/cloud-init/status.json ] || unbegun=$((unbegun + 1))
    [ "$unbegun" -lt 60 ] || break
    sleep 0.5 2>/dev/null || sleep 1
done
result=$(tr -d ' \t\n' </run/cloud-init/result.json 2>/dev/null)
status=$(tr -d ' \t\n' </run/cloud-init/status.json 2>/dev/null)
case $result in
*'"errors":[]'*)
    case $status in
    *'"recoverable_errors":{"'*) ;;
    *)
        echo done
        exit 0
        ;;
    esac
    ;;
esac
said=$(cloud-init status --wait --long 2>&1)
code=$?
case $said in
*status:*) ;;
*) [ -n "$said" ] && [ -z "$result" ] || said="$said
$result" ;;
esac
printf 'status %s\n%s\n' "$code" "$said"
