#!/bin/sh
# Compile the core of the extension for arm64 and run it there, under an emulator:
#
#     tools/cross_compile.sh
#
# The core (all but the bindings) goes through Debian's cross compiler, together with a program that builds
# lattices and filters with them; it must print what the same program prints when compiled for this
# machine's plain path. Packages on Debian: g++-aarch64-linux-gnu, qemu-user-static. Without an emulator it
# only compiles.
set -eu
cd "$(dirname "$0")/.."
work=$PWD/build/cross
mkdir -p "$work"
flags="-std=c++20 -O2 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi -pthread"
core=$(ls src/napari_crfasrnn/_ext/*.cpp | grep -v -e bindings -e lattice_items)

# shellcheck disable=SC2086 # lists of words
aarch64-linux-gnu-g++ $flags -static -Isrc/napari_crfasrnn/_ext $core tools/core_check.cpp -o "$work/check-arm64"
echo "compiled for arm64: $(echo "$core" | wc -l) files"
# shellcheck disable=SC2086
c++ $flags -Isrc/napari_crfasrnn/_ext $core tools/core_check.cpp -o "$work/check-here"
"$work/check-here" >"$work/here.txt"
if command -v qemu-aarch64-static >/dev/null; then
    qemu-aarch64-static "$work/check-arm64" >"$work/arm64.txt"
    diff "$work/here.txt" "$work/arm64.txt"
    echo "arm64 prints what this machine prints:"
    cat "$work/arm64.txt"
else
    echo "qemu-aarch64-static is not installed: compiled, not run"
fi
