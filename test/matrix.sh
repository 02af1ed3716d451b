#!/bin/sh
# Builds and tests with every compiler and for every machine that is promised:
#
#   test/matrix.sh [ROW...]        all rows, or those that are named (a prefix is enough)
#   test/matrix.sh --list          their names
#
#   check-*    compiles with POSIX.1-2008 and nothing else, and without MSG_NOSIGNAL, SOCK_CLOEXEC
#              and accept4, with SO_NOSIGPIPE instead, as on a Mac
#   bmake      BSD make builds, installs and uninstalls, and runs the unit tests
#   gcc-*, clang-*, tcc            the whole suite, built with it, and the corpus of the fuzzers
#   musl-*     a static binary of musl-gcc; no cmocka for musl is packaged, so that all tests from
#              outside run against it, those of the embedding examples among them, and inside the
#              model and the corpus, which need none
#   i686, arm, aarch64, mipsel, riscv64, s390x
#              a static binary of Debian's cross compilers, under qemu-user, in the same way. Where
#              Debian has cmocka for the machine, the unit tests run there, too: its package is
#              fetched and taken apart in build/matrix/cmocka, not installed
#
# Each row has a folder of its own, build/matrix/ROW, with its output. A warning of the compiler's is
# a failure. The last line adds up. A row whose tools are missing is skipped, and failed with CI=true
# or STRICT=1. EXPORTWS_TEST_SLOW stretches the deadlines (4 under qemu), JOBS says how many test
# programs run at a time (3).
set -u
cd "$(dirname "$0")/.." || exit 1

make=${MAKE:-make}
out=build/matrix
strict_flags='-std=c99 -pedantic-errors -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes
    -Werror'
levels='O0 O2 Os O3-flto'
jobs=${JOBS:-3}
machines='i686 arm aarch64 mipsel riscv64 s390x'
passed=0
failed=0
skipped=0

has() { command -v "$1" >/dev/null 2>&1; }

triplet() { # machine
    case $1 in
    arm) echo arm-linux-gnueabihf ;;
    *) echo "$1-linux-gnu" ;;
    esac
}

architecture() { # machine: what Debian calls it
    case $1 in
    i686) echo i386 ;;
    arm) echo armhf ;;
    aarch64) echo arm64 ;;
    *) echo "$1" ;;
    esac
}

emulator() { # machine
    case $1 in
    i686) echo qemu-i386 ;;
    *) echo "qemu-$1" ;;
    esac
}

flags_of() { # row: what follows its first dash
    echo "-${1#*-}" | sed 's/-flto/ -flto=auto/'
}

ok() {
    passed=$((passed + 1))
    echo "ok $1${2:+: $2}"
}

not_ok() {
    failed=$((failed + 1))
    echo "not ok $1: $2"
}

skip() {
    if [ "${CI:-}" = true ] || [ "${STRICT:-}" = 1 ]; then
        not_ok "$1" "$2 (skipped: no excuse here)"
        return
    fi
    skipped=$((skipped + 1))
    echo "skip $1: $2"
}

# What the runs of test/run came to: their counts, added up, when there are as many as there should
verdict() { # row, runs
    line=$(awk -v runs="$2" '
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { n++; p += $1; f += $3; s += $5 }
        END { if (n == runs) print p " passed, " f " failed, " s " skipped" }' "$dir/output")
    warned=$(cat "$dir"/built* "$dir/output" 2>/dev/null | grep -a -m 1 'warning:')
    took="$(($(date +%s) - began)) s"
    case $line,$warned in
    ,*) not_ok "$1" "it came to no count: $(tail -n 1 "$dir/output")" ;;
    *', 0 failed, '*,) ok "$1" "$line, $took" ;;
    *', 0 failed, '*) not_ok "$1" "$warned" ;;
    *)
        not_ok "$1" "$line, $took"
        sed -n '/^failed:/,/ passed, /p' "$dir/output" | sed '$d; s/^/    /'
        ;;
    esac
}

# ----- compile checks -----

# The system's headers with three names taken away, as if they had never been there, and one that a
# Mac shows only to those who ask.
make_bare_headers() {
    mkdir -p "$dir/include/sys"
    cat >"$dir/include/sys/socket.h" <<'END'
#include_next <sys/socket.h>
#ifdef _DARWIN_C_SOURCE
#define SO_NOSIGPIPE 0x1022
#else
#error neither MSG_NOSIGNAL nor SO_NOSIGPIPE
#endif
#undef MSG_NOSIGNAL
#undef SOCK_CLOEXEC
#undef SOCK_NONBLOCK
#define accept4 accept4_is_not_here(
END
    printf '#include_next <fcntl.h>\n#undef F_DUPFD_CLOEXEC\n' >"$dir/include/fcntl.h"
}

