# What every test of a command line begins with.
set -euo pipefail

fail() { echo "$*" >&2; exit 1; }
lambda() { aws --endpoint-url "$ENDPOINT" --output text lambda "$@"; }
is() { [ "$2" = "$1" ] || fail "line ${BASH_LINENO[0]}: $2, where $1 was expected"; }
contains() { [[ $2 == *"$1"* ]] || fail "line ${BASH_LINENO[0]}: $2, where $1 was expected in it"; }
refused() { # code arguments…
    local said code=$1
    shift
    if said=$(lambda "$@" 2>&1); then fail "line ${BASH_LINENO[0]}: $* was not refused"; fi
    contains "($code)" "$said"
}
