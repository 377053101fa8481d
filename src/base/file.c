#include "base/file.h"

#include "base/alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Large enough that system calls don't show, small enough to stay in the L2 cache. */
#define WRITER_BUFFER ((size_t)256 << 10)

static pdvm_status open_regular(const char *path, int *fd, size_t *size, pdvm_error *err) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return pd_fail_errno(err, path, "cannot open");
    struct stat st;
    if (fstat(*fd, &st) != 0) {
        pd_fail_errno(err, path, "cannot stat");
        close(*fd);
        return PDVM_ERR_IO;
    }
    if (!S_ISREG(st.st_mode)) {
        close(*fd);
        return pd_fail(err, PDVM_ERR_IO, "%s: not a regular file", path);
    }
    *size = (size_t)st.st_size;
    return PDVM_OK;
}

pdvm_status pd_map_open(const char *path, struct pd_map *map, pdvm_error *err) {
    int fd;
    memset(map, 0, sizeof *map);
    PD_TRY(open_regular(path, &fd, &map->size, err));
    if (map->size == 0) {
        close(fd);
        return PDVM_OK;
    }
    void *p = mmap(NULL, map->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
        pdvm_status status = pd_fail_errno(err, path, "cannot map");
        close(fd);
        map->size = 0;
        return status;
    }
    close(fd);
    map->data = (const uint8_t *)p;
    return PDVM_OK;
}

void pd_map_close(struct pd_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    memset(map, 0, sizeof *map);
}

void pd_map_release(const void *data, size_t size) {
    /* Whole pages only: the first and the last may belong to others. */
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)data + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)data + size) & ~(page - 1);
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

pdvm_status pd_read_file(const char *path, size_t max, char **data, size_t *size, pdvm_error *err) {
    int fd;
    size_t expected;
    *data = NULL;
    *size = 0;
    PD_TRY(open_regular(path, &fd, &expected, err));
    if (expected > max) {
        close(fd);
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: %zu bytes, more than the %zu allowed here", path,
                       expected, max);
    }
    char *p = malloc(expected + 1);
    if (!p) {
        close(fd);
        return pd_fail_memory(err, expected + 1, path);
    }
    size_t n = 0;
    while (n < expected) {
        ssize_t got = read(fd, p + n, expected - n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            pdvm_status status = pd_fail_errno(err, path, "cannot read");
            close(fd);
            free(p);
            return status;
        }
        if (got == 0) break;
        n += (size_t)got;
    }
    close(fd);
    p[n] = 0;
    *data = p;
    *size = n;
    return PDVM_OK;
}

pdvm_status pd_path_join(const char *dir, const char *name, char **out, pdvm_error *err) {
    size_t len = strlen(dir) + strlen(name) + 2;
    PD_TRY(pd_calloc(out, len, 1, "a path", err));
    size_t n = strlen(dir);
    snprintf(*out, len, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    return PDVM_OK;
}

/* ---- unfinished files, for pd_writers_remove_unfinished ---------------------------------- */

/* A slot's path may be written in state TAKEN only, and read in state SET or by who took it. */
enum { SLOT_FREE, SLOT_TAKEN, SLOT_SET };
#define N_SLOTS 16

static struct slot {
    atomic_int state;
    char path[4096];
} slots[N_SLOTS];

/* Returns NULL where there is no room: such a file is not removed. */
static struct slot *slot_take(const char *path) {
    size_t size = strlen(path) + 1;
    if (size > sizeof slots[0].path) return NULL;
    for (int i = 0; i < N_SLOTS; i++) {
        int state = SLOT_FREE;
        if (!atomic_compare_exchange_strong(&slots[i].state, &state, SLOT_TAKEN)) continue;
        memcpy(slots[i].path, path, size);
        atomic_store(&slots[i].state, SLOT_SET);
        return &slots[i];
    }
    return NULL;
}

static void slot_release(struct slot *slot) {
    int state = SLOT_SET; /* or taken by the handler that ends the process */
    if (slot) atomic_compare_exchange_strong(&slot->state, &state, SLOT_FREE);
}

void pd_writers_remove_unfinished(void) {
    for (int i = 0; i < N_SLOTS; i++) {
        int state = SLOT_SET;
        if (atomic_compare_exchange_strong(&slots[i].state, &state, SLOT_TAKEN))
            unlink(slots[i].path);
    }
}

/* ---- writers ----------------------------------------------------------------------------- */

struct pd_writer {
    int fd;
    struct slot *slot;
    uint64_t size; /* bytes appended, buffered ones included */
    size_t buffered;
    char *path;
    char *temporary;
    uint8_t buffer[WRITER_BUFFER];
};

static void writer_free(struct pd_writer *w) {
    slot_release(w->slot);
    free(w->path);
    free(w->temporary);
    free(w);
}

/*
 * The path to rename to: what a link leads to is replaced, not the link, which may be /dev/stdout.
 * A link to nothing is replaced itself.
 */
static pdvm_status final_path(const char *path, char **out, pdvm_error *err) {
    struct stat st;
    bool exists = stat(path, &st) == 0;
    *out = NULL;
    if (path[0] == '\0')
        return pd_fail(err, PDVM_ERR_ARGUMENT, "the name of the file to write is empty");
    if (exists && !S_ISREG(st.st_mode))
        return pd_fail(err, PDVM_ERR_IO, "%s: exists and is not a regular file", path);
    bool is_link = exists && lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
    *out = is_link ? realpath(path, NULL) : strdup(path);
    if (*out) return PDVM_OK;
    return is_link ? pd_fail_errno(err, path, "cannot follow the link")
                   : pd_fail_memory(err, strlen(path) + 1, "a path");
}

pdvm_status pd_writer_open(const char *path, struct pd_writer **out, pdvm_error *err) {
    static atomic_uint number; /* two writers of one path, in two threads, must not meet */
    char *final;
    *out = NULL;
    PD_TRY(final_path(path, &final, err));
    struct pd_writer *w = calloc(1, sizeof *w);
    size_t len = strlen(final) + 48;
    if (w) w->temporary = malloc(len);
    if (!w || !w->temporary) {
        free(w);
        free(final);
        return pd_fail_memory(err, sizeof *w, "a file writer");
    }
    w->path = final;
    snprintf(w->temporary, len, "%s.tmp-%ld-%u", final, (long)getpid(),
             atomic_fetch_add(&number, 1));
    /* What is there can only be left by a process that was killed, or is a link set as a trap. */
    unlink(w->temporary);
    w->slot = slot_take(w->temporary);
    w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->fd < 0) {
        pdvm_status status = pd_fail_errno(err, w->temporary, "cannot create");
        writer_free(w);
        return status;
    }
    *out = w;
    return PDVM_OK;
}

