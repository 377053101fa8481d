#include "base/tempdir.h"
#include "base/file.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

pdvm_status pd_tempdir_create(char **out, pdvm_error *err) {
    const char *parent = getenv("TMPDIR");
    PD_TRY(pd_path_join(parent && parent[0] ? parent : "/tmp", "pdvm-XXXXXX", out, err));
    if (mkdtemp(*out)) return PDVM_OK;
    pdvm_status status = pd_fail_errno(err, *out, "cannot make a temporary directory");
    free(*out);
    *out = NULL;
    return status;
}

/* Removes what is in a directory, directories in it included, and the directory. */
static void remove_all(const char *path) {
    DIR *dir = opendir(path);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        char *name;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (pd_path_join(path, e->d_name, &name, NULL) != PDVM_OK) continue;
        struct stat st;
        /* Links are removed, not followed. */
        if (lstat(name, &st) == 0 && S_ISDIR(st.st_mode))
            remove_all(name);
        else
            unlink(name);
        free(name);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

void pd_tempdir_remove(char *path) {
    if (!path) return;
    remove_all(path);
    free(path);
}
