#!/bin/sh
# What needs tools beside those of make check, and adds it up:
#
#   test/verify.sh [PART...]      all when none is named, but asan-gcc, which make check SAN=1 runs,
#                                 too; test/verify.sh --list says which there are
#
# Two lanes run at a time. One has what looks at the clock: the suite under each sanitizer and under
# gcov, the attack, a browser, the proxies. The other has what only needs a processor - the fuzzers,
# the analysers, failing system calls, the corpus - and is nice, but for building the fuzzers: it
# gets what the first leaves, which mostly waits. What a part said is printed when it has ended and
# stays in build/verify.
#
# A part of the first lane that fails runs once more, since machines are busy, unless a sanitizer
# has reported something; what failed the first time is printed, too.
#
# The last line is "N passed, N failed, N skipped" over everything: the tests of each part; a part
# that ends badly and names no failure, or comes to no count, is one failed test more.
#
# Environment: SECONDS_FUZZ    of each fuzzer (60)
#              SECONDS_ATTACK  (20)
set -u
cd "$(dirname "$0")/.." || exit 1

make=${MAKE:-make}
dir=build/verify
timed="asan-clang msan valgrind cover attack browser proxies"
untimed="fuzz lint faults replay"
named="asan-gcc"

if [ "${1:-}" = --list ]; then
    echo "$timed $untimed $named"
    exit
fi
# shellcheck disable=SC2086  # words
[ $# -gt 0 ] || set -- $timed $untimed
for part; do
    case " $timed $untimed $named " in
    *" $part "*) ;;
    *) echo "verify: $part is none of $timed $untimed $named" >&2; exit 2 ;;
    esac
done
mkdir -p "$dir" || exit 1
rm -f "$dir"/*

run_part() {
    case $1 in
    asan-gcc | asan-clang | msan | valgrind) LEAN=1 test/sanitize.sh "$1" ;;
    cover) "$make" cover ;;
    attack) python3 test/attack.py "${SECONDS_ATTACK:-20}" ;;
    browser) EXPORTWS=./exportws test/run test/browser.py ;;
    proxies) "$make" proxies ;;
    fuzz) NICE=19 test/fuzz.sh "${SECONDS_FUZZ:-60}" ;;
    *) nice -n 10 "$make" "$1" ;;
    esac
}

# Runs the parts of a lane that are wanted; says a part's name when it has ended
run_lane() { # parts of the lane, in one word; the wanted ones
    lane=$1
    shift
    for part in $lane; do
        case " $* " in *" $part "*) ;; *) continue ;; esac
        began=$(date +%s)
        run_part "$part" >"$dir/$part.txt" 2>&1 </dev/null
        status=$?
        case " $timed " in *" $part "*) again=$status ;; *) again=0 ;; esac
        # What fails twice has failed, and what a sanitizer has reported; the first time is told of.
        if [ "$again" -ne 0 ] && ! grep -q '^---- .*/report\.' "$dir/$part.txt"; then
            mv "$dir/$part.txt" "$dir/$part.first"
            run_part "$part" >"$dir/$part.txt" 2>&1 </dev/null
            status=$?
        fi
        echo "$status $(($(date +%s) - began))" >"$dir/$part.end"
        echo "$part"
    done
}

print_parts() {
    while read -r part; do
        read -r _ took <"$dir/$part.end"
        echo "==== $part, $took s"
        if [ -e "$dir/$part.first" ]; then
            grep -E '^not ok|FAILED|failed' "$dir/$part.first"
            echo "---- $part: the above failed once, and so all of it ran again"
        fi
        cat "$dir/$part.txt"
    done
}

# Passed, failed and skipped in a part: its last closing line, or the lines of a script
count_part() { # part
    ended=1
    [ -e "$dir/$1.end" ] && read -r ended _ <"$dir/$1.end"
    awk -v ended="$ended" '
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p = $1; f = $3; s = $5; closed = 1 }
        /^ok / { oks++ }
        /^not ok / { nots++ }
        /^skip / { skips++ }
        END {
            if (!closed) { p = oks; f = nots; s = skips }
            if (p + f + s == 0 || (ended != 0 && f == 0)) f++
            print p + 0, f + 0, s + 0
        }' "$dir/$1.txt"
}

# All that it started is in its process group.
trap 'trap - INT TERM HUP; kill 0' INT TERM HUP

"$make" exportws >"$dir/built" 2>&1 || cat "$dir/built"
{
    run_lane "$named $timed" "$@" &
    run_lane "$untimed" "$@" &
    wait
} | print_parts &
wait $!

passed=0
failed=0
skipped=0
echo "==== all"
for part; do
    read -r p f s <<END
$(count_part "$part")
END
    read -r _ took <"$dir/$part.end"
    echo "$part: $p passed, $f failed, $s skipped, $took s"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
if [ "${CI:-}" = true ]; then failed=$((failed + skipped)) skipped=0; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
