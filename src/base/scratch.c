#include "base/scratch.h"

#include "base/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Half of the machine's memory, or of what a container may have of it. */
static size_t memory_limit(void) {
    struct pd_machine machine;
    pd_machine_get(&machine);
    if (machine.memory == 0 || machine.memory / 2 > SIZE_MAX) return SIZE_MAX;
    return (size_t)(machine.memory / 2);
}

/* An open file without a name, in the directory of `beside`; -1 and errno. */
static int open_nameless(const char *beside) {
    const char *slash = strrchr(beside, '/');
    size_t n = slash ? (size_t)(slash - beside) + 1 : 0;
    static const char name[] = ".pdvm-XXXXXX";
    char *path = malloc(n + sizeof name);
    if (!path) return -1;
    memcpy(path, beside, n);
    memcpy(path + n, name, sizeof name);
    int fd = mkstemp(path);
    if (fd >= 0) {
        unlink(path);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    free(path);
    return fd;
}

/* Writing to a mapped hole of a full disk would kill the process, so the room is taken first. */
static int reserve(int fd, size_t size) {
#ifdef __linux__
    return posix_fallocate(fd, 0, (off_t)size);
#else
    return ftruncate(fd, (off_t)size) == 0 ? 0 : errno;
#endif
}

static pdvm_status map_file(size_t size, const char *beside, const char *what,
                            struct pd_scratch *out, pdvm_error *err) {
    int fd = open_nameless(beside);
    if (fd < 0) return pd_fail_errno(err, beside, "cannot make a temporary file beside it");
    int error = reserve(fd, size);
    void *data = MAP_FAILED;
    if (error == 0) {
        data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        error = errno;
    }
    close(fd);
    if (data == MAP_FAILED)
        return pd_fail(err, PDVM_ERR_IO,
                       "%s: cannot put %zu bytes for %s into a temporary file beside it: %s",
                       beside, size, what, strerror(error));
    *out = (struct pd_scratch){.data = data, .size = size, .in_file = true};
    return PDVM_OK;
}

pdvm_status pd_scratch_open(size_t size, const char *beside, const char *what,
                            struct pd_scratch *out, pdvm_error *err) {
    *out = (struct pd_scratch){0};
    if (size == 0) return PDVM_OK;
    if (size > PTRDIFF_MAX) return pd_fail_memory(err, size, what);
    if (size > memory_limit()) return map_file(size, beside, what, out, err);
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return pd_fail_memory(err, size, what);
    *out = (struct pd_scratch){.data = data, .size = size};
    return PDVM_OK;
}

void pd_scratch_close(struct pd_scratch *s) {
    if (s->data) munmap(s->data, s->size);
    *s = (struct pd_scratch){0};
}
