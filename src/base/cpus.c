#include "base/cpus.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__

/* The beginning of a small file as a string; false if there is none. */
static bool read_text(const char *root, const char *path, char *out, size_t size) {
    char full[4096];
    int n = snprintf(full, sizeof full, "%s%s", root, path);
    if (n < 0 || (size_t)n >= sizeof full) return false;
    FILE *f = fopen(full, "r");
    if (!f) return false;
    size_t got = fread(out, 1, size - 1, f);
    out[got] = '\0';
    fclose(f);
    return got > 0;
}

/* A list such as "0-3,8,10-11". */
static bool parse_list(const char *text, cpu_set_t *set) {
    CPU_ZERO(set);
    while (*text && *text != '\n') {
        char *end;
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (end == text) return false;
        if (*end == '-') {
            text = end + 1;
            last = strtoul(text, &end, 10);
            if (end == text) return false;
        }
        for (unsigned long i = first; i <= last && i < CPU_SETSIZE; i++) CPU_SET(i, set);
        text = *end == ',' ? end + 1 : end;
    }
    return CPU_COUNT(set) > 0;
}

/* Takes `keep` away from everything else in the set, unless nothing would be left. */
static void restrict_to(cpu_set_t *set, const cpu_set_t *keep) {
    cpu_set_t both;
    CPU_AND(&both, set, keep);
    if (CPU_COUNT(&both) > 0) *set = both;
}

/* Intel's hybrid processors list their performance cores; Arm's state a capacity for each. */
static void keep_performance_cores(const char *root, cpu_set_t *set) {
    char text[4096], path[128];
    cpu_set_t fast;
    if (read_text(root, "/sys/devices/cpu_core/cpus", text, sizeof text) &&
        parse_list(text, &fast)) {
        restrict_to(set, &fast);
        return;
    }
    long capacity[CPU_SETSIZE], most = 0;
    for (int i = 0; i < CPU_SETSIZE; i++) {
        capacity[i] = 0;
        if (!CPU_ISSET(i, set)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpu_capacity", i);
        if (!read_text(root, path, text, sizeof text)) return;
        capacity[i] = strtol(text, NULL, 10);
        if (capacity[i] > most) most = capacity[i];
    }
    CPU_ZERO(&fast);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (capacity[i] > 0 && 2 * capacity[i] >= most) CPU_SET(i, &fast);
    restrict_to(set, &fast);
}

/* Keeps the first of each core's threads. */
static void keep_one_thread_per_core(const char *root, cpu_set_t *set) {
    char text[4096], path[128];
    for (int i = 0; i < CPU_SETSIZE; i++) {
        cpu_set_t siblings;
        if (!CPU_ISSET(i, set)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 i);
        if (!read_text(root, path, text, sizeof text) || !parse_list(text, &siblings)) continue;
        for (int k = i + 1; k < CPU_SETSIZE; k++)
            if (CPU_ISSET(k, &siblings)) CPU_CLR(k, set);
    }
}

/* Lowers *least to the quota of one control group, in processors. */
static void group_quota(const char *root, const char *mount, const char *group, double *least) {
    char path[4096], text[128];
    double quota = -1, period = 0;
    snprintf(path, sizeof path, "%s%s/cpu.max", mount, group);
    if (read_text(root, path, text, sizeof text)) {
        char *end;
        quota = strtod(text, &end);
        if (end == text) return; /* "max" */
        period = strtod(end, NULL);
    } else {
        snprintf(path, sizeof path, "%s%s/cpu.cfs_quota_us", mount, group);
        if (!read_text(root, path, text, sizeof text)) return;
        quota = strtod(text, NULL);
        snprintf(path, sizeof path, "%s%s/cpu.cfs_period_us", mount, group);
        if (!read_text(root, path, text, sizeof text)) return;
        period = strtod(text, NULL);
    }
    if (quota > 0 && period > 0 && (*least <= 0 || quota / period < *least))
        *least = quota / period;
}

/* The quotas of a group and of all that it lies in. In a container the group's own path may not
 * exist; its quota is then that of the mount's root. */
static void quotas_up(const char *root, const char *mount, char *group, double *least) {
    for (;;) {
        group_quota(root, mount, group, least);
        char *slash = strrchr(group, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

static bool in_list(const char *list, size_t size, const char *name) {
    size_t length = strlen(name);
    for (const char *p = list; p < list + size;) {
        const char *comma = memchr(p, ',', (size_t)(list + size - p));
        const char *end = comma ? comma : list + size;
        if ((size_t)(end - p) == length && memcmp(p, name, length) == 0) return true;
        p = end + 1;
    }
    return false;
}

/* Lines of /proc/self/cgroup are NUMBER:CONTROLLERS:PATH; version 2 has no controllers. */
static int find_quota(const char *root) {
    static const char *const v2[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    static const char *const v1[] = {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"};
    char text[8192], *rest = text;
    double least = 0;
    if (!read_text(root, "/proc/self/cgroup", text, sizeof text)) return 0;
    for (char *line; (line = strtok_r(rest, "\n", &rest));) {
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        size_t size = (size_t)(group - controllers) - 1;
        if (size > 0 && !in_list(controllers + 1, size, "cpu")) continue;
        for (int i = 0; i < 2; i++) {
            char copy[4096];
            snprintf(copy, sizeof copy, "%s", strcmp(group + 1, "/") ? group + 1 : "");
            quotas_up(root, size ? v1[i] : v2[i], copy, &least);
        }
    }
    if (least <= 0) return 0;
    if (least < 1) return 1;
    return least < CPU_SETSIZE ? (int)least : 0;
}

void pd_cpus_look(const char *root, const char *allowed, struct pd_cpus *out) {
    cpu_set_t set;
    CPU_ZERO(&set);
    *out = (struct pd_cpus){0};
    /* Fewer than there are, in a container or under taskset. */
    if (allowed ? parse_list(allowed, &set) : sched_getaffinity(0, sizeof set, &set) == 0)
        out->allowed = CPU_COUNT(&set);
    if (out->allowed < 1) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        out->allowed = online < 1 ? 1 : (int)online;
        out->cores = out->allowed;
    } else {
        keep_performance_cores(root, &set);
        keep_one_thread_per_core(root, &set);
        out->cores = CPU_COUNT(&set);
    }
    out->quota = find_quota(root);
    out->workers = out->quota > 0 && out->quota < out->cores ? out->quota : out->cores;
}

#else

void pd_cpus_look(const char *root, const char *allowed, struct pd_cpus *out) {
    (void)root;
    (void)allowed;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int n = online < 1 ? 1 : (int)online;
    *out = (struct pd_cpus){.allowed = n, .cores = n, .workers = n};
}

#endif
