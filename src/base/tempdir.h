/** Directories for files that are gone when the work is done. */
#ifndef PDVM_BASE_TEMPDIR_H
#define PDVM_BASE_TEMPDIR_H

#include "base/error.h"

/**
 * Makes an empty directory in $TMPDIR (or /tmp) that only this user can read. *out is its path,
 * released with pd_tempdir_remove.
 */
pdvm_status pd_tempdir_create(char **out, pdvm_error *err);

/** Removes the files in it and the directory itself, and frees `path`. NULL is allowed. */
void pd_tempdir_remove(char *path);

#endif
