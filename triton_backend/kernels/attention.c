/* Attention of a decode step: one query a row, over keys and values that lie in groups (cache.py).
 *
 * Reading keys and values is the work; so each is read once, for all query heads that share it, and the newest ones
 * are written on the way.  A softmax runs along in blocks of them (arXiv:1805.02867).  Scores and sums are float32.
 */
#include <math.h>

#include "attention.h"

enum {
    TILE = 4,           /* Query heads, at most, for which a key or value is unpacked once. */
    WIDE = 2,           /* Pairs of a value that are added up side by side. */
    AHEAD_BYTES = 2048, /* What comes so much later is asked for now. */
    BLOCK = 256,        /* Positions whose keys and values stay in the nearest cache. */
};

/* What is known of a query head so far. */
struct open {
    float most, sum; /* The largest score, and the sum of weights. */
};

/* scores [first .. end] become weights, and those around them, in the same vectors or before, as good as zero; returns
 * what the weights of blocks before have to be scaled by. */
static float soften(float *scores, int first, int end, struct open *open, struct scores by)
{
    float scaling = by.scaling;
    floats *lanes = (floats *)scores;
    const int vectors = (end + LANES - 1) / LANES;
    if (by.softcap) {
        for (int at = 0; at < vectors; at++)
            lanes[at] = capped(lanes[at], by);
        scaling = 1;
    }
    for (int at = 0; at < first; at++)
        scores[at] = -INFINITY;
    for (int at = end; at % LANES; at++)
        scores[at] = -INFINITY;
    floats most = lanes[0], sum = {0};
    for (int at = 1; at < vectors; at++)
        most = larger(lanes[at], most);
    const float before = open->most, here = largest(most) * scaling;
    open->most = here > before ? here : before;
    for (int at = 0; at < vectors; at++) {
        lanes[at] = exponential(lanes[at] * scaling - open->most);
        sum += lanes[at];
    }
    float factor = exponential(all(before - open->most))[0];
    open->sum = open->sum * factor + total(sum);
    return factor;
}

static int pairs_of(int64_t dim)
{
    return (dim + PAIR - 1) / PAIR;
}

typedef struct {
    floats of[TILE];
} tile;

/* Products of as many queries with one key, to be summed over the lanes. */
INLINE tile products_1(const pair *queries, int pairs, const char *key, int64_t stride, int num, enum type type)
{
    tile sums = {0};
    for (int at = 0; at < pairs; at++) {
        __builtin_prefetch(key + at * PAIR * size_of(type) + AHEAD_BYTES);
        pair part = load(key + at * PAIR * size_of(type), type);
        for (int head = 0; head < num; head++) {
            pair query = queries[head * pairs + at];
            sums.of[head] += query.a * part.a;
            sums.of[head] += query.b * part.b;
        }
    }
    return sums;
}

/* Sums that take twice `width` lanes each become as many again that take `width`. */
INLINE tile join(tile first, tile second, int width, int num)
{
    const ints lane = LANE_NUMBERS;
    const ints low = 2 * lane - (lane & (width - 1));
    for (int head = 0; head < num; head++)
        first.of[head] = __builtin_shuffle(first.of[head], second.of[head], low) +
                         __builtin_shuffle(first.of[head], second.of[head], low + width);
    return first;
}

/* For so many keys after each other.  By halves, so that few sums are open at a time. */
#define PRODUCTS(count, half, width)                                                                                \
    INLINE tile products_##count(const pair *queries, int pairs, const char *key, int64_t stride, int num,          \
                                 enum type type)                                                                    \
    {                                                                                                               \
        tile first = products_##half(queries, pairs, key, stride, num, type);                                       \
        tile second = products_##half(queries, pairs, key + half * stride, stride, num, type);                      \
        return join(first, second, width, num);                                                                     \
    }
#if LANES == 16
PRODUCTS(2, 1, 8)
PRODUCTS(4, 2, 4)
PRODUCTS(8, 4, 2)
PRODUCTS(16, 8, 1)
#define products_of_all products_16
#elif LANES == 8
PRODUCTS(2, 1, 4)
PRODUCTS(4, 2, 2)
PRODUCTS(8, 4, 1)
#define products_of_all products_8
#else
PRODUCTS(2, 1, 2)
PRODUCTS(4, 2, 1)
#define products_of_all products_4
#endif

