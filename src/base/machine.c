#include "base/machine.h"

#include "base/cpus.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* The first line of `path` that begins with `key`, what follows it (and blanks and a colon). */
static bool read_line(const char *path, const char *key, char *out, size_t size) {
    char line[512];
    bool found = false;
    FILE *f = fopen(path, "re");
    if (!f) return false;
    while (!found && fgets(line, sizeof line, f)) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) != 0) continue;
        const char *p = line + n;
        while (isspace((unsigned char)*p) || *p == ':') p++;
        size_t length = strcspn(p, "\n");
        if (length == 0) continue;
        snprintf(out, size, "%.*s", (int)length, p);
        found = true;
    }
    fclose(f);
    return found;
}

/* A number in a file, with the suffix K or M of sysfs or " kB" of procfs; "max" and absence: 0. */
static uint64_t read_number(const char *path, const char *key) {
    char text[64], *end;
    if (!read_line(path, key, text, sizeof text) || !isdigit((unsigned char)text[0])) return 0;
    unsigned long long n = strtoull(text, &end, 10);
    while (*end == ' ') end++;
    if (*end == 'K' || *end == 'k') return (uint64_t)n << 10;
    if (*end == 'M') return (uint64_t)n << 20;
    return n;
}

/* Directory of this process's memory cgroup, and the names of the files of its version. */
struct cgroup {
    char dir[512];
    const char *limit, *usage, *inactive;
};

static bool find_cgroup(struct cgroup *g) {
    char path[256];
    if (read_line("/proc/self/cgroup", "0::", path, sizeof path)) {
        *g = (struct cgroup){
            .limit = "memory.max", .usage = "memory.current", .inactive = "inactive_file "};
        snprintf(g->dir, sizeof g->dir, "/sys/fs/cgroup%s", strcmp(path, "/") == 0 ? "" : path);
        char file[600];
        snprintf(file, sizeof file, "%s/%s", g->dir, g->limit);
        if (access(file, R_OK) == 0) return true;
        /* Inside a container its own group is the root. */
        snprintf(g->dir, sizeof g->dir, "/sys/fs/cgroup");
        if (access("/sys/fs/cgroup/memory.max", R_OK) == 0) return true;
    }
    *g = (struct cgroup){.limit = "memory.limit_in_bytes",
                         .usage = "memory.usage_in_bytes",
                         .inactive = "total_inactive_file "};
    snprintf(g->dir, sizeof g->dir, "/sys/fs/cgroup/memory");
    return access("/sys/fs/cgroup/memory/memory.limit_in_bytes", R_OK) == 0;
}

static uint64_t cgroup_number(const struct cgroup *g, const char *file, const char *key) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", g->dir, file);
    return read_number(path, key);
}

static uint64_t least(uint64_t a, uint64_t b) {
    return b == 0 || (a != 0 && a < b) ? a : b;
}

uint64_t pd_memory_available(void) {
    uint64_t available = read_number("/proc/meminfo", "MemAvailable");
    struct cgroup g;
    if (!find_cgroup(&g)) return available;
    uint64_t limit = cgroup_number(&g, g.limit, "");
    if (limit == 0) return available;
    uint64_t used = cgroup_number(&g, g.usage, "");
    uint64_t cached = cgroup_number(&g, "memory.stat", g.inactive);
    used = used > cached ? used - cached : 0; /* cached pages of files make room */
    return least(limit > used ? limit - used : 1, available);
}

static uint64_t last_cache(void) {
    uint64_t size = 0;
    int last = 0;
    for (int i = 0; i < 8; i++) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        int level = (int)read_number(path, "");
        if (level == 0 || level < last) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        uint64_t n = read_number(path, "");
        if (n == 0) continue;
        last = level;
        size = n;
    }
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (size == 0) {
        long n = sysconf(_SC_LEVEL3_CACHE_SIZE);
        if (n > 0) size = (uint64_t)n;
    }
#endif
    return size;
}

void pd_machine_get(struct pd_machine *m) {
    struct utsname name;
    struct pd_cpus cpus;
    pd_cpus_look("", NULL, &cpus);
    *m = (struct pd_machine){.n_cpus = cpus.allowed, .cache = last_cache()};
    bool known = uname(&name) == 0;
    if (known) snprintf(m->system, sizeof m->system, "%s %s", name.sysname, name.release);
    if (!read_line("/proc/cpuinfo", "model name", m->cpu, sizeof m->cpu) && known)
        snprintf(m->cpu, sizeof m->cpu, "%s", name.machine);
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) m->memory = (uint64_t)pages * (uint64_t)page;
    struct cgroup g;
    if (find_cgroup(&g)) m->memory = least(cgroup_number(&g, g.limit, ""), m->memory);
}
