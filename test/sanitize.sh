#!/bin/sh
# The whole suite once more, with something looking over its shoulder:
#
#   test/sanitize.sh [asan-gcc] [asan-clang] [msan] [valgrind]      all four when none is named
#
# Each builds everything in a folder of its own, build/san-NAME, and is a run of test/run: any
# report - of the server, of a unit test, at its end or before - is a failed test. The last line
# adds them up. Reports stay in build/san-NAME/report.*.
#
#   asan-gcc, asan-clang   AddressSanitizer with leaks, UndefinedBehaviorSanitizer
#   msan                   MemorySanitizer: no decision is made on bytes that nobody wrote. The
#                          system's cmocka is not instrumented, and need not be: what it gives to a
#                          test is never looked at
#   valgrind               memcheck, on the unit tests and the server, with descriptors counted
set -u
cd "$(dirname "$0")/.." || exit 1

make=${MAKE:-make}
passed=0
failed=0
skipped=0

# make, with a build of its own: folder, compiler, flags; then what else make is told
build() {
    dir=$1 cc=$2 flags=$3
    shift 3
    "$make" SAN=0 BUILD="$dir" PROGRAM="$dir/exportws" CC="$cc" CFLAGS="$flags" LDFLAGS= STATICS= \
        "$@"
}

# Adds a run's closing line up, and the reports it left: each is a failure, too
add_up() { # name
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$dir/output" | tail -n 1)
    [ -n "$line" ] || line="0 passed, 1 failed, 0 skipped"
    # shellcheck disable=SC2086  # words, and meant to be
    set -- "$1" $line
    passed=$((passed + $2)) failed=$((failed + $4)) skipped=$((skipped + $6))
    for report in "$dir"/report.*; do
        if [ ! -s "$report" ] || is_harmless "$1" "$report"; then continue; fi
        echo "---- $1: $report"
        head -n 60 "$report"
        failed=$((failed + 1))
    done
    echo "$1: $line"
}

# A sanitizer that found no room for its own tables (a test sets a memory limit, and then skips), or
# a log of valgrind's that says that all is well: no error, and no descriptor open at the end but 0,
# 1, 2 and those that were open before the program began.
is_harmless() { # name, report
    if [ "$1" != valgrind ]; then
        grep -q "Perhaps you're using ulimit -v" "$2"
        return
    fi
    awk '
        / ERROR SUMMARY: / && $4 != 0 { bad = 1 }
        / Open .*file descriptor [0-9]+|Open .*socket [0-9]+/ {
            for (i = 1; i < NF; i++) if ($i == "descriptor" || $i == "socket") fd = $(i + 1) + 0
            pending = fd > 2
            next
        }
        pending { if (!/inherited from parent/) bad = 1; pending = 0 }
        END { exit bad }' "$2"
}

run_check() { # name, compiler, flags
    dir=build/san-$1
    mkdir -p "$dir"
    rm -f "$dir"/report.*
    options=log_path=$PWD/$dir/report:halt_on_error=1:print_stacktrace=1
    build "$dir" "$2" "$3" -j 2 programs >"$dir/output" 2>&1
    CI='' EXPORTWS=$dir/exportws ASAN_OPTIONS=$options \
        UBSAN_OPTIONS=$options MSAN_OPTIONS=$options EXPORTWS_TEST_SLOW=3 TIME_LIMIT=300 \
        build "$dir" "$2" "$3" check >>"$dir/output" 2>&1
    grep -v '^gcc\|^clang\|^mkdir' "$dir/output" | sed '$d'
    add_up "$1"
}

run_asan_gcc() {
    run_check asan-gcc gcc "-O1 -fno-omit-frame-pointer -fsanitize=address,undefined \
        -fno-sanitize-recover=all"
}

run_asan_clang() {
    run_check asan-clang clang "-O1 -fno-omit-frame-pointer \
        -fsanitize=address,undefined,local-bounds,implicit-conversion -fno-sanitize-recover=all"
}

run_msan() {
    run_check msan clang "-O1 -fno-omit-frame-pointer -fsanitize=memory \
        -fsanitize-memory-track-origins -fno-sanitize-recover=all"
}

# A script in place of a program, which runs it under valgrind
wrap() { # program, script
    {
        echo "#!/bin/sh"
        echo "exec valgrind -q --log-file='$PWD/$dir/report.%p' --track-fds=yes --leak-check=full \\"
        echo "    --error-exitcode=99 --exit-on-first-error=yes '$PWD/$1' \"\$@\""
    } >"$2"
    chmod +x "$2"
}

run_valgrind() {
    dir=build/san-valgrind
    mkdir -p "$dir/bin"
    rm -f "$dir"/report.*
    build "$dir/bin" "${CC:-cc}" "-O1" programs >"$dir/output" 2>&1
    for program in $(build "$dir/bin" cc -O1 -s list-inside) "$dir/bin/exportws" "$dir/bin/echo"; do
        wrap "$program" "$dir/${program##*/}"
    done
}

[ $# -gt 0 ] || set -- asan-gcc asan-clang msan valgrind
for name; do
    case $name in
    asan-gcc) run_asan_gcc ;;
    asan-clang) run_asan_clang ;;
    msan) run_msan ;;
    valgrind) run_valgrind ;;
    *) echo "sanitize: $name is none of asan-gcc, asan-clang, msan, valgrind" >&2; exit 2 ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
