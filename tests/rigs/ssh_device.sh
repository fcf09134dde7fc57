#!/usr/bin/env bash
# ssh_device.sh start|stop DIR PORT OTHER: a real sshd on 127.0.0.1:PORT whose sessions live in DIR/arm64 (arm_root.sh), so that
# `uname -m` there says aarch64. start writes DIR/ssh_config with the hosts "board" (root) and "board-user" (uid 1000); "board-noisy"
# (its login prints garbage first), "board-refusing" and "board-changed" (keys that do not match); and "board-x86", which is this
# machine, behind 127.0.0.1:OTHER.
# The files below DIR/ssh/sys are fixtures that a test may change while it runs. Needs root.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/common.sh"
action=$1
dir=$(readlink -m "$2")
port=$3
other_port=$4
state=$dir/ssh
# sshd refuses a chroot below a folder that others may write to.
chroot=/srv/edgefold-board-$port

stop() {
    end_world "$state/pid"
    rm -f "$dir/ssh_config"
    [[ ! -d $chroot ]] || rmdir "$chroot"
    unregister "edgefold-board-$port"
}

# The first process of its own mount and pid namespaces.
world() {
    mount --bind "$dir/arm64" "$chroot"
    mount -t proc proc "$chroot/proc"
    mount --bind "$dir/arm64/proc/cpuinfo" "$chroot/proc/cpuinfo"
    mount -t tmpfs -o mode=0755,size=8m tmpfs "$chroot/home"
    for name in dev run tmp root; do
        mount -t tmpfs -o mode=0755,size=300m tmpfs "$chroot/$name"
    done
    chmod 1777 "$chroot/tmp"
    mkdir -m 1777 "$chroot/dev/shm"
    install -d -o 1000 -g 1000 "$chroot/home/edge"
    cp -a /dev/{null,zero,full,random,urandom,tty} "$chroot/dev/"
    mount -o remount,bind,ro "$chroot"
    mount --bind "$state/sys" "$chroot/sys"
    # sshd looks users up outside of the chroot: it gets the board's own.
    for name in passwd group shadow; do
        mount --bind "$dir/arm64/etc/$name" "/etc/$name"
    done
    mkdir -p /run/sshd
    exec /usr/sbin/sshd -D -e -f "$state/sshd_config"
}

start() {
    [[ -d $dir/arm64 ]] || fail "no $dir/arm64: run arm_root.sh first"
    install_packages openssh-server openssh-client qemu-user-static
    trap stop ERR
    mkdir -p "$state" "$chroot"
    for key in host_key client_key noisy_key other_key; do
        [[ -e $state/$key ]] || ssh-keygen -q -t ed25519 -N '' -C edgefold-rig -f "$state/$key"
    done
    # With a mark of ours in what it prints.
    local noise
    read -r noise <<'END'
command="printf '\033[31mHello {\n@edgefold-exit 0\n'; eval \"$SSH_ORIGINAL_COMMAND\""
END
    {
        cat "$state/client_key.pub"
        echo "$noise $(<"$state/noisy_key.pub")"
    } >"$state/authorized_keys"
    for each in "$port" "$other_port"; do
        echo "[127.0.0.1]:$each $(cut -d' ' -f1,2 "$state/host_key.pub")"
    done >"$state/known_hosts"
    echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 "$state/other_key.pub")" >"$state/wrong_known_hosts"

    rm -rf "$state/sys"
    cp -a "$dir/arm64/sys" "$state/sys"
    mkdir -p "$state"/sys/devices/system/cpu/cpu0/cpufreq "$state"/sys/class/thermal/thermal_zone0
    echo performance >"$state/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    for name in min cur max; do
        echo 2400000 >"$state/sys/devices/system/cpu/cpu0/cpufreq/scaling_${name}_freq"
    done
    echo cpu-thermal >"$state/sys/class/thermal/thermal_zone0/type"
    echo 35200 >"$state/sys/class/thermal/thermal_zone0/temp"

    cat >"$state/sshd_config" <<END
Port $port
Port $other_port
ListenAddress 127.0.0.1
HostKey $state/host_key
PidFile none
AuthorizedKeysFile $state/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
ChrootDirectory $chroot
Subsystem sftp internal-sftp
SetEnv QEMU_CPU=cortex-a76
Match LocalPort $other_port
    ChrootDirectory none
END
    cat >"$dir/ssh_config" <<END
Host board-x86
    Port $other_port
Host *
    HostName 127.0.0.1
    Port $port
    IdentitiesOnly yes
    StrictHostKeyChecking yes
Host board-noisy
    IdentityFile $state/noisy_key
    UserKnownHostsFile $state/known_hosts
Host board board-user board-x86
    IdentityFile $state/client_key
    UserKnownHostsFile $state/known_hosts
Host board-refusing
    IdentityFile $state/other_key
    UserKnownHostsFile $state/known_hosts
Host board-changed
    IdentityFile $state/client_key
    UserKnownHostsFile $state/wrong_known_hosts
Host board-user
    User edge
Host *
    User root
END
    register "edgefold-board-$port"
    setsid unshare --mount --pid --fork --kill-child --mount-proc bash "$0" world "$dir" "$port" "$other_port" </dev/null >"$state/log" 2>&1 &
    echo $! >"$state/pid"
    for ((i = 0; i < 100; i++)); do
        ! ssh -F "$dir/ssh_config" -o BatchMode=yes board true 2>>"$state/log" || return 0
        kill -0 "$(<"$state/pid")"
        sleep 0.2
    done
    fail "the board does not answer, see $state/log"
}

case $action in
    start | stop | world) "$action" ;;
    *) fail "usage: $0 start|stop DIR PORT OTHER" ;;
esac
