/** Files: read-only maps, whole small files, and atomic replacement. */
#ifndef PDVM_BASE_FILE_H
#define PDVM_BASE_FILE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/** A file mapped read-only. An empty file has size 0 and data NULL. */
struct pd_map {
    const uint8_t *data;
    size_t size;
};

/** Maps a regular file. Directories, pipes and devices are PDVM_ERR_IO. */
pdvm_status pd_map_open(const char *path, struct pd_map *map, pdvm_error *err);

/** Unmaps; a zeroed map is allowed. */
void pd_map_close(struct pd_map *map);

/**
 * Gives back the memory that reading data[0, size) of a map took; the bytes stay readable, from
 * the file. For data that is read once and in order, so that a large file does not fill memory.
 */
void pd_map_release(const void *data, size_t size);

/**
 * Reads a whole file of at most `max` bytes; *data (freed with free()) ends with an extra zero
 * byte that *size does not count. Larger files are PDVM_ERR_FORMAT.
 */
pdvm_status pd_read_file(const char *path, size_t max, char **data, size_t *size, pdvm_error *err);

/** "dir/name" in a new string, freed with free(). */
pdvm_status pd_path_join(const char *dir, const char *name, char **out, pdvm_error *err);

/**
 * A file being written beside its final place (PATH.tmp-PID-NUMBER) and renamed over it at the end:
 * a full disk, an error or an interrupt leaves the old file as it was.
 */
struct pd_writer;

/** Starts writing `path`. Fails if the directory is missing or not writable. */
pdvm_status pd_writer_open(const char *path, struct pd_writer **out, pdvm_error *err);

/** Appends `size` bytes. */
pdvm_status pd_writer_append(struct pd_writer *w, const void *data, size_t size, pdvm_error *err);

/** Overwrites `size` bytes at `offset`, which must lie within what was appended so far. */
pdvm_status pd_writer_patch(struct pd_writer *w, uint64_t offset, const void *data, size_t size,
                            pdvm_error *err);

/** Flushes to the disk, renames over the final path and frees `w`, also on failure. */
pdvm_status pd_writer_commit(struct pd_writer *w, pdvm_error *err);

/** Removes the unfinished file and frees `w`. NULL is allowed. */
void pd_writer_abort(struct pd_writer *w);

/** Whether `path` could be written now, found out by creating and removing the file beside it. */
pdvm_status pd_writer_try(const char *path, pdvm_error *err);

/** Writes a whole file by a writer of its own. */
pdvm_status pd_write_file(const char *path, const void *data, size_t size, pdvm_error *err);

/**
 * Removes the unfinished files of all writers. For a signal handler that is about to end the
 * process: the writers must not be used any more.
 */
void pd_writers_remove_unfinished(void);

#endif
