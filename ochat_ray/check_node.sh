#!/bin/sh
# Check that this project's pinned packages can run on this node, before anything is installed:
#   sh ochat_ray/check_node.sh [FOLDER OF PCI DEVICES]
# The first of cluster.yaml's setup commands. It prints one line and fails if they cannot.

glibc_needed=2.31 # llguidance's wheel is manylinux_2_31; pyarrow's and rensa's are manylinux_2_28
python_needed=3.8 # for uv, which then installs the Python of ~/env
env_needed=3.11   # this project's own
driver_needed=580 # NVIDIA's driver for CUDA 13, which torch 2.13 is built for

devices=${1:-/sys/bus/pci/devices}

fail() {
    echo "check_node: $1. Use the images of cluster.yaml (docs/operations.md, Images)" >&2
    exit 1
}

older() { # older A B: whether version A comes before version B
    [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

glibc=$(getconf GNU_LIBC_VERSION 2> /dev/null | cut -d ' ' -f 2)
[ -n "$glibc" ] || fail "this system has no glibc, and the wheels need $glibc_needed"
if older "$glibc" "$glibc_needed"; then
    fail "glibc is $glibc, and the wheels need $glibc_needed"
fi

# An image may bring the environment with it; then the system's Python does not matter.
if [ -x "$HOME/env/bin/python" ]; then
    python=$("$HOME/env/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)
    [ -n "$python" ] || fail "$HOME/env/bin/python does not start; remove $HOME/env"
    if older "$python" "$env_needed"; then
        fail "$HOME/env has Python $python, and $env_needed is needed; remove $HOME/env"
    fi
else
    python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)
    [ -n "$python" ] || fail "there is no python3"
    if older "$python" "$python_needed"; then
        fail "python3 is $python, and $python_needed is needed"
    fi
    python3 -m pip --version > /dev/null 2>&1 || fail "python3 has no pip; install python3-pip"
fi

# 0x10de is NVIDIA; class 0x03.... is a display controller, such as a GPU.
gpu=
for device in "$devices"/*; do
    if [ "$(cat "$device/vendor" 2> /dev/null)" = 0x10de ]; then
        case $(cat "$device/class" 2> /dev/null) in 0x03*) gpu=yes ;; esac
    fi
done
if [ -n "$gpu" ]; then
    # It waits for a GPU that has failed.
    driver=$(timeout 60 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null |
        head -n 1)
    case $driver in
        [0-9]*) ;;
        *) fail "there is a GPU, and nvidia-smi finds no driver, of which torch needs $driver_needed" ;;
    esac
    if older "${driver%%.*}" "$driver_needed"; then
        fail "the NVIDIA driver is $driver, and torch needs $driver_needed"
    fi
fi
