# Sourced by the other scripts, from the root of the tree.

# c_sources REGEX: the project's own files whose extension matches, one a line.
c_sources() {
    find . -path './build*' -prune -o -type f -print | sed 's|^\./||' |
        grep -E "^(include|src|tests|examples)/.*\.($1)\$" | LC_ALL=C sort
}

# processors: how many jobs to run at a time.
processors() { getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2; }
