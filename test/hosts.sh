#!/bin/sh
# The examples that embed exportws and try themselves out: embed.c, a poll() loop of its own, and
# worker.c, four threads that post.
#
#   test/hosts.sh          one line for each check: ok NAME | not ok NAME: WHY | skip NAME: WHY
#
# Environment: BUILD    where embed and worker are (build)
#              POSTS    how many worker posts (100000)
#              RUN      what to run them with (qemu-...)
#              RACES=1  worker once more, with fewer posts, under ThreadSanitizer (gcc and clang)
#                       and helgrind
set -u
cd "$(dirname "$0")/.." || exit 1

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
build=${BUILD:-build}
failed=0

# Runs one and passes its lines on, under its name. One that fails without saying so, as at a race
# that was found, has failed all the same.
host() { # name, command...
    name=$1
    shift
    "$@" >"$tmp/output" 2>"$tmp/errors"
    status=$?
    sed -n "s/^ok /ok ${name}_/p; s/^not ok /not ok ${name}_/p; s/^[0-9].*/# &/p" "$tmp/output"
    [ "$status" -eq 0 ] && grep -q '^ok ' "$tmp/output" && return
    failed=1
    head -n 60 "$tmp/errors"
    grep -q '^not ok ' "$tmp/output" || echo "not ok $name: exit status $status"
}

# The compiler's ThreadSanitizer; some kernels scatter memory to where it can't be
host_tsan() { # compiler
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "skip worker_tsan_$1: no $1"
        return
    fi
    if ! echo 'int main(void) { return 0; }' |
        "$1" -fsanitize=thread -x c -o "$tmp/empty" - 2>/dev/null; then
        echo "skip worker_tsan_$1: $1 has no ThreadSanitizer"
        return
    fi
    "$1" -std=c99 -g -O1 -fsanitize=thread -pthread -DEXPORTWS_NO_MAIN -o "$tmp/worker-$1" \
        test/worker.c exportws.c
    gather=
    if setarch "$(uname -m)" -R true 2>/dev/null; then gather="setarch $(uname -m) -R"; fi
    # shellcheck disable=SC2086  # several words, or none
    TSAN_OPTIONS=halt_on_error=1 host "worker_tsan_$1" $gather "$tmp/worker-$1" --posts 100000
}

host_helgrind() {
    if command -v valgrind >/dev/null 2>&1; then
        host worker_helgrind valgrind --tool=helgrind -q --error-exitcode=9 "$build/worker" \
            --posts 10000
    else
        echo "skip worker_helgrind: no valgrind"
    fi
}

# shellcheck disable=SC2086  # RUN may be several words, or none
host embed ${RUN:-} "$build/embed" --test
# shellcheck disable=SC2086
host worker ${RUN:-} "$build/worker" --posts "${POSTS:-100000}"
if [ "${RACES:-0}" = 1 ]; then
    host_tsan gcc
    host_tsan clang
    host_helgrind
fi
exit "$failed"
