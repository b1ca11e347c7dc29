# Removes a user, whose session may be this one: what comes after it has to be in this very shell.
PATH=$PATH:/usr/sbin:/sbin
user='@USER@'
if grep -q "^$user:" /etc/passwd; then
    # A rule of a user that is gone would be the next one's of that name.
    for file in /etc/sudoers.d/*; do
        [ -f "$file" ] && grep -q "^$user[[:space:]]" "$file" || continue
        others=$(grep -v "^$user[[:space:]]" "$file")
        if printf '%s\n' "$others" | grep -qv '^[[:space:]]*\(#.*\)\{0,1\}$'; then
            printf '%s\n' "$others" >"$file"
        else
            rm -f "$file"
        fi
    done
    if command -v userdel >/dev/null 2>&1; then
        userdel -f -r "$user" >/dev/null 2>&1
    else
        deluser --remove-home "$user" >/dev/null 2>&1
    fi
    if grep -q "^$user:" /etc/passwd; then
        echo "The user $user could not be removed" >&2
        exit 1
    fi
    # The copies that these programs make know it still.
    rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-
fi
