# Sourced by the other scripts, from the root of the tree.

# c_sources REGEX: the project's own files whose extension matches, one a line.
c_sources() {
    find include src tests examples -type f 2>/dev/null | grep -E "\.($1)\$" | LC_ALL=C sort
}

# processors: how many jobs to run at a time.
processors() { getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2; }
