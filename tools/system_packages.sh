#!/bin/sh
# Qt and a software OpenGL need some system libraries, and a machine without a display needs Xvfb.
# Installs what is missing when that is allowed (root on a Debian-like system), else prints the line to run.
set -eu

packages="libegl1 libgl1 libglib2.0-0 libfontconfig1 libxkbcommon0 libdbus-1-3
libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 libxcb-xkb1 libxcb-randr0
libxkbcommon-x11-0 xvfb xauth"

command -v dpkg-query >/dev/null 2>&1 || exit 0 # not Debian-like: Qt's wheels say what they miss

missing=""
for package in $packages; do
    # Ubuntu 24.04 and Debian 13 renamed some packages (…t64), so ask for what provides the name.
    if ! dpkg-query -W -f '${Status}\n' "$package" "${package}t64" 2>/dev/null | grep -q 'ok installed'; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    echo "Installing system packages:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words is meant
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "System packages are missing. Run this line, then repeat the command:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
    [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] # with a display it may still work; without one it cannot
fi
