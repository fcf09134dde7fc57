# Sourced by the rigs: Debian packages, and the kernel's way to start aarch64 programs (binfmt_misc with qemu).

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
qemu=/usr/bin/qemu-aarch64-static

fail() {
    echo "rig: $*" >&2
    exit 1
}

# install PACKAGE...: those that are missing. While they install, policy-rc.d keeps servers from being started by their own package.
install_packages() {
    local missing=() package policy=/usr/sbin/policy-rc.d
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] || fail "these packages are missing, and installing them needs root: ${missing[*]}"
    local ours=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        ours=1
    fi
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >&2 ||
        fail "installing ${missing[*]} failed"
    [[ -z $ours ]] || rm -f "$policy"
}

# register NAME / unregister NAME: an entry for each rig, so that none pulls it from under another.
# F opens qemu now, so it also works in a chroot that does not hold it; P keeps argv[0].
register() {
    local registry=/proc/sys/fs/binfmt_misc
    [[ -e $registry/register ]] || mount -t binfmt_misc binfmt_misc "$registry"
    [[ ! -e $registry/$1 ]] || return 0
    local elf='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local bits='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf ':%s:M::%s:%s:%s:PF' "$1" "$elf" "$bits" "$qemu" >"$registry/register"
}

unregister() {
    [[ ! -e /proc/sys/fs/binfmt_misc/$1 ]] || echo -1 >"/proc/sys/fs/binfmt_misc/$1"
}

# describe_cpu DIR: what the runtimes look for below DIR/proc and DIR/sys. Without it they see the host's x86 CPU and crash, or find no
# CPU and lose their fast kernels.
describe_cpu() {
    local count cpu
    count=$(nproc)
    mkdir -p "$1/proc" "$1/sys/devices/system/cpu"
    for ((cpu = 0; cpu < count; cpu++)); do
        printf 'processor\t: %d\n' "$cpu"
        cat "$here/cpuinfo.cortex-a76"
        mkdir -p "$1/sys/devices/system/cpu/cpu$cpu"
    done >"$1/proc/cpuinfo"
    for name in online possible present; do
        echo "0-$((count - 1))" >"$1/sys/devices/system/cpu/$name"
    done
}

# end_world FILE: ends the namespaces whose unshare's pid is in the file, and everything in them with it.
end_world() {
    local pid
    [[ -e $1 ]] || return 0
    pid=$(<"$1")
    if grep -qs unshare "/proc/$pid/comm"; then
        pkill -KILL -P "$pid" || true
        tail --pid="$pid" -f /dev/null
    fi
    rm -f "$1"
}