compile() { # row, compiler, flags
    # shellcheck disable=SC2086  # words, and meant to be
    for define in -DEXPORTWS_NO_MAIN -DEXPORTWS_MAIN; do
        $2 $3 $define -c -o "$dir/o.o" exportws.c 2>"$dir/errors" && continue
        not_ok "$1" "$(grep -m 1 -E 'error|warning' "$dir/errors")"
        return
    done
    ok "$1"
}

row_check() { # row: check-COMPILER
    compiler=${1#check-}
    warnings=$strict_flags
    case $compiler in
    gcc | clang) ;;
    musl) compiler=musl-gcc ;;
    tcc) warnings='-std=c99 -Wall -Werror' ;;
    *) compiler=$(triplet "$compiler")-gcc ;;
    esac
    if ! has "$compiler"; then
        skip "$1" "no $compiler"
        return
    fi
    compile "$1-posix-alone" "$compiler" "$warnings -D_POSIX_C_SOURCE=200809L"
    if [ "$compiler" != tcc ]; then # it has no #include_next
        make_bare_headers
        compile "$1-as-on-a-mac" "$compiler" "$warnings -isystem $dir/include"
    fi
}

# ----- natively -----

row_bmake() {
    if ! has bmake; then
        skip "$1" 'no bmake'
        return
    fi
    {
        MAKEFLAGS= bmake test BUILD="$dir" PROGRAM="$dir/exportws" CFLAGS=-O0
        MAKEFLAGS= MAKE=bmake test/run test/install.sh
    } >"$dir/output" 2>&1
    verdict "$1" 2
}

row_native() { # row: gcc-O2 ...
    compiler=${1%%-*}
    if ! has "$compiler"; then
        skip "$1" "no $compiler"
        return
    fi
    flags=$(flags_of "$1")
    case $1 in
    clang-*flto) has ld.lld && flags="$flags -fuse-ld=lld" ;;
    esac
    if [ "$compiler" = tcc ]; then # its linker has no --wrap: tests that take calls over stay out
        flags=
        set -- "$1" CLOCKED= FAULTS=
    fi
    row=$1
    shift
    for target in '-k -j 2 programs' replay check; do
        # shellcheck disable=SC2086  # words, and meant to be
        TIME_LIMIT="${TIME_LIMIT:-300}" "$make" SAN=0 $target BUILD="$dir" PROGRAM="$dir/exportws" \
            CC="$compiler" CFLAGS="$flags" JOBS="$jobs" "$@"
    done >"$dir/output" 2>&1
    verdict "$row" 2
}

# ----- from outside -----

# The native side of the tests
build_native() {
    mkdir -p "$out/native"
    outside=$("$make" -s list-outside BUILD="$out/native")
    # shellcheck disable=SC2086  # words, and meant to be
    "$make" -s -j 2 $outside "$out/native/chaos" BUILD="$out/native" >"$out/native/output" 2>&1
}

# A script that becomes a program: one word, whatever it takes to run it, and the same process
write_script() { # name, words...
    name=$1
    shift
    printf '#!/bin/sh\nexec %s "$@"\n' "$*" >"$dir/$name.sh"
    chmod +x "$dir/$name.sh"
}

# Builds the model and the corpus' replays with "$compiler $flags", and leaves their scripts in
# $alone. One that could not be built is in there as well, and fails.
build_alone() {
    alone=
    programs=$("$make" -s list-alone BUILD="$dir")
    # shellcheck disable=SC2086  # words, and meant to be
    "$make" -k -s -j 2 $programs BUILD="$dir" CC="$compiler" CFLAGS="$flags" \
        >"$dir/built.alone" 2>&1 || rm -f $programs
    for program in $programs; do
        write_script "${program##*/}" "$run" "$PWD/$program"
        alone="$alone $program.sh"
    done
}

# Builds server, echo and examples with "$compiler $flags", and tests them with "$run" before them,
# behind those in $inside and $alone
test_outside() { # row, slow
    rm -f "$dir/exportws" "$dir/worker"
    # shellcheck disable=SC2086  # words, and meant to be
    {
        $compiler $strict_flags $flags -o "$dir/exportws" exportws.c -pthread &&
            for host in echo embed worker; do
                $compiler $strict_flags $flags -DEXPORTWS_NO_MAIN -o "$dir/$host" "test/$host.c" \
                    exportws.c -pthread || break
            done
    } >"$dir/built" 2>&1
    if [ ! -x "$dir/worker" ]; then
        not_ok "$1" "$(grep -m 1 -E 'error|undefined|cannot' "$dir/built")"
        return
    fi
    write_script server "$run" "$PWD/$dir/exportws"
    write_script echo "$run" "$PWD/$dir/echo"
    build_native
    build_alone
    # shellcheck disable=SC2086  # words, and meant to be
    EXPORTWS="$PWD/$dir/server.sh" EXPORTWS_ECHO="$PWD/$dir/echo.sh" BUILD=$dir RUN=$run \
        CC=$compiler CFLAGS=$flags POSTS=20000 JOBS="$jobs" \
        EXPORTWS_TEST_SLOW="${EXPORTWS_TEST_SLOW:-$2}" TIME_LIMIT="${TIME_LIMIT:-$((300 * $2))}" \
        test/run $alone $inside $outside "$out/native/chaos" test/test_header.sh \
        >"$dir/output" 2>&1
    verdict "$1" 1
}

