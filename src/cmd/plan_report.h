/** What `pdvm plan` prints: tables, plots, JSON. */
#ifndef PDVM_CMD_PLAN_REPORT_H
#define PDVM_CMD_PLAN_REPORT_H

#include "plan/plan.h"

#include <jansson.h>

/** Names that the result does not hold, and what was asked for. */
struct plan_names {
    const char *source, *text, *method, *apply;
    enum plan_goal goal;
    double limit;
};

/** Prints everything for people: menu, choice, front, plots, what to think of it. */
void plan_print(const struct plan_names *names, const struct plan_result *r);

/** The same as JSON; new reference, NULL if memory runs out. */
json_t *plan_json(const struct plan_names *names, const struct plan_result *r);

/** Writes the two plots (loss against bytes, and against tokens per second) as an SVG file. */
pdvm_status plan_write_svg(const char *path, const struct plan_result *r, pdvm_error *err);

#endif
