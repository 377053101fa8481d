// How many workers machines of several kinds get: hyperthreads, hybrid processors, control groups.

#include "base/cpus.h"
#include "base/threads.h"
#include "support/support.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

/* A tree of files that stands in for /sys and /proc. */
static char *root;

static int make_root(void **state) {
    (void)state;
    root = support_tmpdir();
    return 0;
}

static int remove_root(void **state) {
    (void)state;
    support_tmpdir_remove(root);
    return 0;
}

static void put(const char *text, const char *fmt, ...) {
    char path[1024];
    int n = snprintf(path, sizeof path, "%s", root);
    va_list args;
    va_start(args, fmt);
    vsnprintf(path + n, sizeof path - (size_t)n, fmt, args);
    va_end(args);
    for (char *p = path + n + 1; *p; p++) {
        if (*p != '/') continue;
        *p = '\0';
        mkdir(path, 0777);
        *p = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct pd_cpus look(const char *allowed) {
    struct pd_cpus cpus;
    pd_cpus_look(root, allowed, &cpus);
    return cpus;
}

static void a_core_gets_one_worker_however_many_threads_it_has(void **state) {
    (void)state;
    assert_int_equal(look("0-7").workers, 8); // nothing known
    for (int i = 0; i < 8; i++) {
        char siblings[16];
        snprintf(siblings, sizeof siblings, "%d,%d\n", i % 4, i % 4 + 4);
        put(siblings, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
    }
    assert_int_equal(look("0-7").workers, 4);
    assert_int_equal(look("0-7").allowed, 8);
    assert_int_equal(look("0,4").workers, 1);
    assert_int_equal(look("5-7").workers, 3); // second threads, but the first are not ours
    assert_int_equal(look("0-2,5").workers, 3);
}

static void efficiency_cores_are_left_alone(void **state) {
    (void)state;
    put("0-3\n", "/sys/devices/cpu_core/cpus");
    put("4-11\n", "/sys/devices/cpu_atom/cpus");
    for (int i = 0; i < 4; i++)
        put(i < 2 ? "0-1\n" : "2-3\n",
            "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
    assert_int_equal(look("0-11").workers, 2);
    assert_int_equal(look("4-7").workers, 4); // better than nothing
}

static void cores_of_much_less_capacity_are_left_alone(void **state) {
    (void)state;
    static const char *const capacity[] = {"250", "250", "250", "250", "760", "760", "1024"};
    for (int i = 0; i < 7; i++) put(capacity[i], "/sys/devices/system/cpu/cpu%d/cpu_capacity", i);
    assert_int_equal(look("0-6").workers, 3);
    assert_int_equal(look("0-3").workers, 4);
}

static void the_quota_of_any_group_above_counts_v2(void **state) {
    (void)state;
    put("0::/a/b\n", "/proc/self/cgroup");
    put("max 100000\n", "/sys/fs/cgroup/a/b/cpu.max");
    assert_int_equal(look("0-7").quota, 0);
    put("350000 100000\n", "/sys/fs/cgroup/a/cpu.max");
    assert_int_equal(look("0-7").quota, 3);
    assert_int_equal(look("0-7").workers, 3);
    assert_int_equal(look("0-1").workers, 2);
    put("50000 100000\n", "/sys/fs/cgroup/a/b/cpu.max");
    assert_int_equal(look("0-7").workers, 1);
}

static void a_container_sees_its_quota_at_the_root(void **state) {
    (void)state;
    put("0::/host/path/of/it\n", "/proc/self/cgroup");
    put("200000 100000\n", "/sys/fs/cgroup/cpu.max");
    assert_int_equal(look("0-7").workers, 2);
}

static void the_quota_counts_v1(void **state) {
    (void)state;
    put("12:cpuset:/x\n4:cpu,cpuacct:/x\n0::/\n", "/proc/self/cgroup");
    put("400000\n", "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us");
    put("100000\n", "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us");
    assert_int_equal(look("0-7").workers, 4);
    put("-1\n", "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us");
    assert_int_equal(look("0-7").workers, 8);
}

static void nonsense_is_no_limit(void **state) {
    (void)state;
    put("0::/\n:\nx\n\n1:cpu\n", "/proc/self/cgroup");
    put("nan nan\n", "/sys/fs/cgroup/cpu.max");
    put("x-y", "/sys/devices/cpu_core/cpus");
    put("-", "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
    put("99999999999-99999999999999", "/sys/devices/system/cpu/cpu1/topology/thread_siblings_list");
    assert_int_equal(look("0-3").workers, 4);
    put("100000 0\n", "/sys/fs/cgroup/cpu.max");
    assert_int_equal(look("0-3").workers, 4);
}

static void this_machine_has_a_processor(void **state) {
    (void)state;
    struct pd_cpus cpus;
    pd_cpus_look("", NULL, &cpus);
    assert_true(cpus.allowed >= cpus.cores && cpus.cores >= cpus.workers && cpus.workers >= 1);
    assert_int_equal(pd_threads_available(), cpus.workers);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_core_gets_one_worker_however_many_threads_it_has,
                                        make_root, remove_root),
        cmocka_unit_test_setup_teardown(efficiency_cores_are_left_alone, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cores_of_much_less_capacity_are_left_alone, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(the_quota_of_any_group_above_counts_v2, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(a_container_sees_its_quota_at_the_root, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(the_quota_counts_v1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(nonsense_is_no_limit, make_root, remove_root),
        cmocka_unit_test(this_machine_has_a_processor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
