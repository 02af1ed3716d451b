#!/bin/sh
# What Frama-C's EVA says of the parts of exportws.c that test/prove.c calls with every input up to
# a size: no step of them can be undefined, on three machines. A line for each part and machine: ok,
# not ok or skip.
#
#   test/prove.sh [SUBJECT...]      all of them when none is named
#
# MACHINES: of Frama-C's, if not these three
#
# A subject is shown when EVA ends with no alarm but those that stand here with their argument, says
# nothing else that would weaken what it has shown, and has reached every statement of the functions
# named here: of what is never reached anything can be shown. An argued alarm that is no longer
# there is a failure, too. First EVA looks at a file with faults in it, and has to name each.
#
# A subject's three machines run at a time. What is said is kept in build/prove.
set -u
cd "$(dirname "$0")/.." || exit 1

dir=build/prove
limit=300 # seconds of CPU
machines=${MACHINES:-gcc_x86_64 gcc_x86_32 ppc_32}
failed=0
looks=
mkdir -p "$dir" || exit 1

trap 'for one in $looks; do kill "${one#*:}" 2>/dev/null; done; exit 1' HUP INT TERM

# Sets what is looked for: options of EVA; functions of which every statement has to be reached;
# those that are taken at the word of their contract in test/prove.c, each of them a subject itself;
# alarms that are argued, as FUNCTION:KIND.
#
# Without `split` a function's ways are one to EVA where they meet; with slevel it keeps so many
# apart, with split-return those that a function returns with. Without `tests` what a condition has
# shown of a byte is forgotten at the next one.
#
# differing_blocks   that the two ends of a subtraction are in one object. They are: one is what
#                    memchr() has found in what begins at the other, or some bytes on from there.
#                    That it is not NULL is asked before, or it has led to no field. EVA can't say
#                    so: it calls a weak object (any_bytes in test/prove.c) what may be several.
# postcondition      of a function that is taken at its word: shown where it is the subject
subject() {
    argued='' taken='' options='-eva-slevel 200'
    tests='-eva-domains symbolic-locations'
    split="-from-verify-assigns -eva-slevel 100000 $tests"
    for one in find http_trim http_list_next ascii_span ascii_run host_size target_authority \
        head_request_line head_scan; do
        split="$split -eva-split-return-function $one:full"
    done
    case $1 in
    fault) functions=reached ;;
    frame)
        options="$options -eva-split-return-function frame_decode:full"
        functions='frame_decode frame_head_size frame_encode frame_unmask close_code_valid
            store_be' ;;
    utf8)
        options=''
        functions='utf8_feed utf8_lead utf8_valid' ;;
    digest)
        functions='sha1_block sha256_mix sha256_block sha_digest hmac_sha256 base64_encode
            key_accept load_be32 rotate_left' ;;
    chunk)
        options=''
        functions='chunk_blank_byte chunk_size_byte chunk_step chunk_feed hex_value http_tchar
            http_text' ;;
    layout) functions='arena_take power_of_two layout_inputs layout' ;;
    run)
        options="-eva-slevel 100000 $tests"
        functions='ascii_run ascii_span decimal_parse key_valid' ;;
    list)
        options=$split
        argued=http_list_next:differing_blocks
        functions='http_trim http_blank http_list_next http_list_flags http_list_ids ascii_equal
            ascii_same ascii_lower' ;;
    host)
        options=$split
        argued=host_size:differing_blocks
        functions='host_size host_valid hex_value ascii_digit' ;;
    target)
        options=$split
        taken=host_valid
        argued=host_size:differing_blocks
        functions='target_authority target_valid head_check token_decode' ;;
    request)
        options=$split
        taken=target_valid
        functions='head_request_line method_verb' ;;
    note)
        options=$split
        taken='http_list_flags http_list_ids host_valid'
        argued=head_note:differing_blocks
        functions=head_note ;;
    field)
        options=$split
        taken=head_note
        argued=head_field_line:differing_blocks
        functions=head_field_line ;;
    head)
        options=$split
        taken='head_field_line head_request_line head_check'
        functions='head_scan head_parse' ;;
    *)
        echo "prove: $1 is none of $subjects" >&2
        exit 2 ;;
    esac
    for one in $taken; do
        options="$options -eva-use-spec $one"
        argued="$argued $one:postcondition"
    done
}

subjects='frame utf8 digest chunk layout run list host target request note field head'

