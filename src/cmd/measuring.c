#include "cmd/measuring.h"
#include "cmd/common.h"
#include "compress/settings.h"

#define DEFAULT_SPEED_TOKENS 64

struct measuring measuring_default(void) {
    return (struct measuring){.values = "int8,lut4",
                              .kernels = "auto",
                              .backend = "auto",
                              .speed_tokens = DEFAULT_SPEED_TOKENS,
                              .embed = SETTING_UNSET,
                              .group = SETTING_UNSET};
}

pdvm_status measuring_read_lists(struct measuring *m, pdvm_error *err) {
    PD_TRY(lists_shares("--sparsity", m->sparsity, &m->sparsities, err));
    for (size_t i = 0; i < m->sparsities.n; i++)
        if (m->sparsities.items[i] >= 1)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "--sparsity: a model whose weights are all zero is none");
    return lists_codings("--values", m->values, &m->codings, err);
}

struct convert_options measuring_convert(const struct measuring *m, bool calibrates) {
    struct convert_options o = convert_options_default();
    if (calibrates)
        o.calibration.text = (struct calibration_options){.path = m->calib,
                                                          .n_tokens = m->calib_tokens,
                                                          .seq = m->calib_seq,
                                                          .backend = m->backend};
    o.n_threads = (int)m->threads;
    o.plan.embed = m->embed;
    o.plan.general.group = group_of(m->group);
    return o;
}

struct baseline_options measuring_baseline(const struct measuring *m,
                                           enum perplexity_protocol protocol,
                                           const struct pd_notify *notify) {
    return (struct baseline_options){.protocol = protocol,
                                     .n_ctx = (uint32_t)m->window,
                                     .kernels = m->kernels,
                                     .n_threads = (int)m->threads,
                                     .notify = *notify};
}
