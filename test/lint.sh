#!/bin/sh
# What four analysers say of exportws.c and exportws.h: nothing. A line for each: ok, not ok or skip.
#
#   test/lint.sh [gcc] [clang] [tidy] [cppcheck]      all four when none is named
#
# What is switched off is switched off here, each with its reason, and never in the source.
set -u
cd "$(dirname "$0")/.." || exit 1

dir=build/lint
failed=0
mkdir -p "$dir" || exit 1

# Runs an analyser; whatever it prints or an exit status that is not 0 is a complaint
look() { # name, command...
    name=$1
    shift
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "skip lint_$name: no $1 here"
        return
    fi
    "$@" >"$dir/output" 2>&1
    status=$?
    # clang-tidy counts on stderr what it was told to keep to itself.
    grep -v '^[0-9]* warnings\{0,1\} generated\.$' "$dir/output" >"$dir/$name"
    if [ "$status" -eq 0 ] && [ ! -s "$dir/$name" ]; then
        echo "ok lint_$name"
    else
        echo "not ok lint_$name: exit status $status, $(grep -c . "$dir/$name") lines:"
        cat "$dir/$name"
        failed=1
    fi
}

strict="-std=c99 -pedantic -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes"

lint_gcc() {
    # shellcheck disable=SC2086  # flags
    look gcc gcc $strict -O2 -fanalyzer -c -o "$dir/gcc.o" exportws.c
}

lint_clang() {
    # shellcheck disable=SC2086  # flags
    look clang clang $strict --analyze --analyzer-output text exportws.c
}

# bugprone-easily-swappable-parameters: (p, n), (phase, code) and the like are how C says it.
# bugprone-not-null-terminated-result: here bytes have a length, and most are no string at all.
# _POSIX_C_SOURCE is a reserved name, and the one way to ask for POSIX.
lint_tidy() {
    look tidy clang-tidy --quiet --warnings-as-errors='*' --header-filter='exportws' --checks="$(
        echo '-*,bugprone-*,cert-*,clang-analyzer-*' \
            ,-bugprone-easily-swappable-parameters \
            ,-bugprone-not-null-terminated-result | tr -d ' ')" --config='{CheckOptions: [
        {key: bugprone-reserved-identifier.AllowedIdentifiers, value: _POSIX_C_SOURCE},
        {key: cert-dcl37-c.AllowedIdentifiers, value: _POSIX_C_SOURCE},
        {key: cert-dcl51-cpp.AllowedIdentifiers, value: _POSIX_C_SOURCE}]}' \
        exportws.c -- -std=c99
}

# unusedStructMember: it looks at the library without its program, too, which alone uses some.
lint_cppcheck() {
    look cppcheck cppcheck --quiet --std=c99 --enable=warning,style,performance,portability \
        --inconclusive --suppress=unusedStructMember --error-exitcode=1 exportws.c
}

[ $# -gt 0 ] || set -- gcc clang tidy cppcheck
for name; do
    case $name in
    gcc | clang | tidy | cppcheck) "lint_$name" ;;
    *) echo "lint: $name is none of gcc, clang, tidy, cppcheck" >&2; exit 2 ;;
    esac
done
exit "$failed"