static pdvm_status write_at(struct pd_writer *w, uint64_t offset, const uint8_t *data, size_t size,
                            pdvm_error *err) {
    while (size > 0) {
        ssize_t n = pwrite(w->fd, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return pd_fail_errno(err, w->temporary, "cannot write");
        data += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return PDVM_OK;
}

static pdvm_status writer_flush(struct pd_writer *w, pdvm_error *err) {
    size_t n = w->buffered;
    PD_TRY(write_at(w, w->size - n, w->buffer, n, err));
    w->buffered = 0;
    return PDVM_OK;
}

pdvm_status pd_writer_append(struct pd_writer *w, const void *data, size_t size, pdvm_error *err) {
    if (size > WRITER_BUFFER - w->buffered) PD_TRY(writer_flush(w, err));
    if (size > WRITER_BUFFER) {
        PD_TRY(write_at(w, w->size, (const uint8_t *)data, size, err));
    } else if (size > 0) {
        memcpy(w->buffer + w->buffered, data, size);
        w->buffered += size;
    }
    w->size += size;
    return PDVM_OK;
}

pdvm_status pd_writer_patch(struct pd_writer *w, uint64_t offset, const void *data, size_t size,
                            pdvm_error *err) {
    if (offset > w->size || size > w->size - offset)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: patch past the end", w->path);
    PD_TRY(writer_flush(w, err));
    return write_at(w, offset, (const uint8_t *)data, size, err);
}

pdvm_status pd_writer_commit(struct pd_writer *w, pdvm_error *err) {
    pdvm_status status = writer_flush(w, err);
    if (status == PDVM_OK && fsync(w->fd) != 0 && errno != EINVAL)
        status = pd_fail_errno(err, w->temporary, "cannot flush to disk");
    if (close(w->fd) != 0 && status == PDVM_OK)
        status = pd_fail_errno(err, w->temporary, "cannot close");
    if (status == PDVM_OK && rename(w->temporary, w->path) != 0)
        status = pd_fail_errno(err, w->path, "cannot rename into place");
    if (status != PDVM_OK) unlink(w->temporary);
    writer_free(w);
    return status;
}

pdvm_status pd_writer_try(const char *path, pdvm_error *err) {
    struct pd_writer *w;
    PD_TRY(pd_writer_open(path, &w, err));
    pd_writer_abort(w);
    return PDVM_OK;
}

pdvm_status pd_write_file(const char *path, const void *data, size_t size, pdvm_error *err) {
    struct pd_writer *w;
    PD_TRY(pd_writer_open(path, &w, err));
    pdvm_status status = pd_writer_append(w, data, size, err);
    if (status == PDVM_OK) return pd_writer_commit(w, err);
    pd_writer_abort(w);
    return status;
}

void pd_writer_abort(struct pd_writer *w) {
    if (!w) return;
    close(w->fd);
    unlink(w->temporary);
    writer_free(w);
}
