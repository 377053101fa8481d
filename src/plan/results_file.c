#include "plan/results_file.h"
#include "base/alloc.h"
#include "base/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* More is not a file of results. */
#define MOST_BYTES ((size_t)1 << 28)

struct results_file {
    FILE *file;
    char *path;
    json_t *lines; /* object: key to line */
};

static void take_line(struct results_file *f, const char *line, size_t size) {
    json_t *o;
    const char *key = NULL;
    if (size == 0 || pd_json_parse_object(f->path, line, size, &o, NULL) != PDVM_OK) return;
    if (pd_json_string(f->path, o, "key", true, &key, NULL) == PDVM_OK)
        json_object_set(f->lines, key, o);
    json_decref(o);
}

/* Reads what is there; *whole says whether it ends with a line's end. */
static pdvm_status read_lines(struct results_file *f, bool *whole, pdvm_error *err) {
    char *data;
    size_t size;
    *whole = true;
    PD_TRY(pd_read_file(f->path, MOST_BYTES, &data, &size, err));
    for (size_t i = 0; i < size;) {
        const char *end = memchr(data + i, '\n', size - i);
        size_t n = end ? (size_t)(end - (data + i)) : size - i;
        take_line(f, data + i, n);
        *whole = end != NULL;
        i += n + 1;
    }
    free(data);
    return PDVM_OK;
}

pdvm_status results_file_open(const char *path, struct results_file **out, pdvm_error *err) {
    struct results_file *f;
    bool whole;
    *out = NULL;
    PD_TRY(pd_calloc(&f, 1, sizeof *f, "a file of results", err));
    f->path = strdup(path);
    f->lines = json_object();
    pdvm_status status = PDVM_OK;
    if (!f->path || !f->lines) status = pd_fail_memory(err, sizeof *f, "a file of results");
    if (status == PDVM_OK && !(f->file = fopen(path, "ab")))
        status = pd_fail_errno(err, path, "cannot open for writing");
    if (status == PDVM_OK) status = read_lines(f, &whole, err);
    if (status == PDVM_OK && !whole) fputc('\n', f->file);
    if (status == PDVM_OK)
        *out = f;
    else
        results_file_close(f);
    return status;
}

const json_t *results_file_find(const struct results_file *f, const char *key) {
    return json_object_get(f->lines, key);
}

pdvm_status results_file_append(struct results_file *f, const char *key, json_t *object,
                                pdvm_error *err) {
    json_object_set_new(object, "key", json_string(key));
    json_object_set(f->lines, key, object);
    errno = 0;
    int failed = json_dumpf(object, f->file, JSON_COMPACT | JSON_REAL_PRECISION(10)) != 0;
    failed |= fputc('\n', f->file) == EOF;
    failed |= fflush(f->file) != 0;
    json_decref(object);
    return failed ? pd_fail_errno(err, f->path, "cannot write") : PDVM_OK;
}

void results_file_close(struct results_file *f) {
    if (!f) return;
    if (f->file) fclose(f->file);
    json_decref(f->lines);
    free(f->path);
    free(f);
}
