/* Drawing tokens (sampling.py): the largest of logit / temperature + noise, with the noise made on the way. */
#include "vectors.h"

/* As sampling.py has it. */
INLINE words mixed(words x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* Of normal positive numbers, to within 2 units in the last place; the polynomial is Cephes' (netlib.org/cephes, logf). */
INLINE floats logarithm(floats x)
{
    words bits = (words)x;
    floats half = (floats)((bits & 0x7fffffu) | 0x3f000000u); /* x = 2^exponent half */
    const ints is_small = half < 0.707106781f;
    const floats exponent = __builtin_convertvector((ints)(bits >> 23) - 126 + is_small, floats);
    half = half + either(is_small, half, all(0)) - 1;
    const floats square = half * half;
    floats p = all(7.0376836292e-2f);
    p = p * half - 1.1514610310e-1f;
    p = p * half + 1.1676998740e-1f;
    p = p * half - 1.2420140846e-1f;
    p = p * half + 1.4249322787e-1f;
    p = p * half - 1.6668057665e-1f;
    p = p * half + 2.0000714765e-1f;
    p = p * half - 2.4999993993e-1f;
    p = p * half + 3.3333331174e-1f;
    p = p * half * square - 2.12194440e-4f * exponent - 0.5f * square;
    return half + p + 0.693359375f * exponent;
}

/* Gumbel noise of a row's key for ids. */
INLINE floats noise(ints ids, const uint32_t *key)
{
    const words h = mixed((mixed((words)ids) ^ key[0]) + key[1]);
    floats u = __builtin_convertvector((ints)(h >> 1), floats) * 0x1p-31f + 0x1p-32f;
    u = smaller(u, all(1 - 0x1p-24f));
    /* log(1 - u) by what 1 - u is rounded to: its error is that of the difference. */
    const floats rest = 1 - u;
    const floats wait = either(rest == 1, u, logarithm(rest) * u / (rest - 1));
    return -logarithm(wait);
}

struct best {
    floats scores;
    ints ids, is_broken; /* By lane; broken: there was something that is no number. */
};

INLINE void run(struct best *best, floats logits, ints ids, float temperature, float floor, const uint32_t *key,
                int64_t vocabulary)
{
    const floats scaled = logits / temperature;
    floats scores = scaled + noise(ids, key);
    const ints is_out = (scaled < floor) | (ids >= (int32_t)vocabulary);
    scores = either(is_out, all(-__builtin_inff()), scores);
    best->is_broken |= scores != scores;
    const ints is_better = scores > best->scores;
    best->scores = either(is_better, scores, best->scores);
    best->ids = (is_better & ids) | (~is_better & best->ids);
}

INLINE void race_row(const char *logits, float temperature, float floor, const uint32_t *key, int64_t vocabulary,
                     float *score, int64_t *id, enum type type)
{
    const ints lane = LANE_NUMBERS;
    const ints first = type == BFLOAT16 ? 2 * lane : lane, second = first + (type == BFLOAT16 ? 1 : LANES);
    const struct best none = {.scores = all(-__builtin_inff())};
    struct best a = none, b = none;
    for (int64_t at = 0; at < vocabulary; at += PAIR) {
        const pair numbers = load_some(logits + at * size_of(type), vocabulary - at, type);
        run(&a, numbers.a, first + (int32_t)at, temperature, floor, key, vocabulary);
        run(&b, numbers.b, second + (int32_t)at, temperature, floor, key, vocabulary);
    }
    *score = largest(larger(a.scores, b.scores));
    *id = vocabulary;
    for (int at = 0; at < LANES; at++) { /* Of equals the first. */
        if (a.scores[at] == *score && a.ids[at] < *id)
            *id = a.ids[at];
        if (b.scores[at] == *score && b.ids[at] < *id)
            *id = b.ids[at];
        if (a.is_broken[at] | b.is_broken[at])
            *score = __builtin_nanf("");
    }
}

/* scores and ids [rows] of logits [rows, vocabulary], whose rows are `stride` bytes apart; what is below its row's floor
 * is left out, if there are floors; keys [rows, 2] are low and high halves. */
void race(int64_t type, int64_t threads, int64_t rows, int64_t vocabulary, const char *logits, int64_t stride,
          const float *temperatures, const float *floors, const uint32_t *keys, float *scores, int64_t *ids)
{
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const char *from = logits + row * stride;
        const float temperature = temperatures[row], floor = floors ? floors[row] : -__builtin_inff();
        const uint32_t *key = keys + 2 * row;
        if (type == BFLOAT16)
            race_row(from, temperature, floor, key, vocabulary, &scores[row], &ids[row], BFLOAT16);
        else
            race_row(from, temperature, floor, key, vocabulary, &scores[row], &ids[row], FLOAT32);
    }
}
