# Sourced by the other scripts, from the root of the tree.

# c_sources [EXTENSION...]: the project's own C files, one a line (both .c and .h by default).
c_sources() {
    local extension
    for extension in "${@:-c h}"; do
        for extension in $extension; do
            find include src tests examples -name "*.$extension" -type f 2>/dev/null
        done
    done | LC_ALL=C sort
}

# processors: how many jobs to run at a time.
processors() { getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2; }
