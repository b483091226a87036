/* Attention of a chunk of a prompt in bfloat16, on the processor's matrix units (Intel's AMX): it writes the chunk's keys
 * and values to where they belong (cache.py), and reads what is there of the tokens before.
 *
 * Scores and sums are float32, weights are rounded to bfloat16.  A tile is 16 lines of 64 bytes: of queries or weights,
 * 32 numbers a line; of keys or values, a pair for each of 16 columns (Intel's manual, TDPBF16PS).
 */
#include "softmax.h"
#include "tiles.h"

#ifdef HAS_TILES

enum { QUERIES = 128 }; /* Positions for which keys and values are put into tiles once. */

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static const struct registers WHOLE = {
    .palette = 1,
    .line_bytes = {[0 ... 7] = LINE_BYTES},
    .lines = {[0 ... 7] = LINES},
};

/* sums [LINES][stride] += or = lines [LINES][steps] times columns [steps], of `num` tiles side by side: four, or one. */
INLINE void multiply(float *sums, int64_t stride, const char *lines, int64_t line_stride, const char *columns,
                     int64_t column_stride, int64_t steps, int num, int adds)
{
    stride *= sizeof(float);
    char *to = (char *)sums;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (adds) {
        _tile_loadd(0, to, stride);
        if (num == 4) {
            _tile_loadd(1, to + LINE_BYTES, stride);
            _tile_loadd(2, to + 2 * LINE_BYTES, stride);
            _tile_loadd(3, to + 3 * LINE_BYTES, stride);
        }
    }
    for (int64_t step = 0; step < steps; step++) {
        const char *tiles = columns + step * TILE_BYTES;
        _tile_loadd(4, lines + step * LINE_BYTES, line_stride);
        _tile_loadd(5, tiles, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 5);
        if (num == 4) {
            _tile_loadd(6, tiles + column_stride, LINE_BYTES);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(7, tiles + 2 * column_stride, LINE_BYTES);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, tiles + 3 * column_stride, LINE_BYTES);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, to, stride);
    if (num == 4) {
        _tile_stored(1, to + LINE_BYTES, stride);
        _tile_stored(2, to + 2 * LINE_BYTES, stride);
        _tile_stored(3, to + 3 * LINE_BYTES, stride);
    }
}

/* The same, for any number of tiles side by side. */
static void multiply_all(float *sums, int64_t stride, const char *lines, int64_t line_stride, const char *columns,
                         int64_t column_stride, int64_t steps, int64_t num, int adds)
{
    int64_t at = 0;
    for (; at + 4 <= num; at += 4)
        multiply(sums + at * LINES, stride, lines, line_stride, columns + at * column_stride, column_stride, steps, 4,
                 adds);
    for (; at < num; at++)
        multiply(sums + at * LINES, stride, lines, line_stride, columns + at * column_stride, column_stride, steps, 1,
                 adds);
}

/* A line of 32 numbers, of which some may be missing: those are zero. */
INLINE ints line_of(const char *numbers, int64_t count)
{
    ints line = {0};
    if (count >= NUMBERS)
        memcpy(&line, numbers, LINE_BYTES);
    else
        memcpy(&line, numbers, count * 2);
    return line;
}

/* Half a line. */
INLINE halves halves_of(const char *numbers, int64_t count)
{
    halves half = {0};
    if (count >= LANES)
        memcpy(&half, numbers, sizeof half);
    else
        memcpy(&half, numbers, count * 2);
    return half;
}

INLINE void store_halves(char *to, floats numbers, int64_t count)
{
    const halves narrow = __builtin_convertvector(rounded(numbers) >> 16, halves);
    if (count >= LANES)
        memcpy(to, &narrow, sizeof narrow);
    else
        memcpy(to, &narrow, count * 2);
}

/* Keys [count][dim] as columns: [LANES keys a tile][dim], a pair of a key's numbers under each other. */
static void stand(char *tiles, const char *keys, int64_t count, int64_t dim)
{
    const ints lane = LANE_NUMBERS;
    const int64_t steps = ceiling(dim, NUMBERS);
    for (int64_t first = 0; first < count; first += LANES)
        for (int64_t step = 0; step < steps; step++, tiles += TILE_BYTES) {
            ints lines[LINES] = {0};
            for (int64_t key = 0; key < least(count - first, LINES); key++)
                lines[key] = line_of(keys + ((first + key) * dim + step * NUMBERS) * 2, dim - step * NUMBERS);
            /* Transposed: halves of a square change places, then halves of those. */
            for (int width = LINES / 2; width; width /= 2)
                for (int line = 0; line < LINES; line++)
                    if (!(line & width)) {
                        const ints upper = lines[line], lower = lines[line + width];
                        const ints is_right = (lane & width) != 0;
                        lines[line] = __builtin_shuffle(upper, lower, lane + (is_right & (LANES - width)));
                        lines[line + width] =
                            __builtin_shuffle(upper, lower, lane + (is_right & LANES) + (~is_right & width));
                    }
            memcpy(tiles, lines, TILE_BYTES);
        }
}

/* Values [count][dim] as columns: [LANES of dim a tile][BLOCK values], two values of a column under each other. */
static void lay(char *tiles, const char *values, int64_t count, int64_t dim)
{
    for (int64_t column = 0; column < dim; column += LANES, tiles += BLOCK / 2 * LINE_BYTES)
        for (int64_t first = 0; first < ceiling(count, NUMBERS) * NUMBERS; first += 2) {
            const char *value = values + (first * dim + column) * 2;
            const halves zeros = {0};
            const halves upper = first < count ? halves_of(value, dim - column) : zeros;
            const halves lower = first + 1 < count ? halves_of(value + dim * 2, dim - column) : zeros;
            const words line = __builtin_convertvector(upper, words) | __builtin_convertvector(lower, words) << 16;
            memcpy(tiles + first / 2 * LINE_BYTES, &line, sizeof line);
        }
}

