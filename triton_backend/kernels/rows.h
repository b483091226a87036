/* What rows.c computes. */
#ifndef ROWS_H
#define ROWS_H

#include "vectors.h"

void rms_norm(int64_t type, int64_t threads, int64_t tokens, int64_t heads, int64_t dim, const char *in,
              int64_t stride, const char *weight, double offset, double epsilon, char *out, int64_t out_stride);

void add(int64_t threads, int64_t count, const char *first, const char *second, char *out);

void rotate(int64_t type, int64_t threads, int64_t tokens, int64_t heads, int64_t dim, char *in, int64_t stride,
            int64_t head_stride, const char *cosines, const char *sines);

#endif
