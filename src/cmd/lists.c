/* Lists on the command line. */
#include "cmd/lists.h"
#include "cmd/options.h"

#include <string.h>

pdvm_status lists_each(const char *flag, const char *list,
                       pdvm_status (*take)(void *user, const char *flag, const char *item,
                                           pdvm_error *err),
                       void *user, pdvm_error *err) {
    for (const char *p = list;; p++) {
        char item[64];
        size_t length = strcspn(p, ",");
        if (length == 0 || length >= sizeof item)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "%s: \"%.80s\": expected values with commas between them", flag, list);
        memcpy(item, p, length);
        item[length] = '\0';
        PD_TRY(take(user, flag, item, err));
        p += length;
        if (*p == '\0') return PDVM_OK;
    }
}

pdvm_status lists_too_many(const char *flag, pdvm_error *err) {
    return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: at most %d values", flag, LISTS_MOST);
}

struct taking_numbers {
    struct number_list *list;
    int64_t max;
};

static pdvm_status take_number(void *user, const char *flag, const char *item, pdvm_error *err) {
    const struct taking_numbers *n = user;
    int64_t value;
    if (!options_int(item, &value) || value < 0 || value > n->max)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: \"%s\" is not a number from 0 to %lld", flag,
                       item, (long long)n->max);
    if (n->list->n == LISTS_MOST) return lists_too_many(flag, err);
    n->list->items[n->list->n++] = value;
    return PDVM_OK;
}

pdvm_status lists_numbers(const char *flag, const char *list, int64_t max, struct number_list *out,
                          pdvm_error *err) {
    struct taking_numbers taking = {out, max};
    out->n = 0;
    return lists_each(flag, list, take_number, &taking, err);
}

static pdvm_status take_share(void *user, const char *flag, const char *item, pdvm_error *err) {
    struct share_list *s = user;
    double value;
    if (!options_real(item, &value) || value < 0 || value > 1)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: \"%s\": the share of zeros is a number from 0 (dense) to 1", flag,
                       item);
    if (s->n == LISTS_MOST) return lists_too_many(flag, err);
    s->items[s->n++] = value;
    return PDVM_OK;
}

pdvm_status lists_shares(const char *flag, const char *list, struct share_list *out,
                         pdvm_error *err) {
    out->n = 0;
    return lists_each(flag, list, take_share, out, err);
}

static pdvm_status take_coding(void *user, const char *flag, const char *item, pdvm_error *err) {
    struct coding_list *c = user;
    if (c->n == LISTS_MOST) return lists_too_many(flag, err);
    if (!mdcsr_values_parse(item, &c->items[c->n]))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s: unknown values \"%s\": f32, bf16, f16, int8, lut8 or lut4", flag, item);
    c->n++;
    return PDVM_OK;
}

pdvm_status lists_codings(const char *flag, const char *list, struct coding_list *out,
                          pdvm_error *err) {
    out->n = 0;
    return lists_each(flag, list, take_coding, out, err);
}
