# shellcheck shell=bash
# Sourced: where this machine gets Debian's packages.

# The machine's own Debian mirror: of its apt sources the first http(s) entry
# with a plain release suite and component main.
debian_mirror() {
    local file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        if [ -f "$file" ]; then
            sed -n 's/^[[:space:]]*deb\(-src\)\{0,1\}[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}//p' "$file"
        fi
    done
    for file in /etc/apt/sources.list.d/*.sources; do
        if [ -f "$file" ]; then
            # One stanza to one line 'URI SUITE COMPONENT...' a pair of URI and suite.
            awk 'function out(  i, j, u, s, n, m) {
                     n = split(uris, u); m = split(suites, s)
                     if (tolower(enabled) !~ /^(no|false|0)$/)
                         for (i = 1; i <= n; i++) for (j = 1; j <= m; j++) print u[i], s[j], comps
                     uris = suites = comps = enabled = key = ""
                 }
                 /^#/ { next }
                 /^[[:space:]]*$/ { out(); next }
                 /^[[:space:]]/ { value = $0; add(); next }
                 function add() {
                     if (key == "uris") uris = uris " " value
                     else if (key == "suites") suites = suites " " value
                     else if (key == "components") comps = comps " " value
                     else if (key == "enabled") { enabled = value; gsub(/[[:space:]]/, "", enabled) }
                 }
                 { key = tolower($0); sub(/:.*/, "", key); value = $0; sub(/^[^:]*:/, "", value); add() }
                 END { out() }' "$file"
        fi
    done
}

pick_mirror() {
    debian_mirror | awk '
        $1 ~ /^https?:\/\// && $1 ~ /\/debian\/?$/ && $2 !~ /security|updates|backports|proposed|\/$/ {
            for (i = 3; i <= NF; i++) if ($i == "main") { print $1; exit }
        }'
}

# The keys that Debian's archives are signed with, or nothing.
debian_keyring() {
    local file=/usr/share/keyrings/debian-archive-keyring
    if [ -f "$file.gpg" ]; then echo "$file.gpg"
    elif [ -f "$file.pgp" ]; then echo "$file.pgp"
    fi
}
