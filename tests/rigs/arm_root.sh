#!/usr/bin/env bash
# arm_root.sh DIR: makes DIR/arm64, an aarch64 Debian 12 with Python 3.11, numpy, ONNX Runtime and LiteRT, for a device that has Python.
# Needs root and the Debian and PyPI registries. Nothing of it is emulated: packages are only unpacked. About 12 s, 333 MB.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/common.sh"
dir=$(readlink -m "$1")
[[ ! -e $dir/arm64 ]] || exit 0
install_packages mmdebstrap qemu-user-static unzip
root=$dir/arm64.new
rm -rf "$root"
mkdir -p "$dir"
mmdebstrap --quiet --mode=root --variant=extract --architectures=arm64 \
    --include=python3,libstdc++6,libgomp1,busybox-static,coreutils,tar,procps bookworm "$root" >&2
mkdir -p "$root"/{proc,sys,dev,run,tmp,root,home/edge}
cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
edge:x:1000:1000:edge:/home/edge:/bin/sh
sshd:x:102:65534::/run/sshd:/usr/sbin/nologin
END
printf '%s\n' root:x:0: edge:x:1000: nogroup:x:65534: >"$root/etc/group"
printf '%s:*:20000::::::\n' root edge sshd >"$root/etc/shadow"
# busybox brings sh and whatever no package brought.
"$qemu" "$root/bin/busybox" --list | while read -r name; do
    [[ -e $root/bin/$name || -e $root/usr/bin/$name ]] || ln -s busybox "$root/bin/$name"
done
describe_cpu "$root"

# pip takes each platform tag literally, so all that may match are named.
python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --implementation cp --python-version 3.11 \
    --abi cp311 --abi abi3 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --dest "$dir/wheels" numpy==2.4.6 flatbuffers onnxruntime==1.32.0 ai-edge-litert==2.3.0 2>/dev/null
site=$root/usr/local/lib/python3.11/dist-packages
mkdir -p "$site"
for wheel in "$dir"/wheels/*.whl; do
    unzip -qo "$wheel" -d "$site"
done
rm -rf "$dir/wheels"
mv "$root" "$dir/arm64"
