/* Vectors of floats, as long as the processor's; and numbers in memory.
 *
 * Numbers become a pair of vectors at a time.  Those of a pair of bfloat16 that lie in one 32-bit word go to the
 * two vectors: so the halves are one shift and one mask.  float32 goes half and half.  Where only sums over all
 * numbers count, or what is stored is what was loaded, the order does not matter.
 */
#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX2__)
#define LANES 8
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANES 4
#define LANE_NUMBERS {0, 1, 2, 3}
#endif

enum { PAIR = 2 * LANES };
enum type { BFLOAT16, FLOAT32 };

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef struct {
    floats a, b;
} pair;

INLINE int64_t size_of(enum type type)
{
    return type == BFLOAT16 ? 2 : 4;
}

INLINE floats all(float number)
{
    return (floats){0} + number;
}

/* Where the mask is -1, the first; where it is 0, the second. */
INLINE floats either(ints mask, floats first, floats second)
{
    return (floats)((mask & (ints)first) | (~mask & (ints)second));
}

/* Of each lane; the second where one of them is no number. */
INLINE floats larger(floats first, floats second)
{
#if defined(__AVX512F__)
    return (floats)_mm512_max_ps((__m512)first, (__m512)second);
#else
    return either(first > second, first, second);
#endif
}

INLINE floats smaller(floats first, floats second)
{
#if defined(__AVX512F__)
    return (floats)_mm512_min_ps((__m512)first, (__m512)second);
#else
    return either(first < second, first, second);
#endif
}

INLINE pair load(const char *from, enum type type)
{
    if (type == BFLOAT16) {
        words both;
        memcpy(&both, from, sizeof both);
        return (pair){(floats)(both << 16), (floats)(both & 0xffff0000u)};
    }
    pair numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}

/* To the nearest bfloat16, ties to even; NaNs stay NaNs. */
INLINE words rounded(floats numbers)
{
    words bits = (words)numbers;
    words near = bits + 0x7fffu + (bits >> 16 & 1u);
    return (words)either(numbers == numbers, (floats)near, (floats)(bits | 0x400000u));
}

INLINE void store(char *to, pair numbers, enum type type)
{
    if (type == BFLOAT16) {
        words both = rounded(numbers.a) >> 16 | (rounded(numbers.b) & 0xffff0000u);
        memcpy(to, &both, sizeof both);
    } else {
        memcpy(to, &numbers, sizeof numbers);
    }
}

/* The first `count` numbers of a pair; zeros after them. */
INLINE pair load_some(const char *from, int64_t count, enum type type)
{
    if (count >= PAIR)
        return load(from, type);
    char whole[sizeof(pair)] = {0};
    memcpy(whole, from, count * size_of(type));
    return load(whole, type);
}

INLINE void store_some(char *to, pair numbers, int64_t count, enum type type)
{
    if (count >= PAIR) {
        store(to, numbers, type);
    } else {
        char whole[sizeof(pair)];
        store(whole, numbers, type);
        memcpy(to, whole, count * size_of(type));
    }
}

/* To within 2 units in the last place; numbers beyond +-87 count as that.
 *
 * e^x = 2^n e^r with |r| <= ln(2) / 2; the polynomial is Cephes' (netlib.org/cephes, expf). */
INLINE floats exponential(floats x)
{
    const float magic = 0x1.8p23f; /* Added, it rounds to an integer, in the low bits. */
    x = larger(all(-87.0f), smaller(all(87.0f), x));
    floats shifted = x * 1.44269504f + magic;
    floats n = shifted - magic;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (floats)((words)p + ((words)shifted << 23));
}

INLINE floats silu(floats x)
{
    return x / (1 + exponential(-x));
}

INLINE floats hyperbolic_tangent(floats x)
{
    return 1 - 2 / (exponential(2 * x) + 1);
}

/* The vector whose lanes have changed places with those `width` away. */
INLINE floats swapped(floats numbers, int width)
{
    const ints lane = LANE_NUMBERS;
    return __builtin_shuffle(numbers, lane ^ width);
}

INLINE float total(floats numbers)
{
    for (int width = LANES / 2; width; width /= 2)
        numbers += swapped(numbers, width);
    return numbers[0];
}

INLINE float largest(floats numbers)
{
    for (int width = LANES / 2; width; width /= 2)
        numbers = larger(numbers, swapped(numbers, width));
    return numbers[0];
}

#endif