cat >"$dir/fault.c" <<'END'
#include <string.h>
void prove_fault(void);
volatile int any;
int reached(unsigned char *p)
{
    int unset, n = any & 3, few = any & 63, sum = p[n];
    if (any) sum += unset;
    if (any) sum += 1 << few;
    if (any) sum = any + any;
    if (any) memcpy(p, "abcd", (size_t)(any & 3));
    if (n > 3) sum = 0;
    return sum / n;
}
void prove_fault(void) { unsigned char p[2] = {0}; reached(p); }
END
faults='mem_access initialization shift signed_overflow precondition_of_memcpy division_by_zero'

# shellcheck disable=SC2086,SC3045  # options are words; ulimit -t: dash, ash, bash and ksh have it
look() { # subject, machine
    name=$1_$2 file=test/prove.c
    [ "$1" = fault ] && file=$dir/fault.c
    rm -f "$dir/$name".*
    subject "$1"
    (
        ulimit -t "$limit"
        exec frama-c -machdep "$2" -no-unicode \
            -cpp-extra-args='-DEXPORTWS_NO_MAIN -DEXPORTWS_NO_PAGES' "$file" \
            -eva -main "prove_$1" -eva-alloc-builtin fresh -eva-no-alloc-returns-null \
            -eva-no-show-progress $options \
            -then -metrics -metrics-eva-cover -report-no-proven -report-csv "$dir/$name.csv"
    ) >"$dir/$name.said" 2>&1 &
    looks="$looks $2:$!"
}

# What is wrong with what was said: nothing, when it is as it has to be
judge() { # name, exit status
    if [ "$2" -gt 128 ]; then
        echo "ended by a signal: more than $limit s?"
        return
    fi
    [ "$2" -eq 0 ] || echo "exit status $2"
    # Not shown: FUNCTION:KIND. What is asked of a library function stands with its caller, too.
    # What a thing that is assigned comes from matters to EVA for pointers: no contract assigns one.
    awk -F '\t' 'NR > 1 && $6 !~ /^(Valid|Considered valid|Dead|Unreachable)$/ &&
        !($1 ~ /^FRAMAC_SHARE/ && $5 ~ /condition/) && $5 != "from clause" {
            gsub(/ /, "_", $5); print $4 ":" $5 }' \
        "$dir/$1.csv" | sort -u >"$dir/$1.alarms"
    for one in $argued; do echo "$one"; done | sort -u >"$dir/$1.argued"
    comm -23 "$dir/$1.alarms" "$dir/$1.argued" | sed 's/^/not shown: /'
    comm -13 "$dir/$1.alarms" "$dir/$1.argued" | sed 's/^/argued, but no longer there: /'
    # Alarms are in the table; other warnings are not.
    grep -E 'Warning|User Error|aborted' "$dir/$1.said" | grep -v '^\[eva:alarm\]'
    for one in $functions; do
        grep -Eq "^ *$one: .*\(100\.0%\)" "$dir/$1.said" || echo "not all of $one was reached"
    done
}

# Of the file with faults all that is wrong has to be in what judge() has said.
judge_fault() { # name
    for one in $faults; do
        grep -q "^not shown: .*:$one$" "$dir/$1.wrong" || echo "$one was not seen"
    done >"$dir/$1.missed"
    grep -q 'not all of reached' "$dir/$1.wrong" ||
        echo 'a statement that is never reached was not seen' >>"$dir/$1.missed"
    mv "$dir/$1.missed" "$dir/$1.wrong"
}

if ! command -v frama-c >/dev/null 2>&1; then
    echo "skip prove: no frama-c here"
    exit 0
fi

# shellcheck disable=SC2086  # subjects are words
[ $# -gt 0 ] || set -- $subjects
for subject in fault "$@"; do
    looks=
    for machine in $machines; do look "$subject" "$machine"; done
    for one in $looks; do
        name=${subject}_${one%:*}
        wait "${one#*:}"
        judge "$name" $? >"$dir/$name.wrong" 2>&1
        [ "$subject" != fault ] || judge_fault "$name"
        [ -s "$dir/$name.wrong" ] || { echo "ok prove_$name"; continue; }
        echo "not ok prove_$name: $(head -n 1 "$dir/$name.wrong")"
        sed 1d "$dir/$name.wrong"
        failed=1
    done
done
exit "$failed"
