#!/bin/sh
# What the object of an embedder asks of its surroundings, and leaves in them. For CC, and gcc and
# clang if they are here: exports only exportws_*; calls nothing that allocates, prints, ends the
# process or installs a signal handler; has no data that can be written.
#
#   test/symbols.sh        one line for each check: ok NAME | not ok NAME: WHY | skip NAME: WHY
#
# Environment: CC, NM (nm). CFLAGS are left out: what sanitizers and -flto add is not the source's.
set -u
cd "$(dirname "$0")/.." || exit 1

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
nm=${NM:-nm}
failed=0

# Names that may not be called; the printf family with all its front ends, and what signals bring.
forbidden='malloc|calloc|realloc|free|reallocarray|strdup|strndup|posix_memalign|aligned_alloc'
forbidden="$forbidden|alloca|mmap|sbrk|brk"
forbidden="$forbidden|v?f?printf|v?s?n?printf|v?dprintf|v?asprintf|v?syslog|perror|f?puts|f?putc"
forbidden="$forbidden|putchar|fopen|fdopen|fwrite|fread|fclose|fflush|stdin|stdout|stderr"
forbidden="$forbidden|__v?f?printf_chk|__v?s?n?printf_chk|__v?dprintf_chk"
forbidden="$forbidden|exit|_exit|_Exit|quick_exit|abort|atexit|__assert_fail|__assert|raise|kill"
forbidden="$forbidden|(__sysv_|__bsd_|bsd_)?signal|sigset|sigaction|sigprocmask|pthread_sigmask"
forbidden="$forbidden|alarm|setitimer|siginterrupt"
forbidden="$forbidden|getenv|setenv|fork|system|popen|getaddrinfo|gethostbyname|localtime|gmtime"
forbidden="$forbidden|strtok|strerror_l|setlocale|pthread_create|longjmp|setjmp"

report() { # name, what is wrong, in lines
    if [ -z "$2" ]; then
        echo "ok $1"
    else
        echo "not ok $1: $(echo "$2" | tr '\n' ' ')"
        failed=1
    fi
}

# The letters: T and so on are code, R is read-only; D, B, G, S, C and their small ones are data
# that can be written. Constants that hold addresses may stand in .data.rel.ro: d in nm, read-only
# later.
check() { # compiler
    name=$(echo "$1" | tr -c 'a-zA-Z0-9\n' _)
    if ! $1 -std=c99 -O2 -DEXPORTWS_NO_MAIN -c -o "$tmp/o.o" exportws.c 2>"$tmp/errors"; then
        echo "not ok ${name}_compiles: $(head -n 1 "$tmp/errors")"
        failed=1
        return
    fi
    $nm "$tmp/o.o" >"$tmp/symbols" || exit 1
    report "${name}_exports_only_exportws" \
        "$(awk 'NF == 3 && $2 ~ /[A-TV-Z]/ && $3 !~ /^_?exportws_[a-z]/ { print $3 }' "$tmp/symbols")"
    report "${name}_exports_all_of_the_header" "$(
        sed -n 's/^[a-z][a-z0-9_ *]*[ *]\(exportws_[a-z_]*\)(.*/\1/p' exportws.h | sort -u >"$tmp/header"
        awk '$2 == "T" { sub(/^_/, "", $3); print $3 }' "$tmp/symbols" | sort -u >"$tmp/object"
        comm -3 "$tmp/header" "$tmp/object" | tr -d '\t')"
    report "${name}_calls_nothing_forbidden" "$(
        awk '$1 == "U" { sub(/@.*/, "", $2); print $2 }' "$tmp/symbols" | grep -Ex "$forbidden")"
    case $1 in
    tcc*)
        echo "ok ${name}_has_no_writable_data: not asked, it has no read-only section for constants"
        return
        ;;
    esac
    report "${name}_has_no_writable_data" "$(
        awk 'NF == 3 && $2 ~ /[BbCDdGgSs]/ { print $3 }' "$tmp/symbols" | while read -r symbol; do
            case $(objdump -t "$tmp/o.o" | awk -v s="$symbol" '$NF == s { print $(NF - 2) }') in
            .data.rel.ro*) ;;
            *) echo "$symbol" ;;
            esac
        done)"
}

for compiler in "${CC:-}" gcc clang; do
    [ -n "$compiler" ] || continue
    case " ${done:-} " in *" $compiler "*) continue ;; esac
    done="${done:-} $compiler"
    # shellcheck disable=SC2086  # CC may be several words
    if command -v ${compiler%% *} >/dev/null 2>&1; then check "$compiler"; fi
done
exit "$failed"
