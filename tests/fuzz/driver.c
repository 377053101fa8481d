// Runs a fuzz target over files, for compilers without libFuzzer: each argument is a file, or a
// directory whose files are all taken. The empty input is always run first.

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path, off_t file_size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    // An exact allocation, so that the sanitizer sees a read one byte past the end.
    size_t size = (size_t)file_size;
    uint8_t *data = malloc(size > 0 ? size : 1);
    int failed = data == NULL || fread(data, 1, size, file) != size;
    fclose(file);
    if (failed) {
        fprintf(stderr, "%s: cannot read %zu bytes\n", path, size);
    } else {
        LLVMFuzzerTestOneInput(data, size);
    }
    free(data);
    return failed;
}

static int run_path(const char *path, int *count) {
    struct stat st;
    if (stat(path, &st) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    if (!S_ISDIR(st.st_mode)) {
        ++*count;
        return run_file(path, st.st_size);
    }
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    int failed = 0;
    for (int i = 0; i < n; i++) {
        if (entries[i]->d_name[0] != '.') {
            char child[4096];
            int length = snprintf(child, sizeof child, "%s/%s", path, entries[i]->d_name);
            if (length < 0 || (size_t)length >= sizeof child) {
                fprintf(stderr, "%s/%s: path too long\n", path, entries[i]->d_name);
                failed = 1;
            } else {
                failed |= run_path(child, count);
            }
        }
        free(entries[i]);
    }
    free(entries);
    return failed;
}

int main(int argc, char **argv) {
    const uint8_t nothing[1] = {0};
    LLVMFuzzerTestOneInput(nothing, 0);
    int failed = 0;
    int count = 0;
    for (int i = 1; i < argc; i++) {
        failed |= run_path(argv[i], &count);
    }
    printf("%d files replayed\n", count);
    return failed;
}