/* scores [num][BLOCK] of keys [count][pairs], which are `stride` bytes apart */
INLINE void score(float (*scores)[BLOCK], const pair *queries, int pairs, const char *keys, int64_t stride, int count,
                  int num, enum type type)
{
    if (count < LANES) {
        for (int at = 0; at < count; at++) {
            tile sums = products_1(queries, pairs, keys + at * stride, stride, num, type);
            for (int head = 0; head < num; head++)
                scores[head][at] = total(sums.of[head]);
        }
        return;
    }
    for (int next = 0; next < count; next += LANES) {
        int at = next + LANES < count ? next : count - LANES; /* The last ones overlap with those before. */
        tile sums = products_of_all(queries, pairs, keys + at * stride, stride, num, type);
        for (int head = 0; head < num; head++)
            memcpy(&scores[head][at], &sums.of[head], sizeof sums.of[head]);
    }
}

/* sums [num][pairs], of which `some`, grow by values [count][pairs] times weights [num][BLOCK] */
INLINE void weigh_some(pair *sums, int some, float (*weights)[BLOCK], int pairs, const char *values, int64_t stride,
                       int count, int num, enum type type)
{
    pair open[TILE][WIDE];
    for (int head = 0; head < num; head++)
        for (int at = 0; at < some; at++)
            open[head][at] = sums[head * pairs + at];
    for (int row = 0; row < count; row++)
        for (int at = 0; at < some; at++) {
            const char *from = values + row * stride + at * PAIR * size_of(type);
            __builtin_prefetch(from + AHEAD_BYTES);
            pair part = load(from, type);
            for (int head = 0; head < num; head++) {
                open[head][at].a += weights[head][row] * part.a;
                open[head][at].b += weights[head][row] * part.b;
            }
        }
    for (int head = 0; head < num; head++)
        for (int at = 0; at < some; at++)
            sums[head * pairs + at] = open[head][at];
}

INLINE void weigh(pair *sums, float (*weights)[BLOCK], int pairs, const char *values, int64_t stride, int count,
                  int num, enum type type)
{
    for (int at = 0; at < pairs; at += WIDE) {
        const char *from = values + at * PAIR * size_of(type);
        if (at + WIDE <= pairs)
            weigh_some(sums + at, WIDE, weights, pairs, from, stride, count, num, type);
        else
            weigh_some(sums + at, 1, weights, pairs, from, stride, count, num, type);
    }
}

struct block { /* Keys and values of some positions, for some query heads. */
    const pair *queries;
    pair *sums;
    struct open *open;
    const char *keys, *values;
    int64_t key_stride, value_stride; /* In bytes. */
    int count;
};

INLINE void attend_block(struct block block, int key_pairs, int value_pairs, int num, enum type type,
                         const struct step *step)
{
    float scores[TILE][BLOCK] __attribute__((aligned(64)));
    score(scores, block.queries, key_pairs, block.keys, block.key_stride, block.count, num, type);
    for (int head = 0; head < num; head++) {
        float factor = soften(scores[head], 0, block.count, &block.open[head], step->scores);
        for (int at = 0; at < value_pairs; at++) {
            block.sums[head * value_pairs + at].a *= factor;
            block.sums[head * value_pairs + at].b *= factor;
        }
    }
    weigh(block.sums, scores, value_pairs, block.values, block.value_stride, block.count, num, type);
}

/* The usual sizes are constants to the compiler. */
#define SIZES(name, key_pairs, value_pairs, type)                                                                   \
    static void name(struct block block, int num, const struct step *step)                                          \
    {                                                                                                               \
        if (num == 4)                                                                                               \
            attend_block(block, key_pairs, value_pairs, 4, type, step);                                             \
        else if (num == 2)                                                                                          \
            attend_block(block, key_pairs, value_pairs, 2, type, step);                                             \
        else                                                                                                        \
            attend_block(block, key_pairs, value_pairs, 1, type, step);                                             \
    }
SIZES(of_2_pairs, 2, 2, BFLOAT16)
SIZES(of_4_pairs, 4, 4, BFLOAT16)
SIZES(of_bfloat16, pairs_of(step->key_dim), pairs_of(step->value_dim), BFLOAT16)
SIZES(of_float32, pairs_of(step->key_dim), pairs_of(step->value_dim), FLOAT32)

