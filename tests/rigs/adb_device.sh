#!/usr/bin/env bash
# adb_device.sh start|stop DIR PORT: Debian's real adbd (arm64) on an Android-like root without glibc in /lib, in a network namespace of
# its own. start writes DIR/adb, an adb client that lives in the same namespace; its serial is 127.0.0.1:PORT.
# This adbd asks for no authorization and listens everywhere, hence the namespace; vsock, which a namespace does not hold back, is
# closed by seccomp (no_vsock.py). getprop and dumpsys are fixtures. Needs root.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/common.sh"
action=$1
dir=$(readlink -m "$2")
port=$3
state=$dir/android
root=$state/root
apex=/apex/com.android.adbd

stop() {
    end_world "$state/pid"
    rm -f "$dir/adb"
    unregister "edgefold-phone-$port"
}

make_root() {
    local new=$root.new unpacked=$state/unpacked name
    rm -rf "$new" "$unpacked"
    mkdir -p "$new"/{system/{bin,etc},data/local/tmp,dev,proc,sys} "$new$apex"/{bin,lib64}
    mmdebstrap --quiet --mode=root --variant=extract --architectures=arm64 --include=adbd,mksh,toybox trixie "$unpacked" >&2
    cp "$unpacked/usr/lib/aarch64-linux-musl/bin/mksh" "$new/system/bin/sh"
    cp "$unpacked/usr/bin/toybox" "$new/system/bin/"
    cp "$unpacked/usr/lib/android-sdk/platform-tools/adbd" "$new$apex/bin/"
    cp -L "$unpacked"/usr/lib/aarch64-linux-gnu/{,android/}*.so.* "$new$apex/lib64/"
    # adbd is started by its loader below: patchelf of Debian 12 breaks it. toybox it can.
    patchelf --set-interpreter "$apex/lib64/ld-linux-aarch64.so.1" --set-rpath "$apex/lib64" "$new/system/bin/toybox"
    for name in $("$qemu" "$new$apex/lib64/ld-linux-aarch64.so.1" --library-path "$new$apex/lib64" "$new/system/bin/toybox"); do
        [[ -e $new/system/bin/$name ]] || ln -s toybox "$new/system/bin/$name"
    done
    ln -s system/bin "$new/bin"
    ln -s system/etc "$new/etc"
    printf '%s\n' root:x:0:0:root:/:/system/bin/sh shell:x:2000:2000:shell:/:/system/bin/sh >"$new/system/etc/passwd"
    printf '%s\n' root:x:0: shell:x:2000: >"$new/system/etc/group"
    install -m 755 "$here/android/getprop" "$here/android/dumpsys" "$new/system/bin/"
    describe_cpu "$new"
    mv "$new/proc/cpuinfo" "$state/cpuinfo"
    rm -rf "$unpacked"
    mv "$new" "$root"
}

# The first process of its own namespaces; it stays, to reap what shells leave behind.
world() {
    ip link set lo up
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    mount --bind "$state/cpuinfo" proc/cpuinfo
    mount -t tmpfs -o mode=0755 tmpfs dev
    cp -a /dev/{null,zero,full,random,urandom,tty} dev/
    mkdir dev/pts
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs -o mode=0771,uid=2000,gid=2000,size=300m tmpfs data/local/tmp
    mount -o remount,bind,ro .
    # uid 2000 is Android's "shell".
    python3 "$here/no_vsock.py" env -i PATH=/system/bin ANDROID_DATA=/data ANDROID_ROOT=/system TMPDIR=/data/local/tmp \
        QEMU_CPU=cortex-a76 ADBD_PORT="$port" "$(command -v chroot)" --userspec=2000:2000 . \
        "$apex/lib64/ld-linux-aarch64.so.1" --library-path "$apex/lib64" "$apex/bin/adbd"
}

start() {
    install_packages adb iproute2 mmdebstrap patchelf qemu-user-static
    trap stop ERR
    mkdir -p "$state/home"
    [[ -d $root ]] || make_root
    register "edgefold-phone-$port"
    setsid unshare --net --mount --pid --fork --kill-child bash "$0" world "$dir" "$port" </dev/null >"$state/log" 2>&1 &
    local pid=$!
    echo "$pid" >"$state/pid"
    # The adb server starts in there too, so it never meets the host's.
    cat >"$dir/adb" <<END
#!/bin/sh
exec nsenter --target $pid --net --pid=/proc/$pid/ns/pid_for_children -- env HOME="$state/home" ADB_MDNS=0 adb "\$@"
END
    chmod 755 "$dir/adb"
    for ((i = 0; i < 100; i++)); do
        "$dir/adb" connect "127.0.0.1:$port" >>"$state/log" 2>&1 || true
        [[ $("$dir/adb" -s "127.0.0.1:$port" get-state 2>>"$state/log") != device ]] || return 0
        kill -0 "$pid"
        sleep 0.2
    done
    fail "the phone does not answer, see $state/log"
}

case $action in
    start | stop | world) "$action" ;;
    *) fail "usage: $0 start|stop DIR PORT" ;;
esac
