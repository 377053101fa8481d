/**
 * What a person at a terminal sees: messages, progress, colours, interrupts. Results go to standard
 * output, everything here to standard error.
 */
#ifndef PDVM_CMD_TERMINAL_H
#define PDVM_CMD_TERMINAL_H

#include "base/error.h"
#include "base/notify.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/**
 * Sets up signals: SIGINT and SIGTERM only raise a flag the first time and kill the second time;
 * SIGPIPE is ignored, so that writing to a closed pipe is an ordinary error.
 */
void terminal_init(void);

/** Whether SIGINT or SIGTERM has come. Progress callbacks then return false. */
bool terminal_interrupted(void);

/** Forgets a SIGINT: the next one is the first again. SIGTERM is not forgotten. */
void terminal_interrupt_clear(void);

/** The exit status after an interrupt: 128 + the signal's number, 130 for Ctrl-C. */
int terminal_interrupt_status(void);

/** Prints "pdvm COMMAND: message". Ends an unfinished progress line first. */
void terminal_error(const char *command, const char *fmt, ...) PD_PRINTF(2, 3);

/**
 * Prints the message of `err` and returns the exit status that belongs to it: CMD_FAILED, or
 * terminal_interrupt_status() where the error is PDVM_ERR_CANCELLED after an interrupt (then
 * "interrupted" is all that is printed).
 */
int terminal_fail(const char *command, const pdvm_error *err);

/** A pdvm_log_fn: prints warnings ("pdvm COMMAND: warning: ..."); user is the command's name. */
void terminal_log(void *user, pdvm_log_level level, const char *message);

/** A pdvm_log_fn: prints everything; user is the command's name. For -v. */
void terminal_log_verbose(void *user, pdvm_log_level level, const char *message);

/** Whether to use colours on `f`: it is a terminal, NO_COLOR is not set, TERM is not "dumb". */
bool terminal_colors(FILE *f);

/** Columns of the terminal behind `f`; 80 where that cannot be known. */
int terminal_width(FILE *f);

/**
 * A progress bar on standard error, if that is a terminal; otherwise a plain line now and then, and
 * only for what takes more than two seconds. Start with zeroes; `total` and `unit` may be set at
 * any time and add a rate ("1.2 GiB/s", "340 tokens/s").
 */
struct terminal_progress {
    bool quiet;       /**< show nothing, only watch for interrupts */
    double total;     /**< amount that fraction 1 stands for; 0: no rate */
    const char *unit; /**< "tokens"; "bytes" is printed in KiB, MiB, ... */
    /* private */
    char stage[64];
    double started, shown;
    bool visible;
};

/** A pdvm_progress_fn; user is a struct terminal_progress. False after an interrupt. */
bool terminal_progress(void *user, const char *stage, double fraction);

/**
 * What a command's engine shall call: its progress, and its warnings or, with `verbose`, all that it
 * has to say. `command` is the name in messages; both must live as long as the callbacks.
 */
struct pd_notify terminal_notify(const char *command, struct terminal_progress *progress,
                                 bool verbose);

/** Removes the bar. Call before printing something else, and at the end. */
void terminal_progress_end(struct terminal_progress *p);

/** "17.2 MiB" into `buf`; returns it. */
const char *terminal_size(char buf[32], uint64_t bytes);

/** "35 ms", "2.1 s", "12 s", "3:05 min", "2:10:00 h" into `buf`; returns it. */
const char *terminal_duration(char buf[32], double seconds);

#endif
