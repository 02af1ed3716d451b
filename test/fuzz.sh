#!/bin/sh
# Fuzzes: builds and runs each harness with libFuzzer and, where it is, AFL++ (both at a time).
#
#   test/fuzz.sh [SECONDS [HARNESS...]]     60; head frame session
#
# Says how much was executed and covered, and counts each fuzzer's run as one test in its last line
# (with CI=true, one that is not here as a failed one). What is found ends it with status 1 and lies in
# build/fuzz/findings; build/fuzz/HARNESS FILE shows it again. What the fuzzers learn stays in
# build/fuzz/HARNESS.corpus for the next time; it begins with test/corpus/HARNESS-*. NICE=10 in the
# environment makes the fuzzers nice.
set -u
cd "$(dirname "$0")/.." || exit 1

seconds=${1:-60}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- head frame session

clang=${CLANG:-clang}
out=build/fuzz
findings=$out/findings
flags='-std=c99 -g -O1 -Wno-overlength-strings -DFUZZ_ENGINE'
nice=${NICE:+nice -n $NICE}
passed=0
failed=0
skipped=0
pids=

has() {
    command -v "$1" >/dev/null 2>&1
}

# shellcheck disable=SC2317  # by the traps
stop() {
    trap - EXIT INT TERM HUP
    for pid in $pids; do kill "$pid" 2>/dev/null; done
    wait
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The longest input that makes sense: a head may have 8 KiB.
longest() {
    [ "$1" = head ] && echo 9000 || echo 2000
}

build() { # harness
    # shellcheck disable=SC2086  # several flags
    $clang $flags -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -o "$out/$1" "test/fuzz_$1.c" || exit 1
    has afl-fuzz && has afl-clang-fast || return 0
    # shellcheck disable=SC2086
    AFL_QUIET=1 AFL_USE_ASAN=1 AFL_USE_UBSAN=1 afl-clang-fast $flags -fsanitize=fuzzer \
        -fno-sanitize-recover=all -o "$out/$1.afl" "test/fuzz_$1.c" || exit 1
}

run_libfuzzer() { # harness
    $nice "$out/$1" -max_total_time="$seconds" -max_len="$(longest "$1")" -timeout=10 -entropic=0 \
        -artifact_prefix="$findings/$1-libfuzzer-" -print_final_stats=1 \
        "$out/$1.corpus" >"$out/$1.log" 2>&1
}

run_afl() { # harness
    rm -rf "$out/$1.afl.out"
    AFL_NO_UI=1 AFL_SKIP_CPUFREQ=1 AFL_NO_AFFINITY=1 AFL_BENCH_UNTIL_CRASH=1 \
        AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_FAST_CAL=1 \
        $nice afl-fuzz -i "$out/$1.seeds" -o "$out/$1.afl.out" -V "$seconds" -t 10000 -m none \
        -G "$(longest "$1")" -- "$out/$1.afl" >"$out/$1.afl.log" 2>&1
}

# The last number behind a word in a log.
number() { # word, file
    sed -n "s/.*$1 *\([0-9][0-9]*\).*/\1/p" "$2" | tail -n 1
}

report_libfuzzer() { # harness, exit status
    log=$out/$1.log
    n=$(find "$findings" -name "$1-libfuzzer-*" | wc -l)
    echo "$1, libFuzzer: $(number stat::number_of_executed_units: "$log") executions," \
        "$(number 'cov:' "$log") of $(number '1 modules   (' "$log") edges, $((n)) findings"
    if [ "$2" -eq 0 ] && [ "$((n))" -eq 0 ]; then
        passed=$((passed + 1))
        return
    fi
    failed=$((failed + 1))
    grep -a -e '^not ok' -e 'runtime error' -e '==ERROR' "$log" || tail -n 20 "$log"
}

report_afl() { # harness
    stats=$out/$1.afl.out/default/fuzzer_stats
    if [ ! -e "$stats" ]; then
        echo "$1, AFL++: it did not start:"
        tail -n 20 "$out/$1.afl.log"
        failed=$((failed + 1))
        return
    fi
    n=0
    for found in "$out/$1.afl.out"/default/crashes/id* "$out/$1.afl.out"/default/hangs/id*; do
        [ -e "$found" ] || continue
        n=$((n + 1))
        cp "$found" "$findings/$1-afl-$n"
        "$out/$1" "$findings/$1-afl-$n" 2>&1 | grep -a -e '^not ok' -e 'runtime error' -e '==ERROR'
    done
    echo "$1, AFL++: $(number 'execs_done *:' "$stats") executions," \
        "$(number 'edges_found *:' "$stats") of $(number 'total_edges *:' "$stats") edges," \
        "$n findings"
    if [ "$n" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

# What all inputs that were found worth keeping cover of exportws.c.
report_lines() { # harness
    has gcc && has gcov || return 0
    rm -f "$out/fuzz_$1.gcda"
    gcc -std=c99 -w --coverage -c -o "$out/fuzz_$1.o" "test/fuzz_$1.c" &&
        gcc --coverage -o "$out/$1.lines" "$out/fuzz_$1.o" &&
        find "$out/$1.corpus" "$out/$1.afl.out/default/queue" -maxdepth 1 -type f \
            -exec "$out/$1.lines" {} + >/dev/null 2>&1
    gcov -n -b -o "$out" "$out/fuzz_$1.gcda" 2>/dev/null | awk -v name="$1" '
        /^File/ { ours = /exportws\.c/ }
        ours && /^(Lines|Branches) executed/ { sub(/.*executed:/, ""); said[++n] = $0 }
        END { if (n) print name ", exportws.c: lines " said[1] ", branches " said[2] }'
}

has "$clang" || { echo "fuzz.sh: $clang is needed (Debian: clang, and afl++)" >&2; exit 1; }
mkdir -p "$findings" || exit 1
for harness; do
    mkdir -p "$out/$harness.corpus" "$out/$harness.seeds"
    cp "test/corpus/$harness-"* "$out/$harness.seeds/"
    cp "test/corpus/$harness-"* "$out/$harness.corpus/"
    build "$harness"
done
for harness; do
    run_libfuzzer "$harness" &
    pids=$!
    if [ -x "$out/$harness.afl" ]; then
        run_afl "$harness" &
        pids="$pids $!"
    fi
    ended=0
    for pid in $pids; do
        wait "$pid" || [ "$pid" != "${pids%% *}" ] || ended=1 # the first is libFuzzer
    done
    pids=
    report_libfuzzer "$harness" "$ended"
    if [ -x "$out/$harness.afl" ]; then
        report_afl "$harness"
    else
        echo "$harness, AFL++: not here"
        skipped=$((skipped + 1))
    fi
    report_lines "$harness"
done
[ "$failed" -eq 0 ] || echo "findings are in $findings; show one again: $out/HARNESS FILE"
if [ "${CI:-}" = true ]; then failed=$((failed + skipped)) skipped=0; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
