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
#                          test is never looked at. It does not know lstat64(), which lstat() is with
#                          64 bits for a file's size: hence _FILE_OFFSET_BITS, which is the same here
#   valgrind               memcheck, on the unit tests and the server, with descriptors counted. With
#                          LEAN=1 (make verify) not for options.py, curl.sh, service.py, test_java and
#                          test_rfc9112: hundreds of short servers, whose starting takes minutes, and
#                          that the others look at
#
# What is left out: test_header.sh, symbols.sh, install.sh look at no running code of ours; for
# browser.py the server does what it does for websockets.py. A plain -O0 leaves more to be seen than
# an optimiser would, and is built in a fourth of the time.
set -u
cd "$(dirname "$0")/.." || exit 1

make=${MAKE:-make}
passed=0
failed=0
skipped=0
options=

# make, with a build of its own: folder, compiler, flags; then what else make is told
build() {
    where=$1 cc=$2 flags=$3
    shift 3
    "$make" SAN=0 BUILD="$where" PROGRAM="$where/exportws" CC="$cc" CFLAGS="$flags" LDFLAGS= STATICS= \
        BROWSER= "$@"
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
# 1, 2 and those that were open before the program began. A server that a second signal ends leaves
# all it had, the pipe that exportws_start made as well, which exportws_end closes last.
is_harmless() { # name, report
    if [ "$1" != valgrind ]; then
        grep -q "Perhaps you're using ulimit -v" "$2"
        return
    fi
    awk '
        / ERROR SUMMARY: / && $4 != 0 || /Exit program on first error/ { bad = 1 }
        / Open .*file descriptor [0-9]+|Open .*socket [0-9]+/ {
            for (i = 1; i < NF; i++) if ($i == "descriptor" || $i == "socket") fd = $(i + 1) + 0
            opened = fd > 2
            next
        }
        opened && / at .*: pipe / { piped = 1 }
        opened && piped && / by .*: exportws_start / { abrupt = 1 }
        opened == 1 && !/inherited from parent/ { left = 1 }
        { opened = opened ? 2 : 0 }
        /^==[0-9]+== *$/ { opened = piped = 0 }
        END { exit bad || (left && !abrupt) }' "$2"
}

# Silence has to be earned: a program with a fault of each kind has to leave a report, and that has
# to be taken for one.
prove() { # compiler, flags, kind...
    cat >"$dir/fault.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int *unset = malloc(2 * sizeof *unset), number = 2147483645;
    if (argv[1][0] == 'm') unset[argc] = argc;           /* memory: behind the end */
    if (argv[1][0] == 'n') printf("%d\n", number + argc + argc); /* number: overflow */
    if (argv[1][0] == 'u' && unset[0]) puts("yes");      /* unset: nobody wrote it */
    if (argv[1][0] == 'd') dup(0);                       /* descriptor: still open at the end */
    free(unset);
    return 0;
}
END
    # shellcheck disable=SC2086  # flags
    $1 $2 -o "$dir/fault.program" "$dir/fault.c" >>"$dir/output" 2>&1
    case $dir in
    *valgrind) wrap "$dir/fault.program" "$dir/fault" ;;
    *) cp "$dir/fault.program" "$dir/fault" ;;
    esac
    shift 2
    for kind; do
        ASAN_OPTIONS=$options UBSAN_OPTIONS=$options MSAN_OPTIONS=$options \
            "$dir/fault" "$kind" >>"$dir/output" 2>&1 </dev/null
        seen=
        for report in "$dir"/report.*; do
            [ -s "$report" ] && ! is_harmless "${dir#build/san-}" "$report" && seen=1
        done
        rm -f "$dir"/report.*
        if [ -n "$seen" ]; then passed=$((passed + 1)); else
            failed=$((failed + 1))
            echo "not ok ${dir#build/san-}: it says nothing of a fault: $kind"
        fi
    done
}

run_check() { # name, compiler, flags, kinds of fault it has to see, how much slower
    dir=build/san-$1
    mkdir -p "$dir"
    rm -f "$dir"/report.*
    options=log_path=$PWD/$dir/report:halt_on_error=1:print_stacktrace=1
    build "$dir" "$2" "$3" -j 2 programs >"$dir/output" 2>&1
    # shellcheck disable=SC2086  # words
    prove "$2" "$3" $4
    CI='' EXPORTWS_TEST_WATCHED=1 EXPORTWS=$dir/exportws ASAN_OPTIONS=$options \
        UBSAN_OPTIONS=$options MSAN_OPTIONS=$options EXPORTWS_TEST_SLOW="$5" TIME_LIMIT=600 \
        build "$dir" "$2" "$3" check >>"$dir/output" 2>&1
    grep -v '^gcc\|^clang\|^make' "$dir/output" | sed '$d'
    add_up "$1"
}

run_asan_gcc() {
    run_check asan-gcc gcc "-O0 -w -fsanitize=address,undefined -fno-sanitize-recover=all \
        -static-libubsan" "memory number" 4 # the shared one knows no log_path
}

run_asan_clang() {
    run_check asan-clang clang "-O0 -w -fno-sanitize-recover=all \
        -fsanitize=address,undefined,local-bounds,implicit-conversion" "memory number" 4
}

run_msan() {
    run_check msan clang "-O0 -w -fsanitize=memory -fsanitize-memory-track-origins \
        -fno-sanitize-recover=all -D_FILE_OFFSET_BITS=32" unset 6
}

# A script in place of a program, which runs it under valgrind
wrap() { # program, script
    {
        echo "#!/bin/sh"
        echo "exec valgrind --log-file='$PWD/$dir/report.%p' --track-fds=yes --leak-check=full \\"
        echo "    --error-exitcode=99 --exit-on-first-error=yes '$PWD/$1' \"\$@\""
    } >"$2"
    chmod +x "$2"
}

run_valgrind() {
    dir=build/san-valgrind
    mkdir -p "$dir/bin"
    rm -f "$dir"/report.*
    build "$dir/bin" gcc "-O1 -w" -j 2 programs >"$dir/output" 2>&1
    prove gcc "-O0 -w" memory unset descriptor
    inside=
    for program in $(build "$dir/bin" gcc -O1 -s list-inside) "$dir/bin/exportws" "$dir/bin/echo" \
        "$dir/bin/embed" "$dir/bin/worker"; do
        wrap "$program" "$dir/${program##*/}"
        case $program in */test_*) inside="$inside $dir/${program##*/}" ;; esac
    done
    outside=$(build "$dir/bin" gcc -O1 -s list-outside)
    if [ "${LEAN:-}" = 1 ]; then
        for left_out in options.py curl.sh service.py test_java test_rfc9112; do
            outside=$(echo " $outside" | sed "s, [^ ]*/$left_out,,")
        done
    fi
    # shellcheck disable=SC2086  # words
    CI='' EXPORTWS_TEST_WATCHED=1 EXPORTWS_TEST_VALGRIND=1 EXPORTWS=$dir/exportws BUILD=$dir \
        EXPORTWS_TEST_SLOW=10 TIME_LIMIT=900 JOBS=${JOBS:-3} \
        test/run $outside $inside >>"$dir/output" 2>&1
    grep -v '^gcc\|^make' "$dir/output" | sed '$d'
    add_up valgrind
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
