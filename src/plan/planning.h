/** The parts of a planning run; for the files of plan/ only. */
#ifndef PDVM_PLAN_PLANNING_H
#define PDVM_PLAN_PLANNING_H

#include "plan/plan.h"

/** A run. */
struct planning {
    const struct plan_options *options;
    struct plan_result *result;
    struct baseline baseline;
    struct model_source **sources; /* [n_items] the converted models; NULL: not yet */
    pdvm_model *model;             /* int8: in which matrices are exchanged */
    struct logits_file *base;      /* its predictions */
    char stage[96];                /* for progress: what the steps belong to */
    double done, total;            /* evaluations of stage "measuring" */
};

/** Callbacks whose stage is "STAGE, step"; the stage is formatted like printf. */
struct pd_notify planning_notify(struct planning *p, const char *format, ...) PD_PRINTF(2, 3);

/** Converts and measures every item of the menu (result->items are there, with their settings). */
pdvm_status menu_measure(struct planning *p, pdvm_error *err);

/** Makes the groups, with bytes and seconds; the menu has been measured. */
pdvm_status groups_create(struct planning *p, pdvm_error *err);

/** Opens the int8 model and measures the groups' losses. */
pdvm_status losses_measure(struct planning *p, pdvm_error *err);

/** Fits the correction of sums to what was measured for whole models. */
void losses_fit(struct plan_result *r);

/** Measures a point: all its matrices exchanged at once, against the uncompressed model. */
pdvm_status point_measure(struct planning *p, struct plan_point *point, const char *what,
                          pdvm_error *err);

/** Fills in what is predicted of a point whose choice is made. */
void point_predict(const struct plan_result *r, struct plan_point *point);

/** PDVM_ERR_RANGE for a size or speed that no choice reaches; the groups have been made. */
pdvm_status choice_check(const struct planning *p, pdvm_error *err);

/** Finds and measures the choice, and the front. */
pdvm_status choice_make(struct planning *p, pdvm_error *err);

/** Writes the chosen point's settings as rules. */
pdvm_status rules_make(struct planning *p, pdvm_error *err);

#endif