# Debian's cmocka for another machine, with package lists of its own beside the system's
fetch_cmocka() { # architecture
    here=$PWD/$out/cmocka/$1
    [ -n "$(find "$here" -name libcmocka.so 2>/dev/null)" ] && return
    has apt-get && has dpkg || return
    mkdir -p "$here/lists/partial" "$here/archives/partial"
    : >"$here/status"
    apt-get indextargets 'Created-By: Packages' 'Origin: Debian' 'Component: main' \
        --format 'deb $(REPO_URI) $(RELEASE) main' | grep ' [a-z]* main$' | sort -u \
        >"$here/sources.list"
    apt="-o Dir::State::lists=$here/lists -o Dir::State::status=$here/status -o Dir::Cache=$here
        -o Dir::Etc::sourcelist=$here/sources.list -o Dir::Etc::sourceparts=/dev/null
        -o APT::Architecture=$1 -o APT::Architectures=$1 -o APT::Sandbox::User=root"
    # shellcheck disable=SC2086  # words, and meant to be
    (cd "$here" && apt-get $apt update && apt-get $apt download libcmocka-dev libcmocka0 &&
        for package in *.deb; do dpkg -x "$package" .; done) >"$here/output" 2>&1
    rm -rf "$here/lists" "$here"/*.bin
}

# Builds the unit tests for a machine that there is a cmocka for, with "$compiler -O2", and leaves
# their scripts in $inside
build_inside() { # machine
    inside=
    fetch_cmocka "$(architecture "$1")"
    library=$(find "$PWD/$out/cmocka/$(architecture "$1")" -name libcmocka.so 2>/dev/null)
    [ -n "$library" ] || return
    "$make" -k -s -j 2 $("$make" -s list-inside BUILD="$dir") BUILD="$dir" CC="$compiler" CFLAGS=-O2 \
        CMOCKA="-isystem ${library%/lib/*}/include -L${library%/*} -lcmocka" >"$dir/built.inside" 2>&1
    for program in $("$make" -s list-inside BUILD="$dir"); do
        write_script "${program##*/}" "$run -L /usr/$(triplet "$1") \
            -E LD_LIBRARY_PATH=${library%/*} $PWD/$program"
        inside="$inside ${program%/*}/${program##*/}.sh"
    done
}

row_musl() { # row: musl-O2 ...
    compiler=musl-gcc flags="$(flags_of "$1") -static" run= inside=
    if has musl-gcc; then test_outside "$1" 1
    else skip "$1" 'no musl-gcc'
    fi
}

row_machine() { # row: arm ...
    compiler=$(triplet "$1")-gcc flags='-O2 -static' run=$(emulator "$1")
    if ! has "$compiler"; then skip "$1" "no $compiler"
    elif ! has "$run"; then skip "$1" "no $run"
    else
        build_inside "$1"
        test_outside "$1" 4
    fi
}

# ----- which -----

rows() {
    for compiler in gcc clang tcc musl $machines; do echo "check-$compiler"; done
    echo bmake
    for compiler in gcc clang; do
        for level in $levels; do echo "$compiler-$level"; done
    done
    echo tcc
    for level in $levels; do echo "musl-$level"; done
    for machine in $machines; do echo "$machine"; done
}

wanted() { # row, names...
    row=$1
    shift
    [ $# -eq 0 ] && return 0
    for name; do
        case $row in "$name"*) return 0 ;; esac
    done
    return 1
}

if [ "${1:-}" = --list ]; then
    rows
    exit
fi
for row in $(rows); do
    wanted "$row" "$@" || continue
    began=$(date +%s)
    dir=$out/$row
    mkdir -p "$dir"
    case $row in
    check-*) row_check "$row" ;;
    bmake) row_bmake "$row" ;;
    gcc-* | clang-* | tcc) row_native "$row" ;;
    musl-*) row_musl "$row" ;;
    *) row_machine "$row" ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
