#include "base/tempdir.h"
#include "base/file.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
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

void pd_tempdir_remove(char *path) {
    if (!path) return;
    DIR *dir = opendir(path);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        char *name;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (pd_path_join(path, e->d_name, &name, NULL) != PDVM_OK) continue;
        unlink(name);
        free(name);
    }
    if (dir) closedir(dir);
    rmdir(path);
    free(path);
}
