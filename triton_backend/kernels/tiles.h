/* Tiles of the processor's matrix units (Intel's AMX; the manual's TILELOADD and TDPBF16PS): 16 lines of 64 bytes. */
#ifndef TILES_H
#define TILES_H

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES

#include <immintrin.h>

enum {
    LINES = 16,
    LINE_BYTES = 64,
    TILE_BYTES = LINES * LINE_BYTES,
    NUMBERS = LINE_BYTES / 2, /* bfloat16 of a line. */
};

struct registers {
    uint8_t palette, start_line, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
};

INLINE int64_t ceiling(int64_t number, int64_t unit)
{
    return (number + unit - 1) / unit;
}

INLINE int64_t least(int64_t first, int64_t second)
{
    return first < second ? first : second;
}

#endif
#endif
