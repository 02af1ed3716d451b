#!/bin/sh
# What four analysers say of exportws.c and exportws.h, as a program and as a library: nothing. A
# line for each: ok, not ok or skip.
#
#   test/lint.sh [gcc] [clang] [tidy] [cppcheck]      all four when none is named
#
# Silence has to be earned: each analyser first looks at a file with a fault in it, with the options
# that it gets for exportws.c, and has to name it. All run at a time: on two cores that is a bit
# over a minute. What they say is kept in build/lint.
#
# What is switched off is switched off here, beside its reason, and nothing is in the source:
#
#   bugprone-easily-swappable-parameters   (p, n), (phase, code) and the like are how C says it
#   bugprone-not-null-terminated-result    here bytes have a length, and most are no string
#   bugprone-reserved-identifier, cert-dcl37-c, cert-dcl51-cpp: for _POSIX_C_SOURCE,
#                                          _DARWIN_C_SOURCE, _FILE_OFFSET_BITS and _TIME_BITS alone,
#                                          reserved names that a system wants to be asked by
#   knownConditionTrueFalse                in "a && b ? c : d" it thinks that d is only come to where a
#                                          is false, and so takes a test of d for a constant
#   unusedStructMember, of the library     the table of options has help for the program only
set -u
cd "$(dirname "$0")/.." || exit 1

dir=build/lint
failed=0
pids=
looks=
program=-UEXPORTWS_NO_MAIN
library=-DEXPORTWS_NO_MAIN
strict="-std=c99 -pedantic -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes"
reserved='_POSIX_C_SOURCE;_DARWIN_C_SOURCE;_FILE_OFFSET_BITS;_TIME_BITS'
budget="-Xclang -analyzer-config -Xclang max-nodes=100000"
mkdir -p "$dir" || exit 1
rm -f "$dir"/*

trap 'for pid in $pids; do kill "$pid" 2>/dev/null; done; exit 1' HUP INT TERM

# Starts an analyser; what it says goes to a file
look() { # name, command...
    name=$1
    shift
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "skip lint_$name: no $1 here"
        return
    fi
    "$@" >"$dir/$name.said" 2>&1 &
    pids="$pids $!"
    looks="$looks $name:$!"
}

# An exit status that is not 0 or anything said is a complaint. Only a fault_ has to get one.
judge() { # name, exit status
    # clang-tidy counts on stderr what it was told to keep to itself.
    grep -v '^[0-9]* warnings\{0,1\} generated\.$' "$dir/$1.said" >"$dir/$1.complaint"
    case $1 in
    fault_*)
        grep -q "fault\.c:[1-9].*$(fault_name "$1")" "$dir/$1.complaint" && echo "ok lint_$1" && return
        echo "not ok lint_$1: $(fault_name "$1") in $dir/fault.c was not seen:" ;;
    *)
        [ "$2" -eq 0 ] && [ ! -s "$dir/$1.complaint" ] && echo "ok lint_$1" && return
        echo "not ok lint_$1: exit status $2, $(grep -c . "$dir/$1.complaint") lines:" ;;
    esac
    cat "$dir/$1.complaint"
    failed=1
}

# One fault for each of them
cat >"$dir/fault.c" <<'END'
#include <stdlib.h>
int fault(int n);
int fault(int n)
{
    int *p = n > 1 ? &n : NULL, unset[2], end = atoi("7");
    if (n > 2) end += unset[n & 1];
    if (n > 3) for (char i = 0; i < n; i++) end++;
    return *p + end;
}
END

fault_name() {
    case $1 in
    *gcc) echo Wanalyzer-null-dereference ;;
    *clang*) echo "warning: Dereference of null pointer" ;;
    *tidy_analyzer) echo clang-analyzer-core.NullDereference ;;
    *tidy) echo cert-err34-c ;;
    *) echo uninitvar ;;
    esac
}

# shellcheck disable=SC2086  # $strict: flags
look_gcc() { # name, file, flag
    look "$1" gcc $strict -O2 -fanalyzer "$3" -c -o "$dir/$1.o" "$2"
}

# shellcheck disable=SC2086
look_clang() { # name, file, flag...
    name=$1 file=$2
    shift 2
    look "$name" clang $strict --analyze --analyzer-output text $budget "$@" "$file"
}

# shellcheck disable=SC2086
look_tidy() { # name, file, flag, checks
    look "$1" clang-tidy --quiet --warnings-as-errors='*' --header-filter=exportws \
        --checks="-*,$4" --config="{CheckOptions: [
        {key: bugprone-reserved-identifier.AllowedIdentifiers, value: $reserved},
        {key: cert-dcl37-c.AllowedIdentifiers, value: $reserved},
        {key: cert-dcl51-cpp.AllowedIdentifiers, value: $reserved}]}" \
        "$2" -- -std=c99 "$3" $budget
}

look_cppcheck() { # name, file, flag...
    name=$1 file=$2
    shift 2
    look "$name" cppcheck --quiet --std=c99 --library=posix --force --inconclusive "$@" \
        --enable=warning,style,performance,portability --suppress=knownConditionTrueFalse \
        --error-exitcode=1 "$file"
}

# clang's analyser follows calls until its budget is spent, which takes half a minute: the library is
# for clang --analyze, the program for clang-tidy, whose checks are those and more. Each function for
# itself, as ipa=none has it, is a matter of seconds.
start() {
    bugs='bugprone-*,cert-*,-bugprone-easily-swappable-parameters'
    bugs="$bugs,-bugprone-not-null-terminated-result"
    case $1 in
    gcc)
        look_gcc fault_gcc "$dir/fault.c" "$program"
        look_gcc gcc_program exportws.c "$program"
        look_gcc gcc_library exportws.c "$library" ;;
    clang)
        look_clang fault_clang "$dir/fault.c" "$library"
        look_clang fault_clang_alone "$dir/fault.c" "$program" -Xclang -analyzer-config \
            -Xclang ipa=none
        look_clang clang_library exportws.c "$library"
        look_clang clang_alone exportws.c "$program" -Xclang -analyzer-config -Xclang ipa=none ;;
    tidy)
        look_tidy fault_tidy "$dir/fault.c" "$program" "$bugs"
        look_tidy fault_tidy_analyzer "$dir/fault.c" "$program" 'clang-analyzer-*'
        look_tidy tidy_analyzer exportws.c "$program" 'clang-analyzer-*'
        look_tidy tidy_program exportws.c "$program" "$bugs"
        look_tidy tidy_library exportws.c "$library" "$bugs" ;;
    cppcheck)
        look_cppcheck fault_cppcheck "$dir/fault.c" "$program"
        look_cppcheck cppcheck_program exportws.c "$program"
        look_cppcheck cppcheck_library exportws.c "$library" --suppress=unusedStructMember ;;
    *)
        echo "lint: $1 is none of gcc, clang, tidy, cppcheck" >&2
        exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- tidy clang gcc cppcheck
for tool; do start "$tool"; done
for one in $looks; do
    wait "${one#*:}"
    judge "${one%:*}" $?
done
exit "$failed"