static void attend(struct block block, int num, const struct step *step)
{
    if (step->type == FLOAT32)
        of_float32(block, num, step);
    else if (step->key_dim == 2 * PAIR && step->value_dim == 2 * PAIR)
        of_2_pairs(block, num, step);
    else if (step->key_dim == 4 * PAIR && step->value_dim == 4 * PAIR)
        of_4_pairs(block, num, step);
    else
        of_bfloat16(block, num, step);
}

/* Rows [count][dim], each filled up with zeros to whole pairs; returns where they are, and how far apart. */
static const char *widened(char *wide, const char *rows, int64_t *stride, int64_t wide_bytes, int count)
{
    if (*stride == wide_bytes)
        return rows;
    for (int row = 0; row < count; row++) {
        memcpy(wide + row * wide_bytes, rows + row * *stride, *stride);
        memset(wide + row * wide_bytes + *stride, 0, wide_bytes - *stride);
    }
    *stride = wide_bytes;
    return wide;
}

/* One row's query heads that share a KV head. */
static void attend_row(const struct step *step, const struct group *group, int64_t slot, int64_t row, int64_t kv_head)
{
    const enum type type = step->type;
    const int64_t key_bytes = step->key_dim * size_of(type), value_bytes = step->value_dim * size_of(type);
    const int key_pairs = pairs_of(step->key_dim), value_pairs = pairs_of(step->value_dim);
    const int64_t wide_key_bytes = key_pairs * sizeof(pair) / sizeof(float) * size_of(type);
    const int64_t wide_value_bytes = value_pairs * sizeof(pair) / sizeof(float) * size_of(type);
    const int share = step->heads / step->kv_heads;
    const int64_t newest = group->positions[slot];
    const int64_t window = step->scores.window, first = window && window <= newest ? newest + 1 - window : 0;
    const int64_t before = (slot * step->kv_heads + kv_head) * group->capacity;
    char *keys = group->tensors[2 * step->layer] + before * key_bytes;
    char *values = group->tensors[2 * step->layer + 1] + before * value_bytes;
    memcpy(keys + newest * key_bytes, head_of(&step->key, row, kv_head, 0), key_bytes);
    memcpy(values + newest * value_bytes, head_of(&step->value, row, kv_head, 0), value_bytes);

    char wide_keys[BLOCK * wide_key_bytes], wide_values[BLOCK * wide_value_bytes];
    pair queries[share * key_pairs], sums[share * value_pairs];
    struct open open[share];
    for (int head = 0; head < share; head++) {
        const char *query = head_of(&step->query, row, kv_head * share + head, 0);
        for (int at = 0; at < key_pairs; at++)
            queries[head * key_pairs + at] =
                load_some(query + at * PAIR * size_of(type), step->key_dim - at * PAIR, type);
        open[head] = (struct open){-INFINITY, 0};
    }
    memset(sums, 0, sizeof sums);

    for (int64_t at = first; at <= newest; at += BLOCK) {
        const int count = newest + 1 - at < BLOCK ? newest + 1 - at : BLOCK;
        struct block block = {.key_stride = key_bytes, .value_stride = value_bytes, .count = count};
        block.keys = widened(wide_keys, keys + at * key_bytes, &block.key_stride, wide_key_bytes, count);
        block.values = widened(wide_values, values + at * value_bytes, &block.value_stride, wide_value_bytes, count);
        for (int head = 0, num; head < share; head += num) {
            num = share - head >= 4 ? 4 : share - head >= 2 ? 2 : 1;
            block.queries = &queries[head * key_pairs];
            block.sums = &sums[head * value_pairs];
            block.open = &open[head];
            attend(block, num, step);
        }
    }

    for (int head = 0; head < share; head++) {
        char *out = head_of(&step->out, row, kv_head * share + head, 0);
        for (int at = 0; at < value_pairs; at++) {
            pair sum = sums[head * value_pairs + at];
            sum.a /= open[head].sum;
            sum.b /= open[head].sum;
            store_some(out + at * PAIR * size_of(type), sum, step->value_dim - at * PAIR, type);
        }
    }
}

void decode_attention(const struct step *step)
{
    const int64_t work = step->rows * step->kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(step->threads)
    for (int64_t at = 0; at < work; at++) {
        const int64_t row = at / step->kv_heads;
        const struct group *group = step->groups;
        int64_t slot = row;
        for (; slot >= group->rows; group++)
            slot -= group->rows;
        attend_row(step, group, slot, row, at % step->kv_heads);
    }
}
