/* What a model does to each row between its matrix products: norms, gates, rotations.
 *
 * Operators of a library do these in several passes, each of which costs a call, and for prompts memory.  Rows are
 * [tokens, numbers]; strides are in bytes.  Sums are float32, and each result is rounded once.
 */
#include "rows.h"

enum { FEW = 1 << 14 }; /* With fewer numbers, waking other threads takes longer than doing it. */

INLINE void norm_row(const char *in, char *out, const char *weight, float offset, float epsilon, int64_t dim,
                     enum type type)
{
    floats squares = {0};
    for (int64_t at = 0; at < dim; at += PAIR) {
        pair numbers = load_some(in + at * size_of(type), dim - at, type);
        squares += numbers.a * numbers.a + numbers.b * numbers.b;
    }
    const float scale = 1 / __builtin_sqrtf(total(squares) / dim + epsilon);
    for (int64_t at = 0; at < dim; at += PAIR) {
        pair numbers = load_some(in + at * size_of(type), dim - at, type);
        pair weights = load_some(weight + at * size_of(type), dim - at, type);
        numbers.a *= scale * (weights.a + offset);
        numbers.b *= scale * (weights.b + offset);
        store_some(out + at * size_of(type), numbers, dim - at, type);
    }
}

/* out [tokens, heads, dim] = in / sqrt(mean(in^2) + epsilon) * (weight [dim] + offset); a token's heads are adjacent,
 * and both may be one. */
void rms_norm(int64_t type, int64_t threads, int64_t tokens, int64_t heads, int64_t dim, const char *in,
              int64_t stride, const char *weight, double offset, double epsilon, char *out, int64_t out_stride)
{
#pragma omp parallel for num_threads(threads) if (tokens * heads * dim > FEW)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const char *from = in + token * stride + head * dim * size_of(type);
            char *to = out + token * out_stride + head * dim * size_of(type);
            if (type == BFLOAT16)
                norm_row(from, to, weight, offset, epsilon, dim, BFLOAT16);
            else
                norm_row(from, to, weight, offset, epsilon, dim, FLOAT32);
        }
}

INLINE void gate_row(const char *gate, const char *up, char *out, int64_t dim, enum type type)
{
    for (int64_t at = 0; at < dim; at += PAIR) {
        pair gates = load_some(gate + at * size_of(type), dim - at, type);
        pair ups = load_some(up + at * size_of(type), dim - at, type);
        ups.a *= silu(gates.a);
        ups.b *= silu(gates.b);
        store_some(out + at * size_of(type), ups, dim - at, type);
    }
}

/* out [tokens, dim] = gate * sigmoid(gate) * up */
void silu_gate(int64_t type, int64_t threads, int64_t tokens, int64_t dim, const char *gate, int64_t gate_stride,
               const char *up, int64_t up_stride, char *out)
{
#pragma omp parallel for num_threads(threads) if (tokens * dim > FEW)
    for (int64_t token = 0; token < tokens; token++) {
        const char *gates = gate + token * gate_stride, *ups = up + token * up_stride;
        char *to = out + token * dim * size_of(type);
        if (type == BFLOAT16)
            gate_row(gates, ups, to, dim, BFLOAT16);
        else
            gate_row(gates, ups, to, dim, FLOAT32);
    }
}

/* out [count] = first + second, in bfloat16 */
void add(int64_t threads, int64_t count, const char *first, const char *second, char *out)
{
#pragma omp parallel for num_threads(threads) if (count > FEW)
    for (int64_t at = 0; at < count; at += PAIR) {
        const int64_t from = at * size_of(BFLOAT16), left = count - at;
        const pair one = load_some(first + from, left, BFLOAT16), other = load_some(second + from, left, BFLOAT16);
        store_some(out + from, (pair){one.a + other.a, one.b + other.b}, left, BFLOAT16);
    }
}

INLINE void rotate_head(char *head, const char *cosines, const char *sines, int64_t dim, enum type type)
{
    const int64_t half = dim / 2, middle = half * size_of(type);
    for (int64_t at = 0; at < half; at += PAIR) {
        const int64_t from = at * size_of(type), count = half - at;
        pair x = load_some(head + from, count, type), y = load_some(head + middle + from, count, type);
        pair cx = load_some(cosines + from, count, type), cy = load_some(cosines + middle + from, count, type);
        pair sx = load_some(sines + from, count, type), sy = load_some(sines + middle + from, count, type);
        store_some(head + from, (pair){x.a * cx.a - y.a * sx.a, x.b * cx.b - y.b * sx.b}, count, type);
        store_some(head + middle + from, (pair){y.a * cy.a + x.a * sy.a, y.b * cy.b + x.b * sy.b}, count, type);
    }
}

/* The first `dim` numbers of each head are halves x and y; in place they become x cos - y sin and y cos + x sin.
 * Heads [tokens, heads] are `head_stride` apart, cosines and sines are [tokens, dim]. */
void rotate(int64_t type, int64_t threads, int64_t tokens, int64_t heads, int64_t dim, char *in, int64_t stride,
            int64_t head_stride, const char *cosines, const char *sines)
{
#pragma omp parallel for num_threads(threads) if (tokens * heads * dim > FEW)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            char *from = in + token * stride + head * head_stride;
            const int64_t angles = token * dim * size_of(type);
            if (type == BFLOAT16)
                rotate_head(from, cosines + angles, sines + angles, dim, BFLOAT16);
            else
                rotate_head(from, cosines + angles, sines + angles, dim, FLOAT32);
        }
}
