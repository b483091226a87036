/* What linear.c computes. */
#ifndef LINEAR_H
#define LINEAR_H

#include "tiles.h"

#ifdef HAS_TILES

struct linear {
    const char *rows, *weight, *bias; /* Bias: of whole panels, or null. */
    char *out;
    int64_t num_rows, inputs, outputs; /* Inputs: a multiple of NUMBERS. */
    int64_t is_gated; /* The gate's weight and bias, of whole panels, and after them those of the numbers. */
    int64_t threads;
};

void linear(const struct linear *linear);

#endif
#endif
