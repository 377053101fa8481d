/** What machine this is: for reports, and for asking before much memory is taken. */
#ifndef PDVM_BASE_MACHINE_H
#define PDVM_BASE_MACHINE_H

#include <stdint.h>

/** Facts about the machine; empty or 0 where the system does not tell. */
struct pd_machine {
    char cpu[128];    /**< "AMD Ryzen 7 7840U", else the architecture: "aarch64" */
    char system[128]; /**< kernel and version: "Linux 6.1.0" */
    int n_cpus;       /**< that this process may run on */
    uint64_t memory;  /**< bytes of RAM, or of the container's limit if that is less */
    uint64_t cache;   /**< bytes of the last-level cache of one processor */
};

/** Fills *m. */
void pd_machine_get(struct pd_machine *m);

/**
 * Bytes that can be allocated without swapping: what the system calls available, or what a
 * container's limit (cgroup v1 or v2) leaves if that is less; 0 if neither is known.
 */
uint64_t pd_memory_available(void);

#endif