/* What the query heads that share a KV head see. */
struct part {
    char *keys, *values; /* [capacity, dim] */
    int64_t kv_head;
};

static struct part part_of(const struct chunk *chunk, int64_t kv_head)
{
    return (struct part){
        .keys = chunk->tensors[2 * chunk->layer] + kv_head * chunk->capacity * chunk->key_dim * 2,
        .values = chunk->tensors[2 * chunk->layer + 1] + kv_head * chunk->capacity * chunk->value_dim * 2,
        .kv_head = kv_head,
    };
}

static void keep(const struct chunk *chunk, struct part part)
{
    for (int64_t at = 0; at < chunk->length; at++) {
        const int64_t position = chunk->start + at;
        memcpy(part.keys + position * chunk->key_dim * 2, head_of(&chunk->key, 0, part.kv_head, at),
               chunk->key_dim * 2);
        memcpy(part.values + position * chunk->value_dim * 2, head_of(&chunk->value, 0, part.kv_head, at),
               chunk->value_dim * 2);
    }
}

/* Some positions: `first` of the chunk and those after it. */
static void attend(const struct chunk *chunk, struct part part, int64_t first)
{
    const int64_t share = chunk->heads / chunk->kv_heads;
    const int64_t steps = ceiling(chunk->key_dim, NUMBERS), columns = ceiling(chunk->value_dim, LANES);
    const int64_t count = least(chunk->length - first, QUERIES), position = chunk->start + first;
    const int64_t end = position + count, window = chunk->scores.window;
    const int64_t seen = window && window <= position ? position + 1 - window : 0;

    char queries[share][QUERIES][steps * LINE_BYTES] __attribute__((aligned(64)));
    float sums[share][QUERIES][columns * LANES] __attribute__((aligned(64)));
    struct open open[share][QUERIES];
    char keys[BLOCK / LANES * steps * TILE_BYTES] __attribute__((aligned(64)));
    char values[columns * BLOCK / NUMBERS * TILE_BYTES] __attribute__((aligned(64)));
    float scores[LINES][BLOCK] __attribute__((aligned(64)));
    char weights[LINES][BLOCK * 2] __attribute__((aligned(64)));

    memset(queries, 0, sizeof queries);
    memset(sums, 0, sizeof sums);
    for (int64_t head = 0; head < share; head++)
        for (int64_t at = 0; at < QUERIES; at++) {
            open[head][at] = (struct open){-INFINITY, 0};
            if (at < count)
                memcpy(queries[head][at], head_of(&chunk->query, 0, part.kv_head * share + head, first + at),
                       chunk->key_dim * 2);
        }

    for (int64_t from = seen; from < end; from += BLOCK) {
        const int64_t width = least(end - from, BLOCK);
        stand(keys, part.keys + from * chunk->key_dim * 2, width, chunk->key_dim);
        lay(values, part.values + from * chunk->value_dim * 2, width, chunk->value_dim);
        for (int64_t head = 0; head < share; head++)
            for (int64_t at = 0; at < count; at += LINES) {
                const int64_t limit = least(position + at + LINES - from, width);
                if (limit <= 0)
                    continue;
                multiply_all(scores[0], BLOCK, queries[head][at], steps * LINE_BYTES, keys, steps * TILE_BYTES, steps,
                             ceiling(limit, LANES), 0);
                for (int64_t line = 0; line < LINES; line++) {
                    const int64_t newest = position + at + line - from, oldest = newest + 1 - window;
                    const int64_t last = least(newest + 1, limit), start = window && oldest > 0 ? oldest : 0;
                    memset(weights[line], 0, ceiling(limit, NUMBERS) * LINE_BYTES);
                    if (start >= last)
                        continue;
                    const float factor = soften(scores[line], start, last, &open[head][at + line], chunk->scores);
                    for (int64_t column = 0; column < columns; column++)
                        ((floats *)sums[head][at + line])[column] *= factor;
                    for (int64_t key = 0; key < last; key += LANES)
                        store_halves(weights[line] + key * 2, *(floats *)(scores[line] + key), LANES);
                }
                multiply_all(sums[head][at], columns * LANES, weights[0], BLOCK * 2, values,
                             BLOCK / NUMBERS * TILE_BYTES, ceiling(limit, NUMBERS), columns, 1);
            }
    }

    for (int64_t head = 0; head < share; head++)
        for (int64_t at = 0; at < count; at++) {
            char *out = head_of(&chunk->out, 0, part.kv_head * share + head, first + at);
            for (int64_t column = 0; column < columns; column++)
                store_halves(out + column * LANES * 2,
                             ((floats *)sums[head][at])[column] / open[head][at].sum,
                             chunk->value_dim - column * LANES);
        }
}

void prefill_attention(const struct chunk *chunk)
{
    const int64_t parts = chunk->kv_heads, blocks = ceiling(chunk->length, QUERIES);
#pragma omp parallel num_threads(chunk->threads)
    {
#pragma omp for
        for (int64_t number = 0; number < parts; number++)
            keep(chunk, part_of(chunk, number));

        _tile_loadconfig(&WHOLE);
#pragma omp for schedule(dynamic)
        for (int64_t number = 0; number < parts * blocks; number++) {
            /* The last positions see most, and go first. */
            const int64_t first = (blocks - 1 - number / parts) * QUERIES;
            attend(chunk, part_of(chunk, number % parts), first);
        }
        _tile_release();
    }
}

#endif
