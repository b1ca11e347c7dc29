#!/bin/sh
# Makes this machine what ROLE says.
set -eu

echo "role: ${ROLE:?}"
echo "$ROLE" | sudo tee /etc/role
