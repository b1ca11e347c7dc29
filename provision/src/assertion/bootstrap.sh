# The minute between two runs is the timer's or cron's. That one of them calls the agent is looked up; the agent is
# called here, beside whatever they do.
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
folder=/root/bootstrap
agent=$folder/vm-bootstrap
count=@COUNT@
fails=@FAILS@
no() {
    echo "$*"
    exit 1
}
runs() { cat "$count" 2>/dev/null | wc -l | tr -dc 0-9; }
call() { "$agent" >>/var/log/vm-bootstrap.log 2>&1; }

[ -x "$agent" ] || no "there is no $agent"
if [ -d /run/systemd/system ]; then
    systemctl -q is-enabled vm-bootstrap.timer || no 'vm-bootstrap.timer is not enabled'
else
    grep -qs "$agent" /etc/cron.d/* /etc/crontabs/root /var/spool/cron/crontabs/root || no 'cron does not call it'
fi
maximum=$(cat "$folder/bootstrap-max-retry")
[ "$maximum" -gt "$fails" ] || no "it runs a script $maximum times only"
[ -e "$folder/start-bootstrap" ] || [ "$(runs)" -gt 0 ] || no 'it is switched off'

idle=0
while [ -e "$folder/start-bootstrap" ] && [ "$(runs)" -le "$fails" ]; do
    before=$(runs)
    call
    if [ "$(runs)" = "$before" ]; then
        # The timer's run keeps ours out, or nothing is fetched.
        idle=$((idle + 1))
        [ "$idle" -lt 30 ] || no 'it does not run the script'
        sleep 1
    fi
done
# The last run may be the timer's, and not over.
while [ -e "$folder/start-bootstrap" ] && [ "$idle" -lt 40 ]; do
    idle=$((idle + 1))
    sleep 1
done
[ "$(runs)" = $((fails + 1)) ] || no "the script ran $(runs) times, not $((fails + 1))"
[ ! -e "$folder/start-bootstrap" ] || no 'it goes on after a success'
call
call
[ "$(runs)" = $((fails + 1)) ] || no 'it ran the script again after a success'
exit 0
