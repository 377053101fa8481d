/** Which processors this process may use, and on how many of them work pays. */
#ifndef PDVM_BASE_CPUS_H
#define PDVM_BASE_CPUS_H

/** What the system says. */
struct pd_cpus {
    int allowed; /**< processors in the affinity mask, at least 1 */
    int cores;   /**< of these, one per physical core, and performance cores only, at least 1 */
    int quota;   /**< whole processors that the control groups' quota pays for; 0: no quota */
    int workers; /**< workers to start: cores, but no more than the quota */
};

/**
 * Looks at the affinity mask, at the machine's topology and at the control groups (v1 and v2) that
 * the process is in. What cannot be found out is taken as no limit. For tests, `root` is put in
 * front of /sys and /proc, and `allowed` stands in for the affinity mask as a list such as "0-3,8";
 * otherwise they are "" and NULL.
 *
 * A second thread of a core adds nothing: decoding waits for memory, and prompts for the vector
 * units that both share. An efficiency core takes longer over its share than the others wait for
 * gladly. A quota that is overdrawn stops all threads at once.
 */
void pd_cpus_look(const char *root, const char *allowed, struct pd_cpus *out);

#endif
