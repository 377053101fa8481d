#include "engine/packed_cache.h"

#include "base/alloc.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FORMAT "pdvm packed"
#define KEY_FORMAT "format"
#define KEY_LAYOUT "pdvm.layout"
#define KEY_MODEL "pdvm.model"

/* Where a cache may be, best first. */
enum place { BESIDE, USER, N_PLACES };

static void fingerprint_text(const struct packed_cache_key *key, char out[17]) {
    snprintf(out, 17, "%016" PRIx64, key->fingerprint);
}

static pdvm_status format_path(char **out, pdvm_error *err, const char *a, const char *b,
                               const char *c, const char *d) {
    size_t size = strlen(a) + strlen(b) + strlen(c) + strlen(d) + 1;
    PD_TRY(pd_calloc(out, size, 1, "a path", err));
    snprintf(*out, size, "%s%s%s%s", a, b, c, d);
    return PDVM_OK;
}

/* The directory of this user's caches, with a name in it; NULL if the system tells none. */
static pdvm_status user_directory(char **out, pdvm_error *err) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    *out = NULL;
    /* The XDG Base Directory Specification wants relative paths ignored. */
    if (cache && cache[0] == '/') return format_path(out, err, cache, "/pdvm", "", "");
    if (home && home[0] == '/') return format_path(out, err, home, "/.cache/pdvm", "", "");
    return PDVM_OK;
}

/* The path of a cache in freshly allocated memory; NULL if there is no such place. */
static pdvm_status cache_path(const struct packed_cache_key *key, enum place place, char **out,
                              pdvm_error *err) {
    char suffix[128], model[17];
    struct stat st;
    snprintf(suffix, sizeof suffix, ".%.100s.packed", key->layout);
    if (place == BESIDE) {
        bool directory = stat(key->model_path, &st) == 0 && S_ISDIR(st.st_mode);
        return format_path(out, err, key->model_path, directory ? "/model" : "", suffix, "");
    }
    char *dir;
    PD_TRY(user_directory(&dir, err));
    *out = NULL;
    if (!dir) return PDVM_OK;
    fingerprint_text(key, model);
    pdvm_status status = format_path(out, err, dir, "/", model, suffix);
    free(dir);
    return status;
}

/* ---- reading --------------------------------------------------------------------------- */

static bool says(const struct safetensors *st, const char *key, const char *value) {
    const char *found = safetensors_metadata(st, key);
    return found && strcmp(found, value) == 0;
}

/* Whether it is what its name says. */
static bool belongs(const struct safetensors *st, const struct packed_cache_key *key,
                    const struct pd_notify *notify) {
    char model[17];
    fingerprint_text(key, model);
    if (!says(st, KEY_FORMAT, FORMAT) || !says(st, KEY_LAYOUT, key->layout)) {
        pd_log(notify, PDVM_LOG_WARN, "%s: not a file of packed weights; made again",
               safetensors_path(st));
        return false;
    }
    if (says(st, KEY_MODEL, model)) return true;
    pd_log(notify, PDVM_LOG_INFO, "%s: of another model or an older version of it; made again",
           safetensors_path(st));
    return false;
}

static pdvm_status open_at(const struct packed_cache_key *key, enum place place,
                           const struct pd_notify *notify, struct safetensors **out,
                           pdvm_error *err) {
    struct stat st;
    pdvm_error why;
    char *path;
    PD_TRY(cache_path(key, place, &path, err));
    if (path && stat(path, &st) == 0) {
        if (safetensors_open(path, out, &why) != PDVM_OK) {
            pd_log(notify, PDVM_LOG_WARN, "%s; made again", why.message);
        } else if (!belongs(*out, key, notify)) {
            safetensors_close(*out);
            *out = NULL;
        }
    }
    free(path);
    return PDVM_OK;
}

pdvm_status packed_cache_open(const struct packed_cache_key *key, const struct pd_notify *notify,
                              struct safetensors **out, pdvm_error *err) {
    *out = NULL;
    for (int place = 0; place < N_PLACES && !*out; place++)
        PD_TRY(open_at(key, (enum place)place, notify, out, err));
    if (*out) pd_log(notify, PDVM_LOG_INFO, "packed weights from %s", safetensors_path(*out));
    return PDVM_OK;
}

/* ---- writing --------------------------------------------------------------------------- */

static pdvm_status write_entries(struct safetensors_writer *file,
                                 const struct packed_cache_key *key, struct backend *backend,
                                 const struct packed_cache_entry *entries, size_t n,
                                 const struct pd_notify *notify, pdvm_error *err) {
    char model[17];
    fingerprint_text(key, model);
    PD_TRY(safetensors_writer_metadata(file, KEY_FORMAT, FORMAT, err));
    PD_TRY(safetensors_writer_metadata(file, KEY_LAYOUT, key->layout, err));
    PD_TRY(safetensors_writer_metadata(file, KEY_MODEL, model, err));
    for (size_t i = 0; i < n; i++) {
        PD_TRY(pd_progress(notify, "saving", (double)i / (double)n, err));
        PD_TRY(backend->ops->save_matrix(backend, entries[i].matrix, entries[i].name, file, err));
    }
    return pd_progress(notify, "saving", 1, err);
}

static pdvm_status write_to(const char *path, const struct packed_cache_key *key,
                            struct backend *backend, const struct packed_cache_entry *entries,
                            size_t n, const struct pd_notify *notify, pdvm_error *err) {
    struct safetensors_writer *file;
    size_t reserve = 4096;
    for (size_t i = 0; i < n; i++) reserve += 2 * strlen(entries[i].name) + 512;
    /* The tensors begin 8 bytes behind the header's end, at a multiple of 128. */
    reserve = (reserve + 127) / 128 * 128 + 120;
    PD_TRY(safetensors_writer_open(path, reserve, &file, err));
    pdvm_status status = write_entries(file, key, backend, entries, n, notify, err);
    if (status == PDVM_OK) return safetensors_writer_commit(file, err);
    safetensors_writer_abort(file);
    return status;
}

/* Makes the directory that a path lies in, and the one above it. */
static void make_directories(char *path) {
    char *last = strrchr(path, '/');
    if (!last) return;
    *last = '\0';
    char *above = strrchr(path, '/');
    if (above && above != path) {
        *above = '\0';
        mkdir(path, 0700);
        *above = '/';
    }
    mkdir(path, 0700);
    *last = '/';
}

pdvm_status packed_cache_write(const struct packed_cache_key *key, struct backend *backend,
                               const struct packed_cache_entry *entries, size_t n,
                               const struct pd_notify *notify, pdvm_error *err) {
    pdvm_error why;
    for (int place = 0; place < N_PLACES; place++) {
        char *path;
        PD_TRY(cache_path(key, (enum place)place, &path, err));
        if (!path) continue;
        if (place == USER) make_directories(path);
        pdvm_status status = write_to(path, key, backend, entries, n, notify, &why);
        if (status == PDVM_OK) pd_log(notify, PDVM_LOG_INFO, "packed weights saved to %s", path);
        free(path);
        if (status == PDVM_OK) return PDVM_OK;
        if (status == PDVM_ERR_CANCELLED) {
            if (err) *err = why;
            return status;
        }
        if (place == BESIDE) pd_log(notify, PDVM_LOG_INFO, "%s", why.message);
    }
    pd_log(notify, PDVM_LOG_WARN, "the packed weights are not kept: %s", why.message);
    return PDVM_OK;
}
