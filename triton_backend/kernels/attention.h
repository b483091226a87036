/* What attention.c and prefill.c compute. */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "vectors.h"

struct heads { /* [rows, heads, positions, dim]; a head's numbers are adjacent, strides in bytes */
    char *numbers;
    int64_t row_stride, head_stride, position_stride;
};

INLINE char *head_of(const struct heads *heads, int64_t row, int64_t head, int64_t position)
{
    return heads->numbers + row * heads->row_stride + head * heads->head_stride + position * heads->position_stride;
}

struct scores { /* How a layer scores keys. */
    int64_t window;          /* Positions seen, the query's own included; 0: all. */
    double scaling, softcap; /* softcap 0: none. */
};

/* Products of queries and keys, where there is a softcap; what is left to scale them by is 1. */
INLINE floats capped(floats products, struct scores by)
{
    const float scaling = by.scaling, softcap = by.softcap;
    return softcap * hyperbolic_tangent(products * (scaling / softcap));
}

struct group { /* Rows in the first slots of tensors [slots, kv heads, capacity, dim]. */
    char *const *tensors;     /* Keys and values by turns, layer by layer. */
    const int64_t *positions; /* Where each row's newest key and value go; those before are there. */
    int64_t rows, capacity;
};

struct step { /* A token of each row. */
    int64_t type, threads, layer, rows, heads, kv_heads, key_dim, value_dim;
    struct scores scores;
    const struct group *groups;
    struct heads query, key, value, out;
};

void decode_attention(const struct step *step);

struct chunk { /* Of one row, in bfloat16. */
    int64_t threads, layer, heads, kv_heads, key_dim, value_dim, capacity;
    int64_t start, length; /* Positions of the context. */
    struct scores scores;
    char *const *tensors; /* [kv heads, capacity, dim]: keys and values by turns, layer by layer. */
    struct heads query, key, value, out;
};

void prefill_attention(const struct chunk *chunk);

#endif
