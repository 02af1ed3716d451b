#!/bin/sh
# How much of exportws.c the tests reach: builds all of them, and the program, with --coverage -O0
# -DNDEBUG in build/cover, runs them (make check, faults and replay), adds up what each left,
# and prints a table by section.
#
#   test/cover.sh [--report]      --report: no new run, only the table
#
# Exit status 1 when a test fails or a line or a branch is left; build/cover/uncovered.txt lists
# them. Nothing is excluded: what can't be reached is taken out of exportws.c. A branch is gcc's:
# each way a condition can go, each operand of && and || for itself.
set -u
cd "$(dirname "$0")/.." || exit 1

dir=build/cover
make=${MAKE:-make}

# A program that a second signal ends writes its counts, too: gcc's run-time library does that at
# exit(), of which _exit() knows nothing.
make_exit() {
    cat >"$dir/exit.c" <<'END'
#include <unistd.h>
void __gcov_dump(void);
void __real__exit(int status);
void __wrap__exit(int status);
void __wrap__exit(int status)
{
    __gcov_dump();
    __real__exit(status);
}
END
    gcc -O1 -c -o "$dir/exit.o" "$dir/exit.c"
}

build() { # goal...
    "$make" SAN=0 BUILD="$dir" PROGRAM="$dir/exportws" CC=gcc LDFLAGS= STATICS= BROWSER= \
        CFLAGS="--coverage -O0 -DNDEBUG" LDLIBS="-Wl,--wrap=_exit $dir/exit.o" "$@" 2>&1
}

# The faults need half a core and as long as all the rest: both at once.
run_tests() {
    mkdir -p "$dir" && make_exit || exit 1
    find "$dir" -name '*.gcda' -exec rm -f {} +
    if ! build -k -j 2 binaries >"$dir/built"; then
        cat "$dir/built"
        exit 1
    fi
    build -k faults replay >"$dir/output.apart" &
    build check >"$dir/output"
    wait
    cat "$dir/output.apart" >>"$dir/output"
    sed -n '/^---- .* failed; it said:$/,/^---- .* passed, .* s$/p' "$dir/output"
    awk '
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $1; f += $3; s += $5; runs++ }
        END {
            f += 3 - runs # one that came to no count has failed
            print p " passed, " f " failed, " s " skipped"
            exit f > 0
        }' p=0 f=0 s=0 "$dir/output"
}

tested=0
[ "${1:-}" = --report ] || run_tests || tested=1
python3 - "$dir" "$dir/uncovered.txt" <<'END'
import collections, glob, json, os, re, subprocess, sys
folder, uncovered = sys.argv[1:]
lines, branches = collections.Counter(), {}
for file in glob.glob(folder + "/*.gcda"):
    said = subprocess.run(["gcov", "-b", "-j", "-t", file], capture_output=True, check=True).stdout
    for unit in json.loads(said)["files"]:
        if os.path.normpath(unit["file"]) != "exportws.c":
            continue
        for line in unit["lines"]:
            number, counts = line["line_number"], [b["count"] for b in line["branches"]]
            lines[number] += line["count"]
            before = branches.setdefault(number, [0] * len(counts))
            if len(before) != len(counts):
                sys.exit("cover: %s has other branches in line %d: built anew?" % (file, number))
            branches[number] = [a + b for a, b in zip(before, counts)]
source = open("exportws.c", encoding="utf-8").read().splitlines()
section, sections, at = "", [], {}
for number, text in enumerate(source, 1):
    banner = re.match(r"/\* ===== (.*?)(:.*)? =====", text)
    if banner:
        section = banner.group(1)
        sections.append(section)
    at[number] = section
count = {name: [0, 0, 0, 0] for name in sections}
left = []
for number in sorted(lines):
    row, taken = count[at[number]], [n > 0 for n in branches[number]]
    row[0] += 1
    row[1] += lines[number] > 0
    row[2] += len(taken)
    row[3] += sum(taken)
    if lines[number] == 0:
        left.append((number, "line", ""))
    elif not all(taken):
        missing = [str(i) for i, yes in enumerate(taken) if not yes]
        left.append((number, "branch", "%s of %d" % (",".join(missing), len(taken))))
with open(uncovered, "w", encoding="utf-8") as out:
    section = None
    for number, what, which in left:
        if at[number] != section:
            section = at[number]
            out.write("== %s\n" % section)
        out.write("%5d %-6s %-12s %s\n" % (number, what, which, source[number - 1].strip()))
print("%-46s %15s %19s" % ("section", "lines", "branches"))
total = [0, 0, 0, 0]
for name in sections:
    row = count[name]
    if row[0] == 0:
        continue
    total = [a + b for a, b in zip(total, row)]
    print("%-46.46s %5d of %5d   %7d of %7d" % (name, row[1], row[0], row[3], row[2]))
print("%-46s %5d of %5d   %7d of %7d" % ("all", total[1], total[0], total[3], total[2]))
print("%.2f %% of lines, %.2f %% of branches" %
      (100.0 * total[1] / total[0], 100.0 * total[3] / total[2]))
if left:
    print("what is left: " + uncovered)
sys.exit(1 if left else 0)
END
covered=$?
[ "$tested" -eq 0 ] && [ "$covered" -eq 0 ]
