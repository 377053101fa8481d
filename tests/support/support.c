#include "support/support.h"

#include "base/random.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void support_fail(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vprint_error(fmt, args);
    va_end(args);
    print_error("\n");
    _fail(__FILE__, __LINE__);
    abort();
}

char *support_path(const char *dir, const char *name) {
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (!path) support_fail("out of memory");
    snprintf(path, size, "%s/%s", dir, name);
    return path;
}

char *support_tmpdir(void) {
    const char *base = getenv("TMPDIR");
    char *dir = support_path(base && *base ? base : "/tmp", "pdvm-test-XXXXXX");
    if (!mkdtemp(dir)) support_fail("%s: cannot create: %s", dir, strerror(errno));
    return dir;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void support_tmpdir_remove(char *dir) {
    if (!dir) return;
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(dir);
}

int support_make_dir(void **state) {
    *state = support_tmpdir();
    return 0;
}

int support_remove_dir(void **state) {
    support_tmpdir_remove(*state);
    return 0;
}

char *support_source_path(const char *name) {
    const char *tree =
        getenv("SOURCE_DIR"); /* tests may run on another machine than they were built */
    return support_path(tree && *tree ? tree : PDVM_SOURCE_DIR, name);
}

char *support_golden_path(const char *name) {
    char *dir = support_source_path("tests/golden"), *path = support_path(dir, name);
    free(dir);
    return path;
}

char *support_shared_path(const char *name) {
    const char *shared = getenv("PDVM_SHARED");
    char *path = support_path(shared && *shared ? shared : PDVM_SOURCE_DIR "/../shared", name);
    if (!support_exists(path)) {
        print_message("skipped: %s is not there (PDVM_SHARED names its directory)\n", path);
        free(path);
        skip();
        return NULL;
    }
    return path;
}

char *support_write_file(const char *dir, const char *name, const void *data, size_t size) {
    char *path = support_path(dir, name);
    FILE *file = fopen(path, "wb");
    if (!file) support_fail("%s: %s", path, strerror(errno));
    if (size > 0 && fwrite(data, 1, size, file) != size) support_fail("%s: cannot write", path);
    if (fclose(file) != 0) support_fail("%s: %s", path, strerror(errno));
    return path;
}

char *support_write_text(const char *dir, const char *name, const char *text) {
    return support_write_file(dir, name, text, strlen(text));
}

char *support_read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    struct stat st;
    if (!file || fstat(fileno(file), &st) != 0) support_fail("%s: %s", path, strerror(errno));
    size_t n = (size_t)st.st_size;
    char *data = malloc(n + 1);
    if (!data || fread(data, 1, n, file) != n) support_fail("%s: cannot read", path);
    fclose(file);
    data[n] = 0;
    if (size) *size = n;
    return data;
}

void support_same_file(const char *a, const char *b) {
    size_t n, m;
    char *x = support_read_file(a, &n), *y = support_read_file(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

int support_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

size_t support_count_entries(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) support_fail("%s: %s", dir, strerror(errno));
    size_t n = 0;
    for (struct dirent *e = readdir(d); e; e = readdir(d))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) n++;
    closedir(d);
    return n;
}

void support_assert_ok(pdvm_status status, const pdvm_error *err, const char *file, int line) {
    if (status == PDVM_OK) return;
    print_error("%s: %s\n", pdvm_status_name(status), err->message);
    _fail(file, line);
}

void support_assert_error(pdvm_status status, pdvm_status expected, const pdvm_error *err,
                          const char *text, const char *file, int line) {
    if (status == expected && err->status == expected && strstr(err->message, text)) return;
    print_error("expected \"%s\" with \"%s\", got \"%s\": %s\n", pdvm_status_name(expected), text,
                pdvm_status_name(status), status == PDVM_OK ? "" : err->message);
    _fail(file, line);
}

char *support_write_words(const char *dir, size_t size) {
    static const char *const words[] = {"the ",    "fox ",  "house ",   "ran. ", "A ",
                                        "little ", "girl ", "said ",    "who ",  "why? ",
                                        "tree\n",  "on ",   "mountain "};
    char *text = malloc(size);
    size_t n = 0;
    uint64_t seed = 5;
    assert_non_null(text);
    while (n < size - 16)
        n += (size_t)snprintf(text + n, size - n, "%s", words[pd_random(&seed) % 13]);
    char *path = support_write_text(dir, "words.txt", text);
    free(text);
    return path;
}
