PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
limit=@LIMIT@
question() {
@QUESTION@
}
# The clock may be set meanwhile.
now() { cut -d. -f1 /proc/uptime; }
begun=$(now)
until said=$(question 2>&1); do
    if [ $(($(now) - begun)) -ge "$limit" ]; then
        printf '%s\n' "$said"
        exit 1
    fi
    sleep 1
done
