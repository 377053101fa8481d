/** Whether two matrices are stored alike. */
#ifndef PDVM_TESTS_SAME_MATRIX_H
#define PDVM_TESTS_SAME_MATRIX_H

#include "mdcsr/mdcsr.h"

/** Fails the test unless both have the same bytes in all their arrays. */
void assert_same_matrix(const struct mdcsr *a, const struct mdcsr *b);

#endif
