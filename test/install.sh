#!/bin/sh
# `make install` and `make uninstall` with DESTDIR and PREFIX: what lies where, with which modes,
# what the unit says, that an embedder can use what was installed, and that nothing is left.
#
#   test/install.sh        one line for each check: ok NAME | not ok NAME: WHY | skip NAME: WHY
#
# Environment: MAKE (make), CC (cc), CFLAGS, LDFLAGS
set -u
cd "$(dirname "$0")/.." || exit 1

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
failed=0

report() { # name, what is wrong ("": nothing)
    if [ -z "$2" ]; then
        echo "ok $1"
    else
        echo "not ok $1: $(echo "$2" | tr '\n' ' ')"
        failed=1
    fi
}

run_make() { # target, destination
    "${MAKE:-make}" "$1" DESTDIR="$2" PREFIX=/opt/x BUILD="$tmp/build" PROGRAM="$tmp/exportws" \
        CC="${CC:-cc}" >"$tmp/output" 2>&1 || tail -n 2 "$tmp/output"
}

listing() { (cd "$1" && find . -type f -exec ls -l {} + | awk '{ print $1, $NF }' | sort -k 2); }

umask 077 # what is installed is for all, whatever the installer's umask
root=$tmp/root
report install_works "$(run_make install "$root")"
cat >"$tmp/want" <<'END'
-rwxr-xr-x ./opt/x/bin/exportws
-rw-r--r-- ./opt/x/include/exportws.h
-rw-r--r-- ./opt/x/lib/systemd/system/exportws.service
-rw-r--r-- ./opt/x/share/exportws/exportws.c
-rw-r--r-- ./opt/x/share/exportws/exportws.h
END
listing "$root" | sort -k 2 >"$tmp/got"
report install_puts_all_in_its_place "$(diff "$tmp/want" "$tmp/got" | grep '^[<>]')"
report installed_folders_are_for_all "$(find "$root" -type d ! -perm 755 | grep "$root/opt")"
report installed_program_runs \
    "$("$root/opt/x/bin/exportws" --version | grep -qx 'exportws [0-9.]*' || echo "it does not")"
report installed_source_is_the_source "$(
    for file in exportws.c exportws.h; do
        cmp -s $file "$root/opt/x/share/exportws/$file" || echo "$file"
    done)"
report install_over_itself_works "$(run_make install "$root")"

# ----- the unit -----

unit=$root/opt/x/lib/systemd/system/exportws.service
report unit_is_hardened "$(
    for line in Type=notify DynamicUser=yes NoNewPrivileges=yes ProtectSystem=strict \
        ProtectHome=yes 'ExecStart=/opt/x/bin/exportws $OPTIONS' CapabilityBoundingSet= \
        'RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6' WantedBy=multi-user.target; do
        grep -qxF -- "$line" "$unit" || echo "no $line"
    done)"
report unit_is_well_formed \
    "$(grep -vxE '|\[(Unit|Service|Install)\]|[A-Z][A-Za-z]*=.*' "$unit"; grep -n 'root/' "$unit")"
if command -v systemd-analyze >/dev/null 2>&1; then
    sed "s,=/opt/x,=$root/opt/x," "$unit" >"$tmp/exportws.service"
    report unit_verifies "$(systemd-analyze verify "$tmp/exportws.service" 2>&1 |
        grep -F exportws.service)"
fi

# ----- an embedder -----

cat >"$tmp/host.c" <<'END'
#include <exportws.h>
int main(void)
{
    exportws_options o;
    exportws_defaults(&o);
    return exportws_memory(&o) > 0 ? 0 : 1;
}
END
# shellcheck disable=SC2086  # several flags, and meant to be
report installed_files_embed "$(
    { ${CC:-cc} ${CFLAGS:-} ${LDFLAGS:-} -I"$root/opt/x/include" -DEXPORTWS_NO_MAIN -o "$tmp/host" \
        "$tmp/host.c" "$root/opt/x/share/exportws/exportws.c" && "$tmp/host"; } 2>&1 | head -n 3)"

# ----- and away -----

: >"$root/opt/x/bin/another"
report uninstall_works "$(run_make uninstall "$root")"
report uninstall_leaves_others_alone \
    "$([ "$(listing "$root" | awk '{ print $2 }')" = ./opt/x/bin/another ] || listing "$root")"
report uninstall_leaves_no_folder_of_ours \
    "$([ ! -e "$root/opt/x/share/exportws" ] || echo share/exportws)"
report uninstall_of_nothing_works "$(run_make uninstall "$tmp/empty")"
exit "$failed"
