# Lets the agent begin at the next boot: before the seal, a reboot of the build would have been its first one.
folder=/root/bootstrap
if [ -d "$folder" ]; then
    echo 0 >"$folder/retry-amount" && : >"$folder/start-bootstrap"
else
    echo 'The folder /root/bootstrap of vm_bootstrap is gone' >&2
    exit 1
fi
