#!/usr/bin/env bash
# Installs the Debian packages that some tests need. Where this cannot be done (no root, no apt) it says so and succeeds:
# those tests then skip, each with its reason.
#
#   dataset-fashion-mnist   the real data set: training, and accuracy on all 10,000 test images
#   chromium                looks at the HTML report as a reader would
set -euo pipefail

packages=(dataset-fashion-mnist chromium)

missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
    echo "system packages: all there"
    exit 0
fi
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
    echo "system packages missing: ${missing[*]}; installing them needs root on Debian, so the tests that need them will skip" >&2
    exit 0
fi

# A server package starts its server when it is installed (sshd listens on every interface); policy-rc.d forbids it.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
echo "installing: ${missing[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
