#!/bin/sh
# Prints the path of a directory with ansible-playbook and ansible-doc; puts ansible-core from PyPI into .dev/ansible if
# there is none.
#
# ANSIBLE_BIN=/path/to/bin names another one. What the machine has on PATH is not used: its collections and settings are
# somebody's own.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/.dev/ansible"
log="$root/.dev/ansible.log"

say() { printf 'ansible.sh: %s\n' "$*" >&2; }

found() {
    if "$1/ansible-playbook" --version >/dev/null 2>&1; then
        printf '%s\n' "$1"
        exit 0
    fi
}

step() {
    what=$1
    shift
    say "$what …"
    "$@" >"$log" 2>&1 </dev/null && return 0
    say "$what: failed; the last lines were:"
    tail -n 5 "$log" | sed 's/^/    /' >&2
    return 1
}

if [ -n "${ANSIBLE_BIN:-}" ]; then
    found "$ANSIBLE_BIN"
    say "ANSIBLE_BIN=$ANSIBLE_BIN: no working ansible-playbook there"
    exit 1
fi
found "$venv/bin"

mkdir -p "$root/.dev"
if command -v python3 >/dev/null 2>&1; then
    rm -rf "$venv" # half of an earlier one
    # Debian splits venv from python3.
    if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        step "apt-get update" apt-get update -qq || :
        step "apt-get install python3-venv" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv || :
    fi
    step "python3 -m venv .dev/ansible" python3 -m venv "$venv" &&
        step "pip install ansible-core" "$venv/bin/pip" install --quiet --disable-pip-version-check \
                --timeout 20 --retries 1 'ansible-core>=2.16' &&
        found "$venv/bin"
fi

say "no ansible-playbook. Install python3 with venv and have access to PyPI, or set ANSIBLE_BIN to a directory that has it"
exit 1
