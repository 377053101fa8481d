#include "support/same_matrix.h"

#include "support/support.h"

void assert_same_matrix(const struct mdcsr *a, const struct mdcsr *b) {
    assert_int_equal(a->n_entries, b->n_entries);
    assert_int_equal(a->values_size, b->values_size);
    assert_int_equal(a->index_size, b->index_size);
    assert_memory_equal(a->values, b->values, a->values_size);
    if (a->index) assert_memory_equal(a->index, b->index, a->index_size);
    if (a->row_offsets)
        assert_memory_equal(a->row_offsets, b->row_offsets, (size_t)(a->rows + 1) * 8);
    if (a->index_offsets)
        assert_memory_equal(a->index_offsets, b->index_offsets, (size_t)(a->rows + 1) * 8);
    if (a->scales) assert_memory_equal(a->scales, b->scales, (size_t)(a->rows * a->n_groups) * 4);
    assert_memory_equal(a->codebook, b->codebook, sizeof a->codebook);
}
